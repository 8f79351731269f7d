"""Entropic couplings and the anchor, against POT's Sinkhorn, closed forms, loops and finite differences."""

import math
import time

import numpy as np
import ot
import pytest
import torch
from scipy.stats import mannwhitneyu

from axolotl_aot.dominance import PENALTIES, anchor_loss, coupled, dominance_loss
from axolotl_aot.dominance.coupling import BLOCK, blocks, couple
from axolotl_aot.dominance.placements import placements
from axolotl_aot.dominance.plans import entropic_plan

H = {
    "logistic": lambda z, beta: np.logaddexp(0, -beta * z),
    "squared_hinge": lambda z, beta: np.maximum(0, beta - z) ** 2,
    "least_squares": lambda z, beta: (beta - z) ** 2,
    "sigmoid": lambda z, beta: 1 / (1 + np.exp(beta * z)),
}


def sample(rng: np.random.Generator, size: int) -> np.ndarray:
    """Rewards: normal, heavy-tailed, or with many ties."""
    kind = rng.integers(3)
    if kind == 0:
        return rng.normal(0, 2, size)
    if kind == 1:
        return rng.standard_t(2, size)
    return rng.integers(-3, 4, size).astype(float)


def case(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None, str, float, float]:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 30))
    m = n if rng.integers(2) else int(rng.integers(1, 30))
    weights = [rng.uniform(0.1, 3, size) if rng.integers(2) else None for size in (n, m)]
    penalty = list(H)[seed % len(H)]
    beta = float(rng.choice([0.1, 0.5, 1.0]))
    return sample(rng, n), sample(rng, m), *weights, penalty, beta, float(rng.choice([0.3, 1.0, 3.0]))


def masses(weights: np.ndarray | None, size: int) -> np.ndarray:
    weights = np.ones(size) if weights is None else weights
    return weights / weights.sum()


def tensors(*arrays) -> list:
    return [None if array is None else torch.tensor(array, dtype=torch.float64) for array in arrays]


@pytest.mark.parametrize("seed", range(200))
def test_plan_and_value_are_those_of_pots_sinkhorn(seed):
    u, v, w_u, w_v, penalty, beta, entropy = case(seed)
    u, v = np.sort(u), np.sort(v)
    a, b = masses(w_u, len(u)), masses(w_v, len(v))
    cost = H[penalty](u[:, None] - v, beta)
    options = {"method": "sinkhorn_log", "stopThr": 1e-12, "numItermax": 20_000}
    expected = ot.sinkhorn(a, b, cost, entropy, **options)
    found = entropic_plan(*tensors(cost, a, b), entropy)
    assert found.converged
    if (
        max(abs(expected.sum(1) - a).sum(), abs(expected.sum(0) - b).sum()) > 1e-8
    ):  # POT's iterations hardly move here: they are not at their end
        assert abs(found.mass.sum(1).numpy() - a).sum() < 1e-12
        return
    np.testing.assert_allclose(found.mass, expected, atol=1e-7)
    kl = (expected * np.log(np.maximum(expected, 1e-300) / np.outer(a, b))).sum()
    loss = dominance_loss(
        *tensors(u, v),
        beta=beta,
        penalty=penalty,
        entropy=entropy,
        **dict(zip(("upper_weights", "lower_weights"), tensors(w_u, w_v), strict=True)),
    )
    assert loss.item() == pytest.approx((expected * cost).sum() + entropy * kl, abs=1e-9, rel=1e-7)


@pytest.mark.parametrize("seed", range(24))
def test_marginals_are_exact(seed):
    u, v, w_u, w_v, penalty, beta, _ = case(seed)
    a, b = tensors(masses(w_u, len(u)), masses(w_v, len(v)))
    cost = torch.tensor(H[penalty](np.sort(u)[:, None] - np.sort(v), beta))
    for entropy in (1e-12, 1e-3, 1.0, 1e3, math.inf):
        plan = entropic_plan(cost, a, b, entropy).mass
        assert (plan >= 0).all()
        torch.testing.assert_close(plan.sum(1), a, atol=1e-12, rtol=0)
        torch.testing.assert_close(plan.sum(0), b, atol=1e-12, rtol=0)


@pytest.mark.parametrize("entropy", [1e-8, 1e-6, 1e-4, 1e-2, 1.0])
@pytest.mark.parametrize(("n", "m"), [(60, 60), (90, 40), (3, 200)])
@pytest.mark.parametrize("penalty", H)
def test_the_plan_is_that_of_potentials(penalty, n, m, entropy):
    """log(gamma / a b) = (f + g - C) / eps, which tells the minimum from all plans with the marginals."""
    rng = np.random.default_rng(n)
    u, v = np.sort(3 * rng.standard_t(2, n)), np.sort(3 * rng.standard_t(2, m))
    a, b = masses(rng.uniform(0.1, 3, n), n), masses(None, m)
    cost = H[penalty](u[:, None] - v, 0.5)
    plan = entropic_plan(*tensors(cost, a, b), entropy)
    assert plan.converged
    gamma = plan.mass.numpy()
    np.testing.assert_allclose(gamma.sum(1), a, atol=1e-15)
    np.testing.assert_allclose(gamma.sum(0), b, atol=1e-15)
    # the last correction of the marginals is of 1e-11 in all: of no account in entries above 1e-6
    i, j = np.nonzero(gamma > 1e-6)
    target = np.log(gamma[i, j] / (a[i] * b[j])) + cost[i, j] / entropy
    design = np.zeros((len(i), n + m))
    design[np.arange(len(i)), i] = design[np.arange(len(i)), n + j] = 1
    potentials = np.linalg.lstsq(design, target, rcond=None)[0]
    rounding = 1e-15 * (n + m) * np.abs(cost).max() / entropy
    np.testing.assert_allclose(design @ potentials, target, atol=1e-4 + rounding)


@pytest.mark.parametrize("penalty", H)
@pytest.mark.parametrize("entropy", [1e-12, 1e-8, 1e-5, 1e-3])
def test_next_to_no_entropy_costs_next_to_nothing(penalty, entropy):
    """The minimum lies between the linear programme's, and what its plan costs with the entropy."""
    rng = np.random.default_rng(1)
    u, v = np.sort(rng.standard_cauchy(80)), np.sort(rng.standard_cauchy(70))
    a, b = masses(None, 80), masses(None, 70)
    cost = H[penalty](u[:, None] - v, 1.0)
    plan = ot.emd(a, b, cost, numItermax=10**6)
    least = (plan * cost).sum()
    kl = (plan * np.log(np.maximum(plan, 1e-300) / np.outer(a, b))).sum()
    loss = dominance_loss(*tensors(u, v), beta=1.0, penalty=penalty, entropy=entropy).item()
    rounding = 1e-11 * np.abs(cost).max()  # the plan's, before the last correction of its marginals
    assert least - rounding <= loss <= least + entropy * kl + rounding


def test_one_against_very_many():
    u, v = tensors([0.5, 1.5], np.random.default_rng(0).standard_t(2, 50_000))
    for entropy in (1e-3, 1.0):
        found = coupled(u[:1], v, beta=1.0, entropy=entropy)  # there is but one coupling
        assert found.loss.item() == pytest.approx(H["logistic"](0.5 - v.numpy(), 1.0).mean())
        assert coupled(u, v, beta=1.0, entropy=entropy).unconverged == 0


@pytest.mark.parametrize("seed", range(40))
def test_without_entropy_it_is_the_sort(seed):
    u, v, w_u, w_v, penalty, beta, _ = case(seed)
    if penalty == "sigmoid":  # not convex: the sort is not the plan of least cost
        penalty = "logistic"
    weights = dict(zip(("upper_weights", "lower_weights"), tensors(w_u, w_v), strict=True))
    options = {"beta": beta, "penalty": penalty, **weights}
    sort = dominance_loss(*tensors(u, v), **options).item()
    assert dominance_loss(*tensors(u, v), **options, entropy=1e-8).item() == pytest.approx(sort, abs=1e-6)


@pytest.mark.parametrize("seed", range(40))
def test_infinite_entropy_compares_all_pairs(seed):
    u, v, w_u, w_v, penalty, beta, _ = case(seed)
    a, b = masses(w_u, len(u)), masses(w_v, len(v))
    mean = sum(a[i] * b[j] * H[penalty](u[i] - v[j], beta) for i in range(len(u)) for j in range(len(v)))
    weights = dict(zip(("upper_weights", "lower_weights"), tensors(w_u, w_v), strict=True))
    for entropy, tolerance in ((math.inf, 1e-9), (1e9, 1e-6)):
        found = dominance_loss(*tensors(u, v), beta=beta, penalty=penalty, entropy=entropy, **weights)
        assert found.item() == pytest.approx(mean, abs=tolerance)


@pytest.mark.parametrize("seed", range(20))
def test_the_gradient_is_that_of_the_loss(seed):
    u, v, w_u, w_v, penalty, beta, entropy = case(seed)
    rng = np.random.default_rng(seed)
    u, v = u + rng.normal(0, 1e-2, len(u)), v + rng.normal(0, 1e-2, len(v))  # no two are equal
    weights = dict(zip(("upper_weights", "lower_weights"), tensors(w_u, w_v), strict=True))

    def loss(u, v):
        return dominance_loss(u, v, beta=beta, penalty=penalty, entropy=entropy, **weights)

    inputs = [x.requires_grad_() for x in tensors(u, v)]
    gradients = torch.autograd.grad(loss(*inputs), inputs)
    step = 1e-5
    for k, (x, gradient) in enumerate(zip((u, v), gradients, strict=True)):
        for i in range(len(x)):
            ends = []
            for sign in (1, -1):
                moved = [u.copy(), v.copy()]
                moved[k][i] += sign * step
                ends.append(loss(*tensors(*moved)).item())
            assert gradient[i].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=2e-6)


def test_label_smoothing_is_in_the_cost():
    u, v = tensors([0.3, -1.0, 2.0], [0.5, -0.2])
    h, e = PENALTIES["logistic"], 0.2
    z = u[:, None] - v
    mean = ((1 - e) * h(z, 0.7) + e * h(-z, 0.7)).mean()
    found = dominance_loss(u, v, beta=0.7, label_smoothing=e, entropy=math.inf)
    assert found.item() == pytest.approx(mean.item())


@pytest.mark.parametrize(("n", "m"), [(5_000, 5_000), (30_000, 300), (7, 9_000_000 // 7)])
def test_many_values_are_coupled_in_blocks(n, m):
    a, b = torch.full((n,), 1 / n), torch.full((m,), 1 / m)
    parts = list(blocks(a, b))
    assert sum(part.share for part in parts) == pytest.approx(1, abs=1e-4)
    for side, size in ((0, n), (1, m)):
        assert torch.equal(torch.cat([part[side] for part in parts]).sort().values, torch.arange(size))
    assert all(len(part.upper) * len(part.lower) <= 1.1 * BLOCK**2 for part in parts)
    again = list(blocks(a, b))
    assert all(torch.equal(x.upper, y.upper) for x, y in zip(parts, again, strict=True))


def test_values_without_mass_are_in_no_block():
    a = torch.zeros(3_000, dtype=torch.float64)
    a[[5, 700, 2_999]] = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    b = torch.full((9_000_000,), 1 / 9_000_000, dtype=torch.float64)
    parts = list(blocks(a, b))
    assert len(parts) == 3 and sum(part.share for part in parts) == pytest.approx(1)
    assert torch.cat([part.upper for part in parts]).sort().values.tolist() == [5, 700, 2_999]
    (alone,) = blocks(a, a)
    assert alone.upper.tolist() == alone.lower.tolist() == [5, 700, 2_999]


@pytest.mark.parametrize("seed", range(20))
def test_a_weight_of_zero_is_a_value_left_out(seed):
    u, v, _, _, penalty, beta, entropy = case(seed)
    counts = np.random.default_rng(seed).integers(0, 3, len(u)) + np.eye(len(u))[0]
    options = {"beta": beta, "penalty": penalty, "entropy": entropy}
    upper, lower = tensors(u, v)
    upper.requires_grad_()
    weighted = dominance_loss(upper, lower, **options, upper_weights=torch.tensor(counts))
    (gradient,) = torch.autograd.grad(weighted, upper)
    left = dominance_loss(
        *tensors(u[counts > 0], v), **options, upper_weights=torch.tensor(counts[counts > 0])
    )
    assert weighted.item() == pytest.approx(left.item(), abs=1e-12)
    assert not gradient[torch.tensor(counts) == 0].any()


def test_blocks_are_close_to_the_whole():
    torch.manual_seed(0)
    u, v = torch.randn(2_500).sort().values, (torch.randn(2_500) - 0.5).sort().values
    mass = torch.full((2_500,), 1 / 2_500, dtype=torch.float64)

    def cost(z):
        return PENALTIES["logistic"](z, 1.0)

    found = couple(u, v, mass, mass, cost, 1.0)
    assert found.plans == 2
    plan = entropic_plan(cost(u[:, None] - v), mass, mass, 1.0)
    whole = (plan.mass * cost(u[:, None] - v)).sum() + torch.xlogy(plan.mass, plan.mass * 2_500**2).sum()
    assert found.loss.item() == pytest.approx(whole.item(), rel=5e-3)


def test_the_displacement_of_ranks():
    torch.manual_seed(0)
    u, v = torch.randn(200), torch.randn(200)
    found = [coupled(u, v, beta=1.0, entropy=e).displacement.item() for e in (1e-9, 0.03, 0.3, math.inf)]
    assert found == sorted(found)
    assert found[0] == pytest.approx(0, abs=1e-2)
    assert found[-1] == pytest.approx((1 - 1 / 200**2) / 3)  # of two uniform ranks, by hand


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"entropy": -1.0},
            r"entropy must be 0 \(the sort\) or above, up to infinity \(all pairs\), got -1.0",
        ),
        ({"entropy": math.nan}, r"entropy must be 0 .* got nan"),
        ({"entropy": 1.0, "dominance": "second"}, "needs dominance 'first' and sort 'hard'"),
        ({"entropy": 1.0, "sort": "soft"}, "needs dominance 'first' and sort 'hard'"),
        ({"entropy": 1.0, "upper_weights": torch.tensor([-1.0, 1.0])}, "upper_weights must be finite"),
    ],
)
def test_what_is_no_coupling(options, message):
    with pytest.raises(ValueError, match=message):
        dominance_loss(torch.tensor([1.0, 2.0]), torch.tensor([0.0]), beta=1.0, **options)


@pytest.mark.parametrize(
    ("entropy", "message"),
    [
        (0, "entropy must be above 0, got 0: the sort is dominance_loss's own"),
        (-0.5, "entropy must be above 0, got -0.5$"),
        (math.nan, "entropy must be above 0, got nan$"),
    ],
)
def test_a_coupling_has_an_entropy(entropy, message):
    with pytest.raises(ValueError, match=message):
        coupled(torch.tensor([1.0, 2.0]), torch.tensor([0.0]), beta=1.0, entropy=entropy)


@pytest.mark.timing
@pytest.mark.slow
@pytest.mark.parametrize(("entropy", "limit"), [(1.0, 0.05), (0.1, 0.05), (1e-2, 0.5), (1e-3, 0.5)])
@pytest.mark.parametrize("kind", ["normal", "standard_t", "standard_cauchy"])
@pytest.mark.parametrize("penalty", ["logistic", "sigmoid"])
def test_512_against_512_take_milliseconds(kind, penalty, entropy, limit):
    rng = np.random.default_rng(0)
    draw = {"normal": lambda n: rng.normal(0, 3, n), "standard_t": lambda n: rng.standard_t(2, n)}
    u, v = (
        torch.tensor(draw.get(kind, rng.standard_cauchy)(512), dtype=torch.float32, requires_grad=True)
        for _ in range(2)
    )
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        found = coupled(u, v, beta=1.0, penalty=penalty, entropy=entropy)
        torch.autograd.grad(found.loss, (u, v))
        seconds.append(time.perf_counter() - start)
        assert not found.unconverged
    assert min(seconds) < limit


# --- The anchor ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_the_anchor_by_a_loop(seed):
    u, v, w_u, w_v, penalty, beta, _ = case(seed)
    expected = 0.0
    for x, weights, sign in ((u, w_u, 1), (v, w_v, -1)):
        mass = masses(weights, len(x))
        for i in range(len(x)):
            expected += mass[i] * float(H[penalty](np.float64(sign * x[i]), beta)) / 2
    names = ("chosen_weights", "rejected_weights")
    options = dict(zip(names, tensors(w_u, w_v), strict=True))
    assert anchor_loss(*tensors(u, v), beta=beta, penalty=penalty, **options).item() == pytest.approx(
        expected
    )


def test_the_anchor_of_one_label():
    u, nothing = torch.tensor([0.5, -1.0]), torch.tensor([])
    expected = torch.sigmoid(-2 * u).mean().item() / 2
    assert anchor_loss(u, nothing, beta=2.0, penalty="sigmoid").item() == pytest.approx(expected)
    assert anchor_loss(nothing, -u, beta=2.0, penalty="sigmoid").item() == pytest.approx(expected)
    with pytest.raises(ValueError, match="both empty"):
        anchor_loss(nothing, nothing, beta=2.0)


# --- Doubted labels -----------------------------------------------------------------------------------


def placement(value, others, masses, width):
    """Answer by answer: 1 for one below by more than the width, 0 above, in proportion between."""
    shares = [
        m * min(max((value - o + width) / (2 * width), 0), 1) for o, m in zip(others, masses, strict=True)
    ]
    return sum(shares) / sum(masses)


@pytest.mark.parametrize("seed", range(10))
def test_placements_by_a_loop(seed):
    rng = np.random.default_rng(seed)
    n, m, width = rng.integers(1, 30), rng.integers(1, 30), 10 ** rng.uniform(-2, 2)
    u, v = rng.standard_t(2, n).round(1), rng.standard_t(2, m).round(1)  # some are equal
    mass = rng.uniform(0, 3, m)
    found = placements(*tensors(u, v, mass), width)
    assert found.tolist() == pytest.approx([placement(x, v, mass, width) for x in u], abs=1e-12)


def test_placements_are_the_parts_of_the_mann_whitney_statistic():
    rng = np.random.default_rng(1)
    u, v = rng.normal(1, 2, 40).round(), rng.normal(0, 2, 70).round()
    found = placements(*tensors(u, v, np.ones(70)), 1e-6)
    assert found.mean().item() == pytest.approx(mannwhitneyu(u, v).statistic / (40 * 70), rel=1e-6)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", ["logistic", "sigmoid"])
def test_doubted_labels_by_a_loop(name, seed):
    rng = np.random.default_rng(seed)
    beta = 10 ** rng.uniform(-1, 1)
    u, v = rng.normal(1, 3, 9), rng.normal(-1, 3, 14)
    a, b = rng.uniform(0, 2, 9), rng.uniform(0, 2, 14)
    trusted = [m * (0.05 + placement(x, v, b, 0.1 / beta)) for x, m in zip(u, a, strict=True)]
    distrusted = [m * (0.05 + placement(-x, -u, a, 0.1 / beta)) for x, m in zip(v, b, strict=True)]
    h = {"logistic": lambda z: np.logaddexp(0, -z), "sigmoid": lambda z: 1 / (1 + np.exp(z))}[name]
    expected = (np.average(h(beta * u), weights=trusted) + np.average(h(-beta * v), weights=distrusted)) / 2
    options = dict(zip(("chosen_weights", "rejected_weights"), tensors(a, b), strict=True))
    found = anchor_loss(*tensors(u, v), beta=beta, penalty=name, doubt_labels=True, **options)
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_a_wrong_label_counts_little_and_rounding_nothing():
    u, v = torch.tensor([9.0, 10, 11, -20]), torch.tensor([-9.0, -10, -11, 20])  # the last ones are wrong

    def pull(**options):
        chosen = u.clone().requires_grad_()
        anchor_loss(chosen, v, beta=0.1, penalty="sigmoid", **options).backward()
        return (chosen.grad[3] / chosen.grad[0]).item()

    assert pull(doubt_labels=True) < 0.1 * pull()
    noise = 1e-6 * torch.randn(50, generator=torch.Generator().manual_seed(0))
    same = [anchor_loss(x[:25], x[25:], beta=1.0, doubt_labels=True).item() for x in (noise, 0 * noise)]
    # a noise of 1e-6 is 1e-5 of the width
    assert same[0] == pytest.approx(same[1], abs=1e-6)


def test_no_label_is_doubted_where_there_is_but_one():
    u, nothing = torch.tensor([1.0, -2]), torch.tensor([])
    assert anchor_loss(u, nothing, beta=2.0, doubt_labels=True) == anchor_loss(u, nothing, beta=2.0)
