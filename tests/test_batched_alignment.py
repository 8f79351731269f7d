"""`benchmarks.alignment.batched` against transformers, PEFT, torch's AdamW, TRL and our own losses."""

import math

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup
from trl import DPOConfig, DPOTrainer

from axolotl_aot.dominance import anchor_loss, dominance_loss
from axolotl_aot.quickstart.base_model import make_tokenizer
from benchmarks.alignment.batched import kinds, losses, search, training
from benchmarks.alignment.batched.losses import Ours, Step
from benchmarks.alignment.batched.model import (
    ALPHA,
    LINEAR,
    RANK,
    load_base,
    new_adapter,
    sample,
    token_logprobs,
)
from benchmarks.alignment.batched.training import Run
from benchmarks.alignment.preferences import Data, draw_rows

RUNS, SIZE = 3, 8
BETA = torch.tensor([[0.3], [1.0], [3.0]])


@pytest.fixture(scope="module")
def folder(quickstart_model):
    return quickstart_model


def _random(adapter, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: (a, torch.randn(b.shape, generator=generator) / 30) for name, (a, b) in adapter.items()}


def _peft(folder, adapter, run):
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder),
        LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(LINEAR), task_type="CAUSAL_LM"),
    )
    for name, (a, b) in adapter.items():
        module = model.get_submodule(f"base_model.model.{name.removesuffix('.weight')}")
        module.lora_A["default"].weight.data = a[run].detach().clone()
        module.lora_B["default"].weight.data = b[run].detach().clone()
    return model.eval()


def test_every_adapter_has_the_log_probabilities_that_peft_gives(folder):
    base = load_base(folder, "cpu")
    adapter = _random(new_adapter(base, [1, 2]))
    ids = torch.randint(3, 18, (2, 5, 14), generator=torch.Generator().manual_seed(3))
    found = token_logprobs(base, adapter, ids, 8)
    for run in range(2):
        logits = _peft(folder, adapter, run)(ids[run]).logits[:, 7:-1].log_softmax(-1)
        torch.testing.assert_close(
            found[run], logits.gather(-1, ids[run, :, 8:, None])[..., 0], atol=2e-5, rtol=1e-5
        )
    assert not torch.allclose(found[0], token_logprobs(base, None, ids, 8)[0], atol=0.1)


@pytest.mark.slow
def test_answers_are_drawn_from_the_adapters_distribution(folder):
    base = load_base(folder, "cpu")
    adapter = _random(new_adapter(base, [1]))
    prompt = torch.tensor([[1, 4, 6, 7, 8]])
    drawn = sample(base, adapter, prompt.expand(20_000, -1), 2, seed=0)[0]
    model = _peft(folder, adapter, 0)
    with torch.no_grad():
        first = model(prompt).logits[0, -1].softmax(-1)
        each = torch.cat([prompt.expand(18, -1), torch.arange(18)[:, None]], 1)
        both = first[:, None] * model(each).logits[:, -1].softmax(-1)
    counts = torch.zeros(18, 18).index_put_(
        (drawn[:, 0], drawn[:, 1]), torch.ones(len(drawn)), accumulate=True
    )
    error = (both * (1 - both) / len(drawn)).sqrt()
    # of 324 frequencies the largest deviation of 4.5 standard errors has a chance of 0.2%
    assert ((counts / len(drawn) - both).abs() < 4.5 * error + 1e-4).all()


def _step(seed=0, chosen=SIZE, rejected=SIZE):
    generator = torch.Generator().manual_seed(seed)
    n = chosen + rejected
    policy, reference = (torch.randn(RUNS, n, generator=generator) * 3 - 9 for _ in range(2))
    label = (torch.arange(n) < chosen).expand(RUNS, -1)
    length = torch.randint(2, 9, (RUNS, n), generator=generator).float()
    return Step(policy, reference, label, length, chosen, torch.tensor([-0.5, 0.2, 1.0]))


@pytest.mark.parametrize("sizes", [(8, 8), (3, 13)])
@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize(
    ("options", "entropy"), [({}, 0.0), ({"entropy": 1.5}, 1.5), ({"entropy": math.inf}, math.inf)]
)
def test_comparisons_are_those_of_the_package(sizes, paired, options, entropy):
    if paired and sizes[0] != sizes[1]:
        pytest.skip("pairs have as many of both")
    step = _step(1, *sizes)
    found = Ours(paired, **options)(step, BETA)
    for run in range(RUNS):
        policy, reference = step.policy[run], step.reference[run]
        if paired:
            upper, lower = (x[: sizes[0]] - x[sizes[0] :] for x in (policy, reference))
        else:
            upper, lower = (policy - reference)[: sizes[0]], (policy - reference)[sizes[0] :]
        expected = dominance_loss(upper.double(), lower.double(), beta=BETA[run].item(), entropy=entropy)
        # sixty iterations of Sinkhorn's leave 1e-4 of the larger costs
        assert found[run].item() == pytest.approx(expected.item(), rel=1e-3 if entropy == 1.5 else 1e-5)


def test_masses_by_probability_are_weights_of_the_package():
    step = _step(2, 5, 9)
    found = Ours(False, tau=0.35)(step, BETA)
    for run in range(RUNS):
        rewards = step.rewards[run]
        mass = (0.35 * step.policy[run, 5:]).exp()
        expected = dominance_loss(rewards[:5], rewards[5:], beta=BETA[run].item(), lower_weights=mass)
        assert found[run].item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_anchor_is_that_of_the_package_and_half_of_apo_zero():
    step = _step(3)
    found = Ours(False, anchor=1.0, penalty="sigmoid")(step, BETA)
    for run in range(RUNS):
        rewards = step.rewards[run]
        expected = anchor_loss(rewards[:SIZE], rewards[SIZE:], beta=BETA[run].item(), penalty="sigmoid")
        assert found[run].item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(2 * found, losses.apo_zero(step, BETA))


def test_doubted_labels_are_those_of_the_package():
    step = _step(7, 6, 10)
    found = Ours(False, anchor=1.0, penalty="sigmoid", doubt=1.0)(step, BETA)
    for run in range(RUNS):
        rewards = step.rewards[run].double()
        options = {"beta": BETA[run].item(), "penalty": "sigmoid"}
        expected = anchor_loss(rewards[:6], rewards[6:], doubt_labels=True, **options)
        assert found[run].item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_losses_that_it_may_be_between_are_its_limits():
    z = torch.linspace(-4, 4, 9, dtype=torch.float64)
    torch.testing.assert_close(losses.generalized(1.0)(z), losses.sigmoid(z))
    torch.testing.assert_close(losses.generalized(1e-7)(z), losses.logistic(z), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "loss"), [("sigmoid", losses.dpo), ("ipo", losses.ipo), ("apo_zero", losses.apo_zero)]
)
def test_losses_of_pairs_are_trls(folder, tmp_path, name, loss):
    """TRL's trainer gives its loss for one batch; the adapter and the batch are the same."""
    from datasets import Dataset

    rows = {
        "prompt": ["sort a b c d e :"] * 4,
        "chosen": [" a b c d e", " a b", " e d a", " c a b d"],
        "rejected": [" e d c b a", " b a c d", " a", " d c"],
    }
    base = load_base(folder, "cpu")
    adapter = _random(new_adapter(base, [1]))
    args = DPOConfig(
        tmp_path,
        beta=0.3,
        loss_type=[name],
        use_cpu=True,
        bf16=False,
        report_to=[],
        per_device_train_batch_size=4,
    )
    trainer = DPOTrainer(
        model=_peft(folder, adapter, 0).merge_and_unload(),
        ref_model=AutoModelForCausalLM.from_pretrained(folder),
        args=args,
        train_dataset=Dataset.from_dict(rows),
        processing_class=make_tokenizer(),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    expected = trainer.compute_loss(trainer.model.eval(), batch)

    bench = training.Bench.__new__(training.Bench)
    bench.task, bench.base, bench.device = training.TASKS["sorting"], base, "cpu"
    tokenizer = bench.tokenizer = make_tokenizer()
    bench.pad = tokenizer.pad_token_id
    ids = torch.cat(
        [
            bench.sequences(list(zip(rows["prompt"], rows[side], strict=True)))
            for side in ("chosen", "rejected")
        ]
    )[None]
    policy, length = bench.logprobs(adapter, ids)
    reference, _ = bench.logprobs(None, ids)
    step = Step(policy, reference, torch.arange(8)[None] < 4, length, 4)
    assert loss(step, torch.tensor([[0.3]])).item() == pytest.approx(expected.item(), rel=1e-4)


def test_masses_by_length_leave_no_length_to_a_label():
    step = _step(6, 200, 300)
    chosen, rejected = step.length[:, :200], step.length[:, 200:]
    masses = losses._alike_in_length(chosen, rejected)
    for run in range(RUNS):
        shares = []
        for length, mass in zip((chosen[run], rejected[run]), (masses[0][run], masses[1][run]), strict=True):
            total = torch.zeros(losses.LONGEST).index_add_(0, length.long(), mass)
            shares.append(total / total.sum())
        # the one answer more of each length leaves so much of some 25 and some 40 of a length
        torch.testing.assert_close(*shares, atol=0.01, rtol=0)


def test_kto_by_a_loop():
    step = _step(4)
    step = step._replace(label=torch.rand(RUNS, 2 * SIZE, generator=torch.Generator().manual_seed(1)) < 0.4)
    found = losses.kto(step, BETA, desirable_weight=4.0)
    for run in range(RUNS):
        baseline = max(0.0, step.mismatched[run].item())
        total = 0.0
        for reward, label in zip(step.rewards[run].tolist(), step.label[run].tolist(), strict=True):
            z = BETA[run].item() * (reward - baseline)
            total += 4 / (1 + math.exp(z)) if label else 1 / (1 + math.exp(-z))
        assert found[run].item() == pytest.approx(total / (2 * SIZE), rel=1e-5)


def test_steps_are_those_of_adamw_and_of_the_schedule():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2, 4, 3, generator=generator)
    target = 5 * torch.randn(2, 4, 3, generator=generator)
    rates, steps = [1e-2, 3e-1], 20
    ours = start.clone().requires_grad_()
    first, second = torch.zeros_like(start), torch.zeros_like(start)
    for number in range(steps):
        (gradient,) = torch.autograd.grad((ours - target).square().sum(), ours)
        rate = torch.tensor(rates) * training.schedule(number, steps)
        training._adamw([ours], [gradient], [first], [second], number, rate)
    for run, rate in enumerate(rates):
        theirs = torch.nn.Parameter(start[run].clone())
        optimizer = torch.optim.AdamW([theirs], lr=rate, weight_decay=0.0)
        schedule = get_cosine_schedule_with_warmup(optimizer, 2, steps)
        for _ in range(steps):
            (theirs - target[run]).square().sum().backward()
            torch.nn.utils.clip_grad_norm_([theirs], 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        torch.testing.assert_close(ours[run].detach(), theirs.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_run_does_not_depend_on_those_beside_it(folder):
    bench = training.Bench(training.TASKS["covering"], folder, "cpu")
    data = Data(2 * training.SIZE, task="covering")
    for seed in (0, 1):
        bench.keep(data, seed, draw_rows(data, True, seed))
    names = ["kto", "aot", "aot_unpaired, entropic"]
    runs = [Run(name, 1.0, 1e-2, seed, data) for name in names for seed in (0, 1)]
    together = training.train(bench, kinds.KINDS, runs)
    for number in (0, 3, 4):
        alone = training.train(bench, kinds.KINDS, runs[number : number + 1])
        for name, (_, b) in together.items():
            torch.testing.assert_close(b[number], alone[name][1][0], rtol=1e-3, atol=1e-6)
        assert max(b[number].abs().max() for _, b in together.values()) > 1e-3


def test_all_losses_give_gradients():
    for name, kind in kinds.KINDS.items():
        step = _step(5)
        policy = step.policy.clone().requires_grad_()
        kind.loss(step._replace(policy=policy), BETA).sum().backward()
        assert policy.grad.isfinite().all() and (policy.grad != 0).any(), name


def test_scores_are_those_of_the_benchmark():
    task = training.TASKS["covering"]
    problems = task.split_problems()["test"]
    tokenizer = task.make_tokenizer()
    rng = np.random.default_rng(0)
    width = task.max_words + 1
    drawn, ids = [], []
    for problem in problems:
        answer = task.draw_answer(problem, rng)
        drawn.append(answer)
        words = [*answer, "</s>"] + ["<pad>"] * (width - len(answer) - 1)
        ids.append(tokenizer.convert_tokens_to_ids(words))
    ids[0] = tokenizer.convert_tokens_to_ids(["a"] * width)  # does not end
    found = training.scores(task, "test", np.array(ids, dtype=np.int16))
    rewards = [task.reward(p, a) for p, a in zip(problems, drawn, strict=True)]
    rewards[0] = 0.0
    assert found["reward"] == pytest.approx(np.mean(rewards))
    assert found["malformed"] == pytest.approx(1 / len(problems))
    assert found["idle"] == pytest.approx(
        np.mean([task.idle_words(p, a) for p, a in zip(problems[1:], drawn[1:], strict=True)])
    )


def test_the_search_refines_what_was_best_and_scores_it_with_other_seeds():
    results = [
        {"run": run, "validation": {"reward": float((run.beta, run.learning_rate) == (0.3, 1.2e-3))}}
        for run in search.grid([])
    ]
    assert {run.learning_rate for run in search.refined(results)} == {8.49e-4, 1.7e-3}
    assert {run.beta for run in search.rates(results)} == {0.3}
    assert not {run.seed for run in search.rates(results)} & set(search.SEEDS)
