"""The loss against the transport linear programme, brute force, closed forms and gradcheck."""

import itertools
import time
from fractions import Fraction

import numpy as np
import ot
import pytest
import torch

from axolotl_aot.dominance import DOMINANCES, PENALTIES, SORTS, dominance_loss, quantile_steps, violation

BETA = 0.7
COSTS = {  # written again, in NumPy, from the paper's table
    "logistic": lambda z: np.logaddexp(0, -BETA * z),
    "squared_hinge": lambda z: np.maximum(0, BETA - z) ** 2,
    "least_squares": lambda z: (BETA - z) ** 2,
    "sigmoid": lambda z: 1 / (1 + np.exp(BETA * z)),
}
SLOPES = {
    "logistic": lambda z: -BETA / (1 + np.exp(BETA * z)),
    "squared_hinge": lambda z: -2 * np.maximum(0, BETA - z),
    "least_squares": lambda z: -2 * (BETA - z),
}
CONVEX = [name for name in COSTS if name != "sigmoid"]  # of which the sort is the plan of least cost
SIZES = [(1, 1), (7, 7), (64, 64), (5, 3), (1, 6), (13, 40), (101, 37)]


def normal(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def ties(n: int, seed: int) -> torch.Tensor:
    return normal(n, seed).round()


def heavy_tails(n: int, seed: int) -> torch.Tensor:
    return normal(n, seed) / normal(n, seed + 100)  # Cauchy


def test_the_tables_are_those_of_this_test():
    assert set(PENALTIES) == set(COSTS)
    assert set(DOMINANCES) == {"first", "second"}
    assert set(SORTS) == {"hard", "soft"}


@pytest.mark.parametrize("sample", [normal, ties, heavy_tails])
@pytest.mark.parametrize(("n", "m"), SIZES)
@pytest.mark.parametrize("penalty", CONVEX)
def test_value_is_the_optimal_transport_cost(penalty, n, m, sample):
    upper, lower = sample(n, 1), sample(m, 2)
    cost = COSTS[penalty](upper.numpy()[:, None] - lower.numpy()[None, :])
    expected = ot.emd2(ot.unif(n), ot.unif(m), cost, numItermax=10**6)
    loss = dominance_loss(upper, lower, beta=BETA, penalty=penalty)
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("n", "m"), SIZES)
@pytest.mark.parametrize("penalty", CONVEX)
def test_gradient_is_that_of_the_optimal_plan(penalty, n, m):
    # envelope theorem: the plan is constant to first order, so only the cost is differentiated
    upper, lower = normal(n, 1).requires_grad_(), normal(m, 2).requires_grad_()
    dominance_loss(upper, lower, beta=BETA, penalty=penalty).backward()
    z = upper.detach().numpy()[:, None] - lower.detach().numpy()[None, :]
    flow = ot.emd(ot.unif(n), ot.unif(m), COSTS[penalty](z), numItermax=10**6) * SLOPES[penalty](z)
    np.testing.assert_allclose(upper.grad, flow.sum(1), atol=1e-12)
    np.testing.assert_allclose(lower.grad, -flow.sum(0), atol=1e-12)


@pytest.mark.parametrize(("n", "m"), SIZES)
def test_weighted_value_and_gradient_are_those_of_the_plan(n, m):
    upper, lower = normal(n, 1).requires_grad_(), normal(m, 2).requires_grad_()
    a, b = normal(n, 3).exp(), normal(m, 4).exp()
    loss = dominance_loss(upper, lower, beta=BETA, upper_weights=a, lower_weights=b)
    loss.backward()
    z = upper.detach().numpy()[:, None] - lower.detach().numpy()[None, :]
    plan, log = ot.emd((a / a.sum()).numpy(), (b / b.sum()).numpy(), COSTS["logistic"](z), log=True)
    assert loss.item() == pytest.approx(log["cost"], rel=1e-9)
    np.testing.assert_allclose(upper.grad, (plan * SLOPES["logistic"](z)).sum(1), atol=1e-9)


@pytest.mark.parametrize("dominance", DOMINANCES)
def test_whole_weights_are_repeated_samples(dominance):
    upper, lower = normal(6, 1), normal(4, 2)
    counts = torch.tensor([3, 1, 0, 2, 5, 1])
    weighted = dominance_loss(upper, lower, beta=BETA, dominance=dominance, upper_weights=counts.double())
    repeated = upper.repeat_interleave(counts)
    if dominance == "first":
        assert weighted.item() == pytest.approx(dominance_loss(repeated, lower, beta=BETA).item())
    else:  # second order depends on the grid as well; a step of width zero must not count
        without = dominance_loss(
            upper[counts > 0],
            lower,
            beta=BETA,
            dominance=dominance,
            upper_weights=counts[counts > 0].double(),
        )
        assert weighted.item() == pytest.approx(without.item())


def brute_force(upper, lower, h, dominance: str) -> float:
    """Walk the merged grid in exact fractions, one step after the other."""
    upper, lower = sorted(upper.tolist()), sorted(lower.tolist())
    n, m = len(upper), len(lower)
    edges = sorted({Fraction(i, n) for i in range(1, n + 1)} | {Fraction(j, m) for j in range(1, m + 1)})
    total, integral, previous = 0.0, 0.0, Fraction(0)
    for edge in edges:
        gap = upper[-(-edge * n // 1) - 1] - lower[-(-edge * m // 1) - 1]
        width = float(edge - previous)
        integral += width * gap
        total += width * float(h(np.float64(gap if dominance == "first" else integral)))
        previous = edge
    return total


@pytest.mark.parametrize("dominance", DOMINANCES)
@pytest.mark.parametrize(("n", "m"), [*SIZES, (12, 8), (49, 21)])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_value_is_the_walk_along_the_merged_grid(penalty, n, m, dominance):
    upper, lower = heavy_tails(n, 5), heavy_tails(m, 6)
    loss = dominance_loss(upper, lower, beta=BETA, penalty=penalty, dominance=dominance)
    assert loss.item() == pytest.approx(brute_force(upper, lower, COSTS[penalty], dominance), rel=1e-10)


def test_label_smoothing_is_the_mixture_of_both_directions():
    upper, lower = normal(9, 1), normal(6, 2)

    def smoothed(z):
        return 0.8 * COSTS["logistic"](z) + 0.2 * COSTS["logistic"](-z)

    cost = smoothed(upper.numpy()[:, None] - lower.numpy()[None, :])
    loss = dominance_loss(upper, lower, beta=BETA, label_smoothing=0.2)
    assert loss.item() == pytest.approx(ot.emd2(ot.unif(9), ot.unif(6), cost), rel=1e-9)


SORTS_AND_STRENGTHS = [("hard", None), ("soft", 0.5), ("soft", None)]
OPTIONS = list(itertools.product(PENALTIES, DOMINANCES, SORTS_AND_STRENGTHS, [False, True]))


@pytest.mark.parametrize(("penalty", "dominance", "sort_and_strength", "weighted"), OPTIONS)
@pytest.mark.parametrize(("n", "m"), [(6, 6), (7, 4)])
def test_gradcheck(penalty, dominance, sort_and_strength, weighted, n, m):
    sort, strength = sort_and_strength
    upper, lower = 3 * normal(n, 1).requires_grad_(), 3 * normal(m, 2).requires_grad_()
    weights = {"upper_weights": normal(n, 3).exp(), "lower_weights": normal(m, 4).exp()}

    def loss(u, v):
        return dominance_loss(
            u,
            v,
            beta=BETA,
            penalty=penalty,
            dominance=dominance,
            sort=sort,
            soft_sort_strength=strength,
            **(weights if weighted else {}),
        )

    assert torch.autograd.gradcheck(loss, (upper, lower), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("strength", [0.2, 1.0, 5.0])
@pytest.mark.parametrize("sample", [normal, ties, heavy_tails])
def test_soft_sort_is_the_projection_on_the_permutahedron(sample, strength):
    # A point is the projection of z on a convex set iff it lies in the set and no vertex lies beyond it.
    w = sample(5, 3)
    soft = quantile_steps(w, w, sort="soft", soft_sort_strength=strength).upper
    z = torch.arange(1, 6, dtype=torch.float64) / strength
    partial_sums = soft.sort(descending=True).values.cumsum(0)
    assert (partial_sums <= w.sort(descending=True).values.cumsum(0) + 1e-9).all()  # majorisation
    assert soft.sum().item() == pytest.approx(w.sum().item())
    for vertex in itertools.permutations(w.tolist()):
        assert torch.dot(z - soft, torch.tensor(vertex, dtype=torch.float64) - soft) <= 1e-9


def test_soft_sort_tends_to_the_hard_sort_and_differs_before():
    upper, lower = heavy_tails(200, 1), normal(150, 2)
    hard = dominance_loss(upper, lower, beta=BETA).item()
    soft = [
        dominance_loss(upper, lower, beta=BETA, sort="soft", soft_sort_strength=s).item()
        for s in (10.0, 1e-2, 1e-6, 1e-12)
    ]
    assert abs(soft[0] - hard) > 1e-3
    assert soft[2] == pytest.approx(hard, rel=1e-9)
    assert soft[3] == pytest.approx(hard, rel=1e-12)  # no cancellation at a tiny strength


def soft_sorted(sample: torch.Tensor, strength: float) -> torch.Tensor:
    return quantile_steps(sample, sample, sort="soft", soft_sort_strength=strength).upper


def mean_distance(*samples: torch.Tensor) -> float:
    """Of two values of the same sample, over all pairs; samples count with their degrees of freedom."""
    total = 0.0
    for sample in samples:
        distances = [abs(a - b) for a, b in itertools.combinations(sample.tolist(), 2)]
        total += (len(sample) - 1) * np.mean(distances) if distances else 0.0
    return total / sum(len(sample) - 1 for sample in samples)


@pytest.mark.parametrize("sample", [normal, ties, heavy_tails])
@pytest.mark.parametrize(("n", "m"), [(2, 2), (7, 7), (64, 64), (5, 3), (1, 6), (13, 40)])
def test_default_strength_allows_twice_the_spacing_of_evenly_spaced_samples(n, m, sample):
    upper, lower = sample(n, 1), 3 * sample(m, 2)
    spread = mean_distance(upper, lower)
    # evenly spaced, n values lie 3 * spread / (n + 1) apart; the strength is the inverse of the distance
    expected = [soft_sorted(w, (len(w) + 1) / (2 * 3 * spread)) for w in (upper, lower)]
    gap = brute_force(*expected, lambda z: z, "first")
    square = brute_force(*expected, lambda z: z**2, "first")
    steps = quantile_steps(upper, lower, sort="soft")
    assert (steps.mass * (steps.upper - steps.lower)).sum().item() == pytest.approx(gap, abs=1e-9)
    assert (steps.mass * (steps.upper - steps.lower) ** 2).sum().item() == pytest.approx(square, rel=1e-9)


def test_default_soft_sort_by_hand():
    # 4 of 10 distances are 10 and the others 0, so D = 4; evenly spaced values would lie 3 * 4 / (5 + 1) = 2
    # apart, and 4 are allowed: the last two are pulled together to that around their mean of 5
    w = torch.tensor([0.0, 10.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    assert quantile_steps(w, w + 1, sort="soft").upper.tolist() == pytest.approx([0, 0, 0, 3, 7])


@pytest.mark.parametrize(("n", "m"), [(9, 9), (12, 7)])
def test_default_soft_sort_leaves_evenly_spaced_samples_alone(n, m):
    upper, lower = (torch.linspace(-1, 1, count, dtype=torch.float64) for count in (n, m))
    spread = [mean_distance(sample) for sample in (upper, lower)]
    lower = lower * spread[0] / spread[1]  # equally spread
    soft, hard = quantile_steps(upper, lower, sort="soft"), quantile_steps(upper, lower)
    np.testing.assert_allclose(soft.upper, hard.upper, atol=1e-12)
    np.testing.assert_allclose(soft.lower, hard.lower, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize(("n", "m"), [(16, 16), (64, 64), (64, 20), (512, 512)])
@pytest.mark.parametrize("sample", [normal, heavy_tails])
def test_default_soft_sort_acts_at_any_scale(sample, n, m, scale):
    upper, lower = sample(n, 1), sample(m, 2)
    soft, hard = quantile_steps(upper, lower, sort="soft"), quantile_steps(upper, lower)
    quartiles = upper.quantile(0.75) - upper.quantile(0.25)
    assert (soft.upper - hard.upper).abs().max() > 0.05 * quartiles
    scaled = quantile_steps(scale * upper + 5, scale * lower - 7, sort="soft")
    np.testing.assert_allclose(scaled.upper, scale * soft.upper + 5, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(scaled.lower, scale * soft.lower - 7, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_default_soft_sort_keeps_dominance(seed):
    lower = normal(31, seed)
    raised = torch.where(normal(31, seed + 100) > 0, heavy_tails(31, seed + 200).abs(), 0.0)
    upper = lower + raised  # at least lower, rank by rank, and of another spread
    assert violation(upper, lower).size <= 1e-12
    soft = quantile_steps(upper, lower, sort="soft")
    assert (soft.upper >= soft.lower - 1e-9).all()


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 3), (4, 4)])
def test_default_soft_sort_of_samples_without_spread_is_the_hard_sort(n, m):
    results = {}
    for sort in SORTS:
        upper = torch.full((n,), 0.1, requires_grad=True)
        lower = torch.full((m,), 0.3, requires_grad=True)
        loss = dominance_loss(upper, lower, beta=BETA, sort=sort)
        loss.backward()
        results[sort] = [loss.item(), *upper.grad.tolist(), *lower.grad.tolist()]
    assert results["soft"] == pytest.approx(results["hard"], rel=1e-6)


@pytest.mark.parametrize("shift", [-2.0, 0.0, 0.3])
def test_closed_forms_of_a_translation(shift):
    lower = normal(31, 1)
    upper = lower[torch.randperm(31, generator=torch.Generator().manual_seed(0))] + shift
    assert dominance_loss(upper, lower, beta=BETA, penalty="least_squares").item() == pytest.approx(
        (BETA - shift) ** 2
    )
    size, rate = violation(upper, lower)
    assert size.item() == pytest.approx(max(0, -shift), abs=1e-12)
    assert rate.item() == pytest.approx(float(shift < 0), abs=0 if shift else 1)


def test_violation_of_crossing_distributions():
    # Q_U = -1 on the lower half and 2 on the upper; Q_V = 0: short by 1 on half of the quantiles
    size, rate = violation(torch.tensor([2.0, -1.0]), torch.tensor([0.0, 0.0, 0.0]))
    assert (size.item(), rate.item()) == pytest.approx((0.5, 0.5))


def integral_of_the_quantile(sample: torch.Tensor, weights: torch.Tensor, p: np.ndarray) -> np.ndarray:
    """Integral of the quantile function from 0 to each p: linear between the cumulated masses."""
    order = sample.argsort()
    masses = (weights / weights.sum())[order].numpy()
    at_steps = np.concatenate([[0], np.cumsum(masses * sample[order].numpy())])
    return np.interp(p, np.concatenate([[0], np.cumsum(masses)]), at_steps)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sample", [normal, ties])
@pytest.mark.parametrize(("n", "m"), SIZES)
def test_second_order_violation_is_that_of_the_integrated_quantiles(n, m, sample, weighted):
    upper, lower = sample(n, 1), sample(m, 2)
    given = (normal(n, 3).abs() + 0.1, normal(m, 4).abs() + 0.1) if weighted else (None, None)
    masses = [torch.ones_like(s) if w is None else w for s, w in zip((upper, lower), given, strict=True)]
    p = (np.arange(400_000) + 0.5) / 400_000
    gap = integral_of_the_quantile(upper, masses[0], p) - integral_of_the_quantile(lower, masses[1], p)
    size, rate = violation(upper, lower, *given, dominance="second")
    assert size.item() == pytest.approx(np.maximum(-gap, 0).mean(), rel=1e-4, abs=1e-9)
    # where both run together, rounding decides the sign of their difference
    assert rate.item() == pytest.approx((gap < 0).mean(), abs=(1e-5 if sample is normal else 0.5))


def test_second_order_violation_by_hand():
    # the integral of the gap falls to -1/2 at p = 1/2 and rises to 1/2 at p = 1: two triangles below 0
    size, rate = violation(torch.tensor([2.0, -1.0]), torch.tensor([0.0, 0.0]), dominance="second")
    assert size.item() == pytest.approx(0.5 * 0.5 / 2 + 0.25 * 0.5 / 2)
    assert rate.item() == pytest.approx(0.75)
    # and none where low quantiles come first
    assert violation(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 2.0]), dominance="second").size == 0
    assert violation(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 2.0])).size > 0


def test_a_weight_is_worth_as_many_rows_in_both_violations():
    upper, lower = normal(9, 1), normal(7, 2)
    counts = torch.tensor([1, 2, 3, 1, 1, 4, 2, 1, 2])
    for dominance in DOMINANCES:
        weighted = violation(upper, lower, counts.double(), dominance=dominance)
        repeated = violation(upper.repeat_interleave(counts), lower, dominance=dominance)
        assert [v.item() for v in weighted] == pytest.approx([v.item() for v in repeated], rel=1e-12)


@pytest.mark.parametrize(
    ("given", "computed"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_dtype(given, computed):
    upper, lower = normal(50, 1).to(given), normal(40, 2).to(given)
    loss = dominance_loss(upper, lower, beta=BETA)
    assert loss.dtype == computed
    exact = dominance_loss(upper.double(), lower.double(), beta=BETA)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)


@pytest.mark.slow
@pytest.mark.timing
@pytest.mark.parametrize(("sort", "m"), [("hard", 16384), ("hard", 12000), ("soft", 16384)])
def test_speed_at_a_large_batch(sort, m):
    upper, lower = torch.randn(16384, requires_grad=True), torch.randn(m, requires_grad=True)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        dominance_loss(upper, lower, beta=BETA, sort=sort).backward()
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.05


ONE = torch.ones(3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"upper": torch.ones(0)}, "upper must be a non-empty 1-D tensor"),
        ({"lower": torch.ones(2, 2)}, r"lower must be a non-empty 1-D tensor, got shape \(2, 2\)"),
        ({"upper": torch.tensor([0.0, torch.nan])}, "upper has 1 of 2 values that are not finite"),
        ({"lower": torch.tensor([torch.inf, 0.0])}, "lower has 1 of 2 values that are not finite"),
        ({"upper_weights": torch.tensor([1.0, -1.0, 1.0])}, "upper_weights must be finite, non-neg"),
        ({"upper_weights": torch.zeros(3)}, "upper_weights must be finite.*not all zero"),
        ({"lower_weights": torch.ones(2)}, r"lower_weights must have the sample's shape \(3,\)"),
        ({"penalty": "logistc"}, "unknown penalty 'logistc'.*Did you mean 'logistic'"),
        ({"dominance": "third"}, "unknown dominance 'third': must be one of first, second"),
        ({"sort": "softer"}, "unknown sort 'softer'.*Did you mean 'soft'"),
        ({"beta": 0.0}, "beta must be positive"),
        ({"soft_sort_strength": 0.0}, "soft_sort_strength must be positive"),
        ({"label_smoothing": 0.5}, r"label_smoothing must lie in \[0, 0.5\)"),
        ({"label_smoothing": 0.1, "penalty": "squared_hinge"}, "label_smoothing needs penalty logistic"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        dominance_loss(**{"upper": ONE, "lower": ONE, "beta": BETA, **arguments})
