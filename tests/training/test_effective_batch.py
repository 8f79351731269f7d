"""One big batch, however it is cut; against float64 autograd, and against TRL's own trainer."""

import math
from contextlib import contextmanager

import numpy as np
import ot
import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback

from axolotl_aot.dominance import PENALTIES
from axolotl_aot.dominance.coupling import couple
from axolotl_aot.errors import AOTConfigError
from axolotl_aot.training.objective import Scores
from axolotl_aot.training.score_listener import ScoreListener
from tests.helpers import Snapshots, column, counting_calls, counting_forwards, steps
from tests.marks import half_slow
from tests.test_dominance import brute_force
from tests.tiny import make_pairs, unpair, with_rows, with_test_rows, write_jsonl

CUTS = [(16, 1), (4, 4), (1, 16)]  # micro-batch, accumulation steps


@pytest.fixture(params=["paired", "unpaired"])
def config(request, paired_config, unpaired_config):
    return {"paired": paired_config, "unpaired": unpaired_config}[request.param]


@pytest.fixture(params=["full", "lora"])
def adapter(request, lora):
    return lora if request.param == "lora" else {}


def cut(micro_batch: int, accumulation: int) -> dict:
    return {"micro_batch_size": micro_batch, "gradient_accumulation_steps": accumulation}


# --- However it is cut --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "adapter", "options"),
    half_slow(
        ["paired", "unpaired"],
        ["full", "lora"],
        [
            {},
            {"aot_dominance": "second", "aot_sort": "soft"},
            {"aot_padding_free": False},
            {"aot_max_tokens_per_micro_batch": 120},
            {"aot_entropy": 0.5, "aot_anchor": 0.3, "aot_penalty": "sigmoid"},
            {"aot_anchor": 1, "aot_penalty": "sigmoid", "aot_doubt_labels": True},
        ],
    ),
    indirect=["config", "adapter"],
)
def test_loss_and_gradient_do_not_depend_on_the_cut(build, config, adapter, options):
    runs = []
    for micro_batch, accumulation in CUTS:
        trainer = build({**config, **adapter, **options, **cut(micro_batch, accumulation)})
        trainer.train()
        runs.append(trainer)
    first, *others = runs
    assert len(set(column(first, "loss"))) == 4  # the steps differ, or equality would say nothing
    for other in others:
        for key in ("loss", "grad_norm"):
            assert column(other, key) == pytest.approx(column(first, key), rel=1e-4), key
        # differences of log-probabilities of some 60 nats: float32 leaves about 1e-5 of them
        for key in ("rewards/margins", "dominance/violation"):
            assert column(other, key) == pytest.approx(column(first, key), abs=2e-5), key


@contextmanager
def shapes(trainer):
    """Collects the shape of what the policy gets in each training pass."""
    seen = []
    handle = trainer.model.register_forward_pre_hook(
        lambda module, args, kwargs: (
            seen.append(tuple(kwargs["input_ids"].shape)) if module.training else None
        ),
        with_kwargs=True,
    )
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("config", "padding_free", "cutting"),
    half_slow(["paired", "unpaired"], [None, False], [(1, 100), (8, 250), (2, 100)]),
    indirect=["config"],
)
def test_micro_batches_keep_to_a_number_of_tokens(build, config, padding_free, cutting):
    """More of them than Trainer's accumulation steps, fewer, and some of those empty."""
    accumulation, limit = cutting
    keys = {"aot_max_tokens_per_micro_batch": limit, "aot_padding_free": padding_free, "max_steps": 2}
    trainer = build({**config, **cut(16 // accumulation, accumulation), **keys})
    with shapes(trainer) as seen:
        trainer.train()
    whole = build({**config, **cut(16, 1), "max_steps": 2})
    with shapes(whole) as one:
        whole.train()
    assert max(rows * width for rows, width in seen) <= limit < max(rows * width for rows, width in one)
    for key in ("loss", "grad_norm", "dominance/violation", "logps/chosen"):
        assert column(trainer, key) == pytest.approx(column(whole, key), rel=1e-4, abs=1e-5)


def test_where_kernels_have_to_be_started_micro_batches_are_few(build, config, monkeypatch):
    """As few as have the tokens of a padded micro-batch with the longest sequence; as on a GPU."""
    keys = {**config, "max_steps": 2, **cut(2, 8)}
    small = build(keys)
    with shapes(small) as many:
        small.train()
    monkeypatch.setattr("axolotl_aot.training.effective_batch.STARTS_KERNELS", ("cpu",))
    large = build(keys)
    with shapes(large) as few:
        large.train()
    columns = large.objective.samples.columns
    lengths = [len(row["prompt_ids"]) + len(row[name]) for row in large.train_dataset for name in columns]
    limit = 2 * len(columns) * max(lengths)
    assert max(rows * width for rows, width in few) <= limit
    assert len(few) < len(many)
    for key in ("loss", "grad_norm", "dominance/violation", "logps/chosen"):
        assert column(large, key) == pytest.approx(column(small, key), rel=1e-4, abs=1e-5)


def test_cutting_by_length_leaves_little_padding(build, config):
    taken = {}
    for name, options in (
        ("neither", {"aot_scope": "micro_batch", "aot_padding_free": False}),
        ("by length", {"aot_padding_free": False}),
        ("both", {}),
    ):
        trainer = build({**config, **cut(4, 4), **options, "max_steps": 3})
        with shapes(trainer) as seen:
            trainer.train()
        taken[name] = sum(rows * width for rows, width in seen)
    columns = ("prompt_ids", *trainer.objective.samples.columns)
    tokens = sum(len(row[column]) for row in trainer.train_dataset for column in columns)
    if config["rl"] == "aot":  # the three steps are one epoch of the 48 pairs, which share their prompts
        assert tokens <= taken["both"] <= 1.2 * tokens
    assert taken["both"] <= taken["by length"] <= 0.95 * taken["neither"]


def test_a_sample_that_exceeds_the_tokens_of_a_micro_batch_is_refused(build, paired_config):
    with pytest.raises(
        AOTConfigError, match=r"`aot_max_tokens_per_micro_batch: 20`: the longest.*\(2 x \d+\)"
    ):
        build({**paired_config, "aot_max_tokens_per_micro_batch": 20})


def test_the_scope_makes_a_difference(build, paired_config):
    losses = {}
    for scope in ("effective_batch", "micro_batch"):
        trainer = build(
            {**paired_config, **cut(1, 16), "aot_scope": scope, "max_steps": 2, "learning_rate": 5e-3}
        )
        trainer.train()
        losses[scope] = column(trainer, "loss")
    # the first steps agree, all differences being zero; then sorting lowers the mean of a convex cost
    assert losses["effective_batch"][0] == pytest.approx(losses["micro_batch"][0], rel=1e-6)
    assert losses["effective_batch"][1] < losses["micro_batch"][1] - 1e-4


def test_a_last_step_with_fewer_micro_batches(build, paired_config):
    # 48 pairs in steps of 5 x 4: the third step of an epoch holds 8 pairs, in two micro-batches or four
    histories = []
    for micro_batch, accumulation in ((4, 5), (2, 10)):
        trainer = build({**paired_config, **cut(micro_batch, accumulation), "num_epochs": 2, "max_steps": 6})
        trainer.train()
        histories.append(trainer)
    for key in ("loss", "grad_norm"):
        assert column(histories[0], key) == pytest.approx(column(histories[1], key), rel=1e-4)


# --- Against float64 autograd over the whole batch ----------------------------------------------


def logprob(model, prompt: list[int], completion: list[int]) -> torch.Tensor:
    table = torch.log_softmax(model(torch.tensor([prompt + completion])).logits[0], dim=-1)
    start = len(prompt) - 1
    return sum(table[start + i, token] for i, token in enumerate(completion))


def paired_samples(policy, reference, rows):
    def margins(model):
        return torch.stack(
            [
                logprob(model, r["prompt_ids"], r["chosen_ids"])
                - logprob(model, r["prompt_ids"], r["rejected_ids"])
                for r in rows
            ]
        )

    return margins(policy), margins(reference)


def unpaired_samples(policy, reference, rows):
    rewards = [
        logprob(policy, r["prompt_ids"], r["completion_ids"])
        - logprob(reference, r["prompt_ids"], r["completion_ids"])
        for r in rows
    ]
    sides = [[x for x, r in zip(rewards, rows, strict=True) if r["label"] is s] for s in (True, False)]
    return torch.stack(sides[0]), torch.stack(sides[1])


def logistic_by_hand(upper, lower, beta: float) -> torch.Tensor:
    """The paper's sorted loss in its plainest form: both samples repeated to a common length."""
    n, m = len(upper), len(lower)
    common = n * m // torch.gcd(torch.tensor(n), torch.tensor(m)).item()
    upper = upper.sort().values.repeat_interleave(common // n)
    lower = lower.sort().values.repeat_interleave(common // m)
    return torch.log1p(torch.exp(-beta * (upper - lower))).mean()


@pytest.mark.parametrize("accumulated", [True, False])
def test_loss_and_every_gradient_equal_float64_autograd(build, config, tiny_model, accumulated):
    rows = 48 if config["rl"] == "aot" else 84  # an epoch a step, so that no order matters
    parts = rows // 4 if accumulated else 1
    trainer = build(
        {**config, **cut(rows // parts, parts), "max_steps": 2, "num_epochs": 2, "max_grad_norm": 1e9}
    )
    snapshots = Snapshots()
    trainer.add_callback(snapshots)
    trainer.train()

    reference = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    policy = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    policy.load_state_dict(  # the second step's: the first has all rewards at zero
        {n: p.double() for n, p in snapshots.parameters[1].items()}, strict=False
    )
    samples = paired_samples if config["rl"] == "aot" else unpaired_samples
    with torch.no_grad():
        table = list(trainer.train_dataset)
    upper, lower = samples(policy, reference, table)
    assert len(upper) + len(lower) == (96 if config["rl"] == "aot" else 84)
    loss = logistic_by_hand(upper, lower, beta=0.1)
    loss.backward()

    assert steps(trainer)[1]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for name, parameter in policy.named_parameters():
        actual, expected = snapshots.gradients[1][name].double(), parameter.grad
        difference = (actual - expected).norm() / expected.norm()
        assert difference < 1e-4, f"{name}: {difference}"


class Listener(ScoreListener):
    """Collects the scores of each step."""

    def __init__(self) -> None:
        self.seen: list[Scores] = []

    def on_step_scored(self, state, scores):
        self.seen.append(scores)


def scores_of_steps(trainer) -> list[Scores]:
    """Train, and return the scores of each step's samples."""
    listener = Listener()
    trainer.add_callback(listener)
    trainer.train()
    return listener.seen


def last_sort(trainer) -> tuple[torch.Tensor, torch.Tensor]:
    """Train, and return the two samples that the last step has sorted, in float64."""
    last = scores_of_steps(trainer)[-1]
    upper, lower, _, _ = trainer.objective.distributions(*trainer.objective.chosen_and_rejected(last))
    return upper.double(), lower.double()


def test_label_smoothing_reaches_the_loss(build, config):
    trainer = build({**config, "aot_label_smoothing": 0.2, **cut(4, 4), "max_steps": 3, "rl_beta": 1.0})
    upper, lower = last_sort(trainer)

    def smoothed(z):
        return 0.8 * np.logaddexp(0, -z) + 0.2 * np.logaddexp(0, z)

    expected = brute_force(upper, lower, smoothed, "first")
    assert steps(trainer)[-1]["loss"] == pytest.approx(expected, rel=1e-5)
    assert abs(brute_force(upper, lower, lambda z: np.logaddexp(0, -z), "first") - expected) > 1e-3


def test_a_strong_soft_sort_reaches_the_loss(build, config):
    """A strength that pools all values into one block leaves the mean, and steps of 1 / strength around it
    (Blondel et al. 2020, proposition 3).
    """
    strength = 1e3
    options = {"aot_sort": "soft", "aot_soft_sort_strength": strength, "aot_penalty": "least_squares"}
    trainer = build({**config, **options, **cut(4, 4), "max_steps": 3})
    upper, lower = last_sort(trainer)

    def pooled(values):
        ranks = torch.arange(len(values), dtype=torch.float64)
        return values.mean() + (ranks - ranks.mean()) / strength

    expected = brute_force(pooled(upper), pooled(lower), lambda z: (0.1 - z) ** 2, "first")
    # z, whose square this is about, is a difference of means of log-probabilities around -50: known to 4e-6
    assert steps(trainer)[-1]["loss"] ** 0.5 == pytest.approx(expected**0.5, abs=1e-5)
    hard = brute_force(upper, lower, lambda z: (0.1 - z) ** 2, "first")
    assert abs(hard - expected) > 1e-3 * hard


@pytest.mark.parametrize("penalty", PENALTIES)
def test_options_reach_the_loss(build, config, penalty):
    costs = {
        "logistic": lambda z: np.logaddexp(0, -0.1 * z),
        "squared_hinge": lambda z: np.maximum(0, 0.1 - z) ** 2,
        "least_squares": lambda z: (0.1 - z) ** 2,
        "sigmoid": lambda z: 1 / (1 + np.exp(0.1 * z)),
    }
    trainer = build(
        {**config, "aot_penalty": penalty, "aot_dominance": "second", **cut(4, 4), "max_steps": 3}
    )
    upper, lower = last_sort(trainer)
    expected = brute_force(upper, lower, costs[penalty], "second")
    assert steps(trainer)[-1]["loss"] == pytest.approx(expected, rel=1e-5)


# --- Entropic coupling and anchor, of single micro-batches ---------------------------------------

BETA, ENTROPY, ANCHOR = 0.1, 0.5, 0.3


def coupled_by_pot(upper: np.ndarray, lower: np.ndarray) -> tuple[float, float]:
    """The entropic loss of the logistic penalty, and the mean distance of the ranks that are compared."""
    n, m = len(upper), len(lower)
    upper, lower = np.sort(upper), np.sort(lower)
    a, b = np.full(n, 1 / n), np.full(m, 1 / m)
    cost = np.logaddexp(0, -BETA * (upper[:, None] - lower))
    plan = ot.sinkhorn(a, b, cost, ENTROPY, method="sinkhorn_log", stopThr=1e-12, numItermax=10_000)
    assert abs(plan.sum(0) - b).sum() < 1e-9  # POT has come to an end
    loss = (plan * cost).sum() + ENTROPY * (plan * np.log(plan * n * m)).sum()
    apart = abs((np.arange(n)[:, None] + 0.5) / n - (np.arange(m) + 0.5) / m)
    return loss, (plan * apart).sum()


def by_hand(scores: list[Scores], rl: str) -> tuple[float, float]:
    """Loss and rank displacement of answers that are compared together, from their log-probabilities."""
    policy, reference, label = (torch.cat([s[i] for s in scores]).double().numpy() for i in range(3))
    label = label > 0
    rewards = policy - reference
    anchor = (
        np.logaddexp(0, -BETA * rewards[label]).mean() + np.logaddexp(0, BETA * rewards[~label]).mean()
    ) / 2
    if rl == "aot":
        compared = policy[label] - policy[~label], reference[label] - reference[~label]
    else:
        compared = rewards[label], rewards[~label]
    loss, displacement = coupled_by_pot(*compared)
    return (1 - ANCHOR) * loss + ANCHOR * anchor, displacement


def test_micro_batch_scope_couples_each_micro_batch_alone(build, config):
    options = {"aot_scope": "micro_batch", "aot_entropy": ENTROPY, "aot_anchor": ANCHOR, "rl_beta": BETA}
    trainer = build({**config, **options, **cut(4, 3), "learning_rate": 1e-2})
    seen = scores_of_steps(trainer)
    assert len(seen) == 12 and all(len(s.policy) == (8 if config["rl"] == "aot" else 4) for s in seen)
    logged = steps(trainer)
    for number, step in enumerate(logged):
        micro_batches = seen[3 * number : 3 * number + 3]
        alone = [by_hand([scores], config["rl"]) for scores in micro_batches]
        loss, displacement = np.mean(alone, axis=0)
        assert step["loss"] == pytest.approx(loss, rel=1e-5)
        assert step["dominance/rank_displacement"] == pytest.approx(displacement, abs=1e-5)
    together, _ = by_hand(micro_batches, config["rl"])
    assert abs(together - logged[-1]["loss"]) > 1e-3  # or this would say nothing


# --- Against TRL's own trainer ------------------------------------------------------------------


def plain_dpo(config: dict, loss_type: str) -> dict:
    """The same YAML for axolotl's `rl: dpo`, which is TRL's trainer and TRL's loss."""
    config = {k: v for k, v in config.items() if k not in ("plugins", "aot_scope")}
    return {**config, "rl": "dpo", "dpo_loss_type": [loss_type]}


METRICS_AS_TRL = ("rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected")


def test_micro_batch_scope_is_trls_aot(build, paired_config):
    config = {**paired_config, **cut(4, 2), "max_steps": 8, "num_epochs": 3, "aot_scope": "micro_batch"}
    ours, trls = build(config), build(plain_dpo(config, "aot"))
    assert type(trls).__name__ == "AxolotlDPOTrainer"
    ours.train(), trls.train()
    for key in ("loss", "grad_norm", "rewards/accuracies", *METRICS_AS_TRL):
        assert column(ours, key) == pytest.approx(column(trls, key), rel=2e-5, abs=1e-6), key


def test_micro_batch_scope_is_trls_aot_unpaired(build, paired_config, unpaired_config, tmp_path):
    # TRL takes pairs only: give both trainers a whole epoch at once, so that the order is no matter
    pairs = make_pairs(16, seed=3)
    write_jsonl(tmp_path / "p.jsonl", pairs)
    write_jsonl(tmp_path / "u.jsonl", unpair(pairs))
    same = {"max_steps": 5, "num_epochs": 5, "aot_scope": "micro_batch"}
    entry = {"type": {"field_prompt": "prompt"}}
    trls = build(
        plain_dpo(
            {
                **paired_config,
                **same,
                **cut(16, 1),
                "datasets": [{**entry, "path": str(tmp_path / "p.jsonl")}],
            },
            "aot_unpaired",
        )
    )
    ours = build(
        {**unpaired_config, **same, **cut(32, 1), "datasets": [{**entry, "path": str(tmp_path / "u.jsonl")}]}
    )
    ours.train(), trls.train()
    for key in ("loss", "grad_norm", *METRICS_AS_TRL):
        assert column(ours, key) == pytest.approx(column(trls, key), rel=2e-5, abs=1e-6), key


def test_micro_batch_scope_is_trls_aot_on_4_bit_weights(build, paired_config, qlora):
    config = {**paired_config, **qlora, **cut(4, 2), "aot_scope": "micro_batch", "max_steps": 6}
    config["learning_rate"] = 1e-2
    ours, trls = build(config), build(plain_dpo(config, "aot"))
    adapter = {n: p for n, p in ours.model.state_dict().items() if "lora_" in n}
    assert adapter
    trls.model.load_state_dict(adapter, strict=False)  # TRL draws its own before it sets the seed
    ours.train(), trls.train()
    assert abs(column(ours, "rewards/margins")[-1]) > 1e-3  # it has trained
    for key in ("loss", *METRICS_AS_TRL):
        assert column(ours, key) == pytest.approx(column(trls, key), rel=1e-3, abs=1e-3), key
    # the adapter and its gradients are bf16, whose numbers lie 2^-7 apart
    assert column(ours, "grad_norm") == pytest.approx(column(trls, "grad_norm"), rel=2**-7)


APO_ZERO = {"aot_anchor": 1, "aot_penalty": "sigmoid"}


def test_the_whole_anchor_is_half_of_trls_apo_zero(build, paired_config):
    config = {**paired_config, **cut(4, 2), "max_steps": 8, "num_epochs": 3, "max_grad_norm": 1e6}
    ours, trls = build({**config, **APO_ZERO}), build(plain_dpo(config, "apo_zero"))
    ours.train(), trls.train()
    assert abs(column(ours, "rewards/margins")[-1]) > 1e-3  # it has trained
    for key, factor in (("loss", 2), ("grad_norm", 2), *((key, 1) for key in METRICS_AS_TRL)):
        expected = [factor * value for value in column(ours, key)]
        assert column(trls, key) == pytest.approx(expected, rel=2e-4, abs=1e-5), key


def test_the_whole_anchor_is_trls_apo_zero_unpaired(build, unpaired_config, tmp_path):
    # as many answers of each label, and a whole epoch at once: TRL's mean is over answers, not labels
    write_jsonl(tmp_path / "u.jsonl", unpair(make_pairs(16, seed=3)))
    entry = {"type": {"field_prompt": "prompt"}, "path": str(tmp_path / "u.jsonl")}
    config = {**unpaired_config, **cut(32, 1), "max_steps": 5, "num_epochs": 5, "datasets": [entry]}
    config["max_grad_norm"] = 1e6
    plain = {k: v for k, v in config.items() if k not in ("plugins", "aot_scope")}
    plain |= {"rl": "kto", "plugins": ["tests.apo_zero.Plugin"], "remove_unused_columns": False}
    ours, trls = build({**config, **APO_ZERO}), build(plain)
    assert (type(trls).__name__, trls.loss_type) == ("AxolotlKTOTrainer", "apo_zero_unpaired")
    ours.train(), trls.train()
    assert abs(column(ours, "rewards/margins")[-1]) > 1e-3  # it has trained
    for key in ("loss", "grad_norm", "rewards/margins", "logps/chosen", "logps/rejected"):
        assert column(ours, key) == pytest.approx(column(trls, key), rel=2e-4, abs=1e-5), key


def test_the_router_loss_of_a_mixture_of_experts_is_trls(build, paired_config, tmp_path):
    from transformers import MixtralConfig, MixtralForCausalLM

    from tests.tiny import WORDS, make_tokenizer

    tokenizer = make_tokenizer([" ".join(WORDS)])
    torch.manual_seed(0)
    MixtralForCausalLM(
        MixtralConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_local_experts=4,
        )
    ).save_pretrained(tmp_path / "moe")
    tokenizer.save_pretrained(tmp_path / "moe")
    config = {**paired_config, "base_model": str(tmp_path / "moe"), **cut(4, 2), "aot_scope": "micro_batch"}
    ours, trls = build(config), build(plain_dpo(config, "aot"))
    assert ours.aux_loss_enabled
    ours.train(), trls.train()
    for key in ("loss", "grad_norm"):
        assert column(ours, key) == pytest.approx(column(trls, key), rel=2e-5), key
    assert column(ours, "loss")[0] > torch.log(torch.tensor(2.0)) + 1e-4  # the router's share is in it


# --- Cost, repeatability, failure ----------------------------------------------------------------


PROBES = [False] * 7  # at the start, of a few tokens: which way of scoring is right for the model


@pytest.mark.parametrize(
    ("accumulation", "scope", "passes"), [(1, "effective_batch", 1), (4, "micro_batch", 1)]
)
def test_the_policy_runs_forward_once_where_it_can(build, config, accumulation, scope, passes):
    trainer = build({**config, **cut(4, accumulation), "aot_scope": scope})
    with counting_forwards(trainer.model) as seen:
        trainer.train()
    assert seen == PROBES + [True] * (4 * accumulation * passes)


@pytest.mark.parametrize(("accumulation", "scored"), [(3, 1), (6, 2)])
def test_the_policy_runs_forward_once_from_the_second_step_on(build, config, accumulation, scored):
    """In the first step all micro-batches but the first are scored, four at a time."""
    trainer = build({**config, **cut(2, accumulation), "max_steps": 3})
    with counting_forwards(trainer.model) as seen:
        trainer.train()
    assert seen == PROBES + [False] * scored + [True] * accumulation * 3


@pytest.mark.parametrize("scope", ["effective_batch", "micro_batch"])
def test_a_coupling_is_found_once_for_loss_and_metrics(build, config, scope):
    trainer = build({**config, **cut(4, 2), "aot_scope": scope, "aot_entropy": 0.5, "max_steps": 2})
    with counting_calls(couple) as calls:
        trainer.train()
    assert len(calls) == (2 if scope == "effective_batch" else 4)
    assert all(0 <= value <= 1 / 3 for value in column(trainer, "dominance/rank_displacement"))


def test_an_evaluation_finds_its_coupling_once(build, with_evaluation):
    trainer = build({**with_evaluation, "aot_entropy": 0.5})
    with counting_calls(couple) as calls:
        metrics = trainer.evaluate()
    assert len(calls) == 1 and "eval_dominance/rank_displacement" in metrics


def test_the_same_yaml_twice_gives_the_same_losses(build, config, adapter):
    histories = []
    for _ in range(2):
        torch.manual_seed(torch.seed() % 2**32)  # whatever state the process is in
        trainer = build({**config, **adapter, **cut(2, 4), "max_steps": 6})
        trainer.train()
        histories.append((column(trainer, "loss"), column(trainer, "grad_norm")))
    assert histories[0] == histories[1]


class Poison(TrainerCallback):
    """Makes the policy's output NaN after the first step, as a diverged run would."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        next(p for n, p in model.named_parameters() if "norm" in n).data.fill_(torch.nan)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_policy_that_is_not_finite_stops_the_run(build, config, accumulation):
    trainer = build({**config, **cut(4, accumulation)})
    trainer.add_callback(Poison())
    with pytest.raises(FloatingPointError, match=r"step 2: .* under the policy .*learning_rate"):
        trainer.train()


def test_a_reference_that_is_not_finite_stops_the_run(build, config, tiny_model, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.model.norm.weight.data[0] = torch.nan
    model.save_pretrained(tmp_path / "broken")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "broken" / name).write_bytes((tiny_model / name).read_bytes())
    trainer = build({**config, "base_model": str(tmp_path / "broken")})
    with pytest.raises(FloatingPointError, match=r"step 1: .* under the reference .*base model"):
        trainer.train()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_with_one_label_has_no_loss_and_no_gradient(build, unpaired_config, tmp_path, accumulation):
    rows = unpair(make_pairs(40), only=False) + unpair(make_pairs(1), only=True)
    config = with_rows(unpaired_config, tmp_path / "rows.jsonl", rows)
    trainer = build({**config, **cut(4 // accumulation, accumulation), "max_steps": 11})
    trainer.train()
    counts = column(trainer, "dominance/one_label_steps")
    both = next(i for i, count in enumerate(counts) if count == i)  # where the one positive comes
    assert counts == [*range(1, both + 1), *range(both, 11)]
    # the loss of equal policy and reference, so that nothing has moved a parameter before
    assert column(trainer, "loss") == [0] * both + [pytest.approx(math.log(2), rel=1e-6)] + [0] * (10 - both)
    assert [i for i, norm in enumerate(column(trainer, "grad_norm")) if norm] == [both]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({**cut(1, 1)}, "micro_batch_size x gradient_accumulation_steps x processes: 1`.*2 or more"),
        ({**cut(1, 16), "aot_scope": "micro_batch"}, "`micro_batch_size: 1` with `aot_scope: micro_batch`"),
    ],
)
def test_a_sort_of_one_answer_is_refused(build, unpaired_config, options, message):
    with pytest.raises(ValueError, match=message):
        build({**unpaired_config, **options})


@pytest.mark.parametrize(
    ("options", "sorts"),
    [
        ({**cut(16, 1)}, 6),
        ({**cut(1, 16)}, 6),
        ({**cut(16, 1), "aot_scope": "micro_batch"}, 6),
        ({**cut(8, 2), "aot_scope": "micro_batch"}, 12),
    ],
)
def test_stratified_batches_have_both_labels(build, unpaired_config, tmp_path, options, sorts):
    # 6 positives among 96: one for each sort of 16, and for every other one of 8
    rows = unpair(make_pairs(90), only=False) + unpair(make_pairs(6), only=True)
    config = {**with_rows(unpaired_config, tmp_path / "rows.jsonl", rows), **options, "max_steps": 6}
    counts = {}
    for stratify in (True, False):
        trainer = build({**config, "aot_stratify": stratify})
        trainer.train()
        counts[stratify] = column(trainer, "dominance/one_label_steps")[-1]
    assert counts[True] == sorts - 6 < counts[False]


@pytest.mark.parametrize("stratify", [True, False])
def test_every_epoch_holds_every_sample_once_in_an_order_of_its_own(build, unpaired_config, stratify):
    config = {**unpaired_config, "max_steps": 12, "num_epochs": 2, "learning_rate": 0.0}
    trainer = build({**config, **cut(15, 1), "aot_stratify": stratify})  # 84 answers: 6 steps, the last of 9
    seen = scores_of_steps(trainer)
    first, second = (torch.cat([scores.reference for scores in epoch]) for epoch in (seen[:6], seen[6:]))
    assert len(first) == len(second) == 84
    assert first.sort().values.tolist() == pytest.approx(second.sort().values.tolist(), abs=1e-4)
    assert not torch.allclose(first, second, atol=1e-2)


def test_steps_with_both_labels_are_not_counted(build, unpaired_config):
    trainer = build({**unpaired_config, **cut(16, 1)})
    trainer.train()
    assert column(trainer, "dominance/one_label_steps") == [0, 0, 0, 0]


# --- Weights -------------------------------------------------------------------------------------


def weighted(config, tmp_path, name: str, weights: list[int]) -> tuple[dict, dict]:
    """A run over rows with these weights in one batch; and over each row as often as it weighs."""
    rows = [{**pair, "weight": w} for pair, w in zip(make_pairs(len(weights)), weights, strict=True)]
    kind = "chat_template" if config["rl"] == "aot" else "pairs"
    runs = []
    for part, given in (("weights", rows), ("copies", [row for row in rows for _ in range(row["weight"])])):
        path = write_jsonl(tmp_path / f"{name}-{part}.jsonl", given)
        entry = {"path": str(path), "type": kind}
        size = len(given) * (1 if config["rl"] == "aot" else 2)
        if part == "weights":
            entry["field_weight"] = "weight"
        runs.append(
            {**config, "datasets": [entry], **cut(size // 2, 2), "max_steps": 3, "num_epochs": 3}
            | {"dataset_prepared_path": str(tmp_path / f"{name}-{part}"), "max_grad_norm": 1e9}
        )
    return tuple(runs)


def test_a_weight_is_worth_as_many_rows(build, config, tmp_path):
    options = {"remove_unused_columns": True} if config["rl"] == "aot" else {}  # the weights are used
    found = []
    for run in weighted({**config, **options}, tmp_path, "same", [1, 3, 2, 1, 2, 1]):
        trainer = build(run)
        assert ("weight" in trainer.train_dataset.column_names) is ("field_weight" in run["datasets"][0])
        trainer.train()
        found.append(steps(trainer))
    weights, copies = found
    for own, expected in zip(weights, copies, strict=True):
        for name in ("loss", "grad_norm", "dominance/violation", "dominance/violation_rate"):
            assert own[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name
    unweighted, _ = weighted({**config, **options}, tmp_path, "other", [1] * 6)
    trainer = build(unweighted)
    trainer.train()
    assert abs(steps(trainer)[-1]["loss"] - weights[-1]["loss"]) > 1e-3 * weights[-1]["loss"]


def test_weights_reach_the_evaluation(build, config, tmp_path):
    results = []
    for run in weighted(config, tmp_path, "eval", [1, 3, 2, 1, 2, 1]):
        options = {"test_datasets": run["datasets"], "val_set_size": None, "eval_batch_size": 5}
        trainer = build({**config, **options, "datasets": run["datasets"], "eval_strategy": "no"})
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter.mul_(1.01)
        results.append(trainer.evaluate())
    weights, copies = results
    assert copies["eval_dominance/violation"] > 1e-3
    for name in ("eval_loss", "eval_dominance/violation", "eval_dominance/violation_rate"):
        # rewards are differences of log-probabilities of some 60 nats
        assert weights[name] == pytest.approx(copies[name], rel=1e-5, abs=1e-5), name


# --- Evaluation and the reference ----------------------------------------------------------------


@pytest.fixture
def with_evaluation(config, tmp_path):
    pairs = make_pairs(23, seed=9)  # divides by no batch size
    rows = pairs if config["rl"] == "aot" else unpair(pairs)[:-3]
    return {**with_test_rows(config, tmp_path / "eval.jsonl", rows), "eval_steps": 4}


def test_evaluation_is_over_the_whole_set_at_once(build, with_evaluation, tiny_model):
    results = []
    for batch_size in (1, 3, 8):
        trainer = build({**with_evaluation, "eval_batch_size": batch_size})
        trainer.train()
        logs = [e for e in trainer.state.log_history if "eval_loss" in e]
        assert len(logs) == 2  # at the start and at the end
        assert logs[0]["eval_loss"] == pytest.approx(0.693147, rel=1e-4)
        results.append({k: v for k, v in logs[1].items() if k.split("/")[0] in EVAL_GROUPS})
    assert {"eval_loss", "eval_dominance/violation", "eval_rewards/margins"} <= set(results[0])
    for result in results[1:]:  # a margin at a percentile is of single log-probabilities of about 50 nats
        assert result == pytest.approx(results[0], rel=1e-5, abs=1e-5)

    policy = trainer.model.double()
    reference = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    samples = paired_samples if with_evaluation["rl"] == "aot" else unpaired_samples
    with torch.no_grad():
        upper, lower = samples(policy, reference, list(trainer.eval_dataset))
    assert results[0]["eval_loss"] == pytest.approx(logistic_by_hand(upper, lower, 0.1).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ("paired", "full"),
        ("unpaired", "lora"),
        ("paired", "qlora"),
        pytest.param("unpaired", "full", marks=pytest.mark.slow),
        pytest.param("paired", "lora", marks=pytest.mark.slow),
        pytest.param("unpaired", "qlora", marks=pytest.mark.slow),
    ],
    indirect=["config"],
)
def test_evaluating_in_between_changes_nothing(build, with_evaluation, lora, qlora, kind):
    adapter = {"full": {}, "lora": lora, "qlora": qlora}[kind]
    losses = []
    for eval_steps in (1, 4):
        trainer = build({**with_evaluation, **adapter, **cut(4, 2), "eval_steps": eval_steps})
        trainer.train()
        losses.append((column(trainer, "loss"), column(trainer, "grad_norm")))
    assert losses[0] == losses[1]


def test_evaluating_leaves_the_random_state_alone(build, with_evaluation):
    trainer = build(with_evaluation)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    trainer.evaluate()
    assert torch.equal(torch.get_rng_state(), before)


EVAL_GROUPS = {"eval_loss", "eval_dominance", "eval_rewards", "eval_logps"}


def test_full_fine_tuning_uses_the_reference_that_axolotl_loaded(build, unpaired_config):
    trainer = build(unpaired_config)
    assert trainer.ref_model is not None
    assert {p.dtype for p in trainer.ref_model.parameters()} == {p.dtype for p in trainer.model.parameters()}
    trainer.train()
    first = steps(trainer)[0]
    assert (first["rewards/chosen"], first["rewards/rejected"]) == (0, 0)


def test_kto_advice_on_label_weights_is_not_given(build, unpaired_config, caplog):
    with caplog.at_level("WARNING", logger="trl"):
        build(unpaired_config)
        assert "desirable_weight" not in caplog.text
        # the same data under axolotl's kto: the advice exists, so that its absence above says something
        plain = {k: v for k, v in unpaired_config.items() if k != "plugins"}
        build({**plain, "rl": "kto", "remove_unused_columns": False})
        assert "desirable_weight" in caplog.text
