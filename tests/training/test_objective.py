"""The objective on its own: loss and metrics against loops over the answers, gradients by differences."""

import math

import numpy as np
import ot
import pytest
import torch

from axolotl_aot.config import AOTArgs
from axolotl_aot.dominance import Coupled, anchor_loss
from axolotl_aot.training.objective import Objective, PairedObjective, PlanCount, Scores, UnpairedObjective

BETA = 0.3
OBJECTIVES = {"aot": PairedObjective, "aot_unpaired": UnpairedObjective}


def make(rl: str, **keys: object) -> Objective:
    return OBJECTIVES[rl](AOTArgs(**keys), BETA)


def make_scores(rl: str, answers: int = 14, weighted: bool = False, seed: int = 0) -> Scores:
    """Float64 scores of answers; of pairs, chosen and rejected in turn."""
    generator = torch.Generator().manual_seed(seed)
    reference = -30 + 4 * torch.randn(answers, dtype=torch.float64, generator=generator)
    policy = reference + torch.randn(answers, dtype=torch.float64, generator=generator)
    label = torch.arange(answers) % (2 if rl == "aot" else 3) == 0
    weight = None
    if weighted:
        weight = torch.randint(1, 4, (answers,), generator=generator).double()
        if rl == "aot":  # a pair has one weight
            weight = weight[::2].repeat_interleave(2)
    return Scores(policy, reference, label, weight)


def compared(rl: str, scores: Scores) -> tuple[list[float], list[float], list[float], list[float]]:
    """The two samples and their masses, gathered answer by answer."""
    policy, reference, label = (field.tolist() for field in scores[:3])
    weight = [1.0] * len(policy) if scores.weight is None else scores.weight.tolist()
    if rl == "aot":
        pairs = range(0, len(policy), 2)
        upper = [policy[i] - policy[i + 1] for i in pairs]
        lower = [reference[i] - reference[i + 1] for i in pairs]
        masses = [weight[i] for i in pairs]
        return upper, lower, masses, masses
    reward = [p - r for p, r in zip(policy, reference, strict=True)]
    sides = [[i for i, chosen in enumerate(label) if chosen is wanted] for wanted in (True, False)]
    return *([reward[i] for i in side] for side in sides), *([weight[i] for i in side] for side in sides)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("rl", OBJECTIVES)
def test_the_loss_is_the_transport_cost_between_what_is_compared(rl, weighted):
    scores = make_scores(rl, weighted=weighted)
    upper, lower, a, b = (np.array(values) for values in compared(rl, scores))
    cost = np.logaddexp(0, -BETA * (upper[:, None] - lower[None, :]))
    expected = ot.emd2(a / a.sum(), b / b.sum(), cost)
    assert make(rl).loss(scores).value.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"aot_penalty": "squared_hinge", "aot_dominance": "second"},
        {"aot_penalty": "sigmoid", "aot_anchor": 1},
        {"aot_entropy": 0.5, "aot_anchor": 0.3},
    ],
)
@pytest.mark.parametrize("rl", OBJECTIVES)
def test_the_gradient_is_that_of_the_loss(rl, keys):
    scores = make_scores(rl, weighted=True)
    objective = make(rl, **keys)
    loss, gradient = objective.loss_and_gradient(scores)
    assert loss.value.item() == objective.loss(scores).value.item() and not loss.value.requires_grad
    step = 1e-6
    for i in range(len(scores.policy)):
        ends = []
        for sign in (1, -1):
            policy = scores.policy.clone()
            policy[i] += sign * step
            ends.append(objective.loss(scores._replace(policy=policy)).value.item())
        assert gradient[i].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-8)


@pytest.mark.parametrize("rl", OBJECTIVES)
def test_metrics_are_those_of_a_loop(rl):
    scores = make_scores(rl)
    metrics = make(rl).metrics(scores)
    policy, reference, label = (field.tolist() for field in scores[:3])
    for side, wanted in (("chosen", True), ("rejected", False)):
        own = [i for i, chosen in enumerate(label) if chosen is wanted]
        reward = sum(BETA * (policy[i] - reference[i]) for i in own) / len(own)
        assert metrics[f"rewards/{side}"] == pytest.approx(reward)
        assert metrics[f"logps/{side}"] == pytest.approx(sum(policy[i] for i in own) / len(own))
    margin = metrics["rewards/chosen"] - metrics["rewards/rejected"]
    assert metrics["rewards/margins"] == pytest.approx(margin)
    upper, lower, _, _ = compared(rl, scores)
    n, m = len(upper), len(lower)
    # on a grid that both quantile functions are constant on
    gaps = [sorted(upper)[k // m] - sorted(lower)[k // n] for k in range(n * m)]
    assert metrics["dominance/violation"] == pytest.approx(sum(max(-g, 0) for g in gaps) / (n * m))
    assert metrics["dominance/violation_rate"] == pytest.approx(sum(g < 0 for g in gaps) / (n * m))
    assert metrics["dominance/margin_p50"] == pytest.approx(
        sorted(upper)[math.ceil(n / 2) - 1] - sorted(lower)[math.ceil(m / 2) - 1]
    )
    if rl == "aot":
        better = [policy[i] - reference[i] > policy[i + 1] - reference[i + 1] for i in range(0, 14, 2)]
        assert metrics["rewards/accuracies"] == pytest.approx(sum(better) / 7)
    else:
        assert "rewards/accuracies" not in metrics


@pytest.mark.parametrize("label", [True, False])
def test_one_label_alone_has_no_loss_and_only_its_own_metrics(label):
    scores = make_scores("aot_unpaired")
    scores = scores._replace(label=torch.full_like(scores.label, label))
    loss, gradient = make("aot_unpaired").loss_and_gradient(scores)
    assert loss.value == 0 and not gradient.any()
    side = "chosen" if label else "rejected"
    below = "chosen_below_base" if label else "rejected_above_base"
    names = {f"rewards/{side}", f"logps/{side}", f"dominance/{below}", f"dominance/{below}_rate"}
    assert set(make("aot_unpaired").metrics(scores)) == names


# --- Entropic coupling and anchor --------------------------------------------------------------------


def penalty(z: float, name: str) -> float:
    return math.log1p(math.exp(-BETA * z)) if name == "logistic" else 1 / (1 + math.exp(BETA * z))


def anchor(rl: str, scores: Scores, name: str) -> float:
    """Half the mean over chosen answers of h(reward), and over rejected ones of h(-reward), one by one."""
    policy, reference, label = (field.tolist() for field in scores[:3])
    weight = [1.0] * len(policy) if scores.weight is None else scores.weight.tolist()
    total = 0.0
    for wanted in (True, False):
        own = [i for i, chosen in enumerate(label) if chosen is wanted]
        mass = sum(weight[i] for i in own)
        for i in own:
            reward = policy[i] - reference[i]
            total += weight[i] / mass * penalty(reward if wanted else -reward, name) / 2
    return total


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["logistic", "sigmoid"])
@pytest.mark.parametrize("share", [0.3, 1.0])
@pytest.mark.parametrize("rl", OBJECTIVES)
def test_the_anchor_compares_with_the_base_model(rl, share, name, weighted):
    scores = make_scores(rl, weighted=weighted)
    expected = share * anchor(rl, scores, name)
    if share < 1:
        expected += (1 - share) * make(rl, aot_penalty=name).loss(scores).value.item()
    found = make(rl, aot_penalty=name, aot_anchor=share).loss(scores)
    assert found.value.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("rl", OBJECTIVES)
def test_doubted_labels_change_the_anchor_alone(rl):
    scores = make_scores(rl, weighted=True)
    rewards = scores.policy - scores.reference
    sides = [(rewards[label], scores.weight[label]) for label in (scores.label, ~scores.label)]
    (u, a), (v, b) = sides
    expected = anchor_loss(
        u, v, beta=BETA, penalty="sigmoid", chosen_weights=a, rejected_weights=b, doubt_labels=True
    ).item()
    keys = {"aot_penalty": "sigmoid", "aot_doubt_labels": True}
    assert make(rl, aot_anchor=1, **keys).loss(scores).value.item() == pytest.approx(expected, rel=1e-9)
    rest = make(rl, aot_penalty="sigmoid").loss(scores).value.item()
    found = make(rl, aot_anchor=0.4, **keys).loss(scores).value.item()
    assert found == pytest.approx(0.4 * expected + 0.6 * rest, rel=1e-9)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("rl", OBJECTIVES)
def test_the_entropic_loss_is_pots(rl, weighted):
    scores = make_scores(rl, weighted=weighted)
    upper, lower, a, b = (np.array(values) for values in compared(rl, scores))
    a, b = a / a.sum(), b / b.sum()
    cost = np.logaddexp(0, -BETA * (upper[:, None] - lower[None, :]))
    plan = ot.sinkhorn(a, b, cost, 0.5, method="sinkhorn_log", stopThr=1e-12, numItermax=100_000)
    expected = (plan * cost).sum() + 0.5 * (plan * np.log(plan / np.outer(a, b))).sum()
    objective = make(rl, aot_entropy=0.5)
    loss = objective.loss(scores)
    assert loss.value.item() == pytest.approx(expected, rel=1e-8)
    # by how much the ranks differ that are compared, by hand
    order_u, order_v = np.argsort(upper, kind="stable"), np.argsort(lower, kind="stable")
    rank_u, rank_v = np.empty(len(a)), np.empty(len(b))
    rank_u[order_u] = np.cumsum(a[order_u]) - a[order_u] / 2
    rank_v[order_v] = np.cumsum(b[order_v]) - b[order_v] / 2
    displacement = (plan * abs(rank_u[:, None] - rank_v)).sum()
    metrics = objective.metrics(scores, loss.coupling)
    assert metrics["dominance/rank_displacement"] == pytest.approx(displacement, rel=1e-6)
    assert make(rl).loss(scores).coupling is None
    assert make(rl, aot_entropy=0.5, aot_anchor=1).loss(scores).coupling is None


@pytest.mark.parametrize("rl", OBJECTIVES)
def test_answers_on_the_wrong_side_of_the_base_model(rl):
    scores = make_scores(rl, weighted=True)
    metrics = make(rl).metrics(scores)
    policy, reference, label, weight = (field.tolist() for field in scores[:4])
    for name, wanted, sign in (("chosen_below_base", True, -1), ("rejected_above_base", False, 1)):
        own = [i for i, chosen in enumerate(label) if chosen is wanted]
        mass = sum(weight[i] for i in own)
        depths = {i: max(0.0, sign * (policy[i] - reference[i])) for i in own}
        size = sum(weight[i] * depths[i] for i in own) / mass
        rate = sum(weight[i] for i in own if depths[i] > 0) / mass
        assert metrics[f"dominance/{name}"] == pytest.approx(size)
        assert metrics[f"dominance/{name}_rate"] == pytest.approx(rate)


@pytest.mark.parametrize("label", [True, False])
def test_one_label_alone_is_still_compared_with_the_base_model(label):
    scores = make_scores("aot_unpaired")
    scores = scores._replace(label=torch.full_like(scores.label, label))
    found = make("aot_unpaired", aot_anchor=0.4, aot_penalty="sigmoid").loss(scores).value.item()
    rewards = [p - r for p, r in zip(scores.policy.tolist(), scores.reference.tolist(), strict=True)]
    expected = sum(penalty(r if label else -r, "sigmoid") for r in rewards) / len(rewards) / 2
    assert found == pytest.approx(0.4 * expected)


def test_couplings_that_were_not_found_are_counted(caplog):
    objective = make("aot_unpaired", aot_entropy=1e-30)  # far below the rounding of the costs
    objective.loss(make_scores("aot_unpaired", answers=60))
    assert "1 of 1 entropic couplings so far were not found to their tolerance" in caplog.text
    objective.loss(make_scores("aot_unpaired", answers=60, seed=1))
    assert "2 of 2" not in caplog.text  # said again at ten


def test_rough_couplings_are_told_of_at_the_first_and_at_every_tenfold_number(caplog):
    plans = PlanCount()
    told = []
    # of many values a coupling is found in blocks, several at once
    for rough, found in ((0, 3), (1, 2), (8, 8), (1, 1), (89, 100), (151, 200), (1, 1)):
        caplog.clear()
        plans.count(Coupled(torch.tensor(0.0), torch.tensor(0.0), unconverged=rough, plans=found))
        told.append([record.getMessage().partition(" entropic")[0] for record in caplog.records])
    assert told == [[], ["1 of 5"], [], ["10 of 14"], [], ["250 of 314"], []]


def test_float32_scores_stay_float32():
    scores = make_scores("aot")
    narrow = Scores(*(f.float() if f is not None and f.is_floating_point() else f for f in scores))
    loss, gradient = make("aot").loss_and_gradient(narrow)
    assert loss.value.dtype == gradient.dtype == torch.float32
    assert loss.value.item() == pytest.approx(make("aot").loss(scores).value.item(), rel=1e-5)
