"""The report of a training run: from which answers it is, and that no failure of it harms the run."""

import json
import signal
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import wandb
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer
from wandb.proto.wandb_internal_pb2 import Record

from axolotl_aot.quantiles import MARGIN_METRICS, PERCENTILES
from axolotl_aot.training.interrupt import interruptible
from axolotl_aot.training.report_callback import ReportCallback
from tests.by_hand import assert_numbers_of, greedy, logprobs
from tests.helpers import column
from tests.tiny import make_pairs, unpair, with_rows, with_test_rows

FILES = {"report.html", "report.json", "quantiles.png", "log_ratios.png", "training.png"}


@pytest.fixture
def base_config(base_config) -> dict:
    return {**base_config, "aot_report": True}


def read(config: dict) -> dict:
    return json.loads((Path(config["output_dir"]) / "dominance" / "report.json").read_text())


def sides(config: dict, pairs: list[dict]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Log-probabilities of chosen and rejected answers, under the trained model and under the base model."""
    tokenizer = AutoTokenizer.from_pretrained(config["base_model"])
    base = AutoModelForCausalLM.from_pretrained(config["base_model"])
    reference = {key: logprobs(base, tokenizer, pairs, key) for key in ("chosen", "rejected")}
    policy = PeftModel.from_pretrained(base, config["output_dir"])
    return {key: (logprobs(policy, tokenizer, pairs, key), reference[key]) for key in reference}


def assert_answers_of(numbers: dict, config: dict, rows: list[dict], count: int = 8) -> None:
    """The report's answers are the saved model's and the base model's, to `count` of these rows' prompts."""
    (answers,) = numbers["answers"].values()
    assert answers["why_not"] is None
    tokenizer = AutoTokenizer.from_pretrained(config["base_model"])
    base, policy = (AutoModelForCausalLM.from_pretrained(config["base_model"]) for _ in range(2))
    models = {"before": base, "after": PeftModel.from_pretrained(policy, config["output_dir"])}
    tokens = {f"<s>{row['prompt']}": tokenizer(row["prompt"]).input_ids for row in rows}
    asked = [sample["prompt"] for sample in answers["samples"]]
    assert len(set(asked)) == len(asked) == count and set(asked) <= set(tokens)
    end, most = tokenizer.eos_token_id, answers["max_new_tokens"]
    for when, model in models.items():
        found = [greedy(model, tokens[prompt], most, [end]) for prompt in asked]
        assert [sample[when] for sample in answers["samples"]] == [tokenizer.decode(a) for a in found]
        assert [sample[f"tokens_{when}"] for sample in answers["samples"]] == [len(a) for a in found]
        assert answers[when]["length"] == pytest.approx(np.mean([len(a) for a in found]))
        assert answers[when]["ended"] == pytest.approx(np.mean([a[-1] == end for a in found]))
    completions = [row[key] for row in rows for key in ("chosen", "rejected", "completion") if key in row]
    assert most == 2 * max(len(tokenizer.encode(c, add_special_tokens=False)) + 1 for c in completions)


@pytest.fixture
def small(paired_config, lora, tmp_path) -> tuple[dict, list[dict]]:
    """A run with 13 evaluation pairs, evaluated at steps 3, and 4 as it ends."""
    pairs = make_pairs(13, seed=5)
    config = with_test_rows(paired_config, tmp_path / "eval.jsonl", pairs)
    return {**config, **lora, "eval_steps": 3, "learning_rate": 5e-3}, pairs


def test_a_run_of_pairs(run, small, capsys):
    config, pairs = small
    trainer = run(config)
    folder = Path(config["output_dir"]) / "dominance"
    assert {path.name for path in folder.iterdir()} == FILES
    numbers = read(config)
    assert numbers["source"] == {
        "kind": "evaluation set",
        "step": 4,
        "description": "the evaluation set (13 pairs), after optimizer step 4",
    }
    scored = sides(config, pairs)
    assert_numbers_of(numbers, scored, "aot")
    report = numbers["runs"]["aot"]
    rewards = {side: policy - reference for side, (policy, reference) in scored.items()}
    better = rewards["chosen"] > rewards["rejected"]
    assert report["accuracy"]["value"] == pytest.approx(better.mean())
    # the evaluation's own metrics are of the same answers
    last = [entry for entry in trainer.state.log_history if "eval_loss" in entry][-1]
    state = report["comparisons"]["log_ratios"]["after"]
    assert state["first_order"]["violation"] == pytest.approx(last["eval_dominance/violation"], abs=1e-4)
    for side, metric in (("chosen", "chosen_below_base"), ("rejected", "rejected_above_base")):
        wrong = report["changes"][side]["wrong_side"]
        assert wrong["nats"]["value"] == pytest.approx(last[f"eval_dominance/{metric}"], abs=1e-4)
        assert wrong["share"]["value"] == pytest.approx(last[f"eval_dominance/{metric}_rate"], abs=1e-6)
    assert len(numbers["course"]) == 2
    for percentile, metric in MARGIN_METRICS.items():
        assert state["margins"][f"p{percentile}"]["value"] == pytest.approx(last[f"eval_{metric}"], abs=1e-4)
    # and the worst answers are found, with their texts
    for side, order in (("chosen", 1), ("rejected", -1)):
        answers = numbers["examples"]["aot"][side]
        expected = np.argsort(order * rewards[side])[:5]
        assert len(answers) == 5
        for answer, i in zip(answers, expected, strict=True):
            assert answer["reward"] == pytest.approx(rewards[side][i], abs=2e-4)
            assert answer["prompt"] == f"<s>{pairs[i]['prompt']}"
            assert answer["completion"] == f"{pairs[i][side]}</s>"
    assert [entry["loss"] for entry in numbers["history"] if "loss" in entry] == column(trainer, "loss")
    assert_answers_of(numbers, config, pairs)
    before = [sample["before"] for sample in numbers["answers"]["aot"]["samples"]]
    assert before != [sample["after"] for sample in numbers["answers"]["aot"]["samples"]]
    assert numbers["settings"]["rl"] == "aot" and numbers["settings"]["aot_penalty"] == "logistic"


def test_a_run_of_labels_with_weights(run, unpaired_config, lora, tmp_path):
    rows = unpair(make_pairs(12, seed=5))[:-3]
    weighted = [{**row, "mass": 1 + i % 3} for i, row in enumerate(rows)]
    config = with_test_rows({**unpaired_config, **lora}, tmp_path / "eval.jsonl", weighted)
    training = [{**row, "mass": 1.0} for row in unpair(make_pairs(20))]
    config = with_rows(config, tmp_path / "train.jsonl", training)
    for key in ("datasets", "test_datasets"):
        config[key] = [{**config[key][0], "field_weight": "mass"}]
    config = {**config, "eval_steps": 4, "learning_rate": 5e-3, "gradient_checkpointing": True}
    run({**config, "aot_report_samples": 5})
    assert_answers_of(read(config), config, rows, count=5)
    report = read(config)["runs"]["aot_unpaired"]
    assert report["answers"] == {"chosen": 11, "rejected": 10}
    assert "accuracy" not in report and "log_ratios" not in report["comparisons"]
    scored = {}
    for label, side in ((True, "chosen"), (False, "rejected")):
        own = [{**r, side: r["completion"]} for r in weighted if r["label"] is label]
        tokenizer = AutoTokenizer.from_pretrained(config["base_model"])
        base = AutoModelForCausalLM.from_pretrained(config["base_model"])
        reference = logprobs(base, tokenizer, own, side)
        policy = logprobs(PeftModel.from_pretrained(base, config["output_dir"]), tokenizer, own, side)
        masses = np.array([r["mass"] for r in own])
        scored[side] = policy - reference, masses
        change = report["changes"][side]["change"]["value"]
        assert change == pytest.approx(np.average(policy - reference, weights=masses), abs=1e-4)
    repeated = {side: np.sort(np.repeat(rewards, masses)) for side, (rewards, masses) in scored.items()}
    for percentile in PERCENTILES:
        ends = [v[int(np.ceil(len(v) * percentile / 100)) - 1] for v in repeated.values()]
        margin = report["comparisons"]["rewards"]["after"]["margins"][f"p{percentile}"]["value"]
        assert margin == pytest.approx(ends[0] - ends[1], abs=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["effective_batch", "micro_batch"])
def test_without_an_evaluation_set_it_is_of_the_last_steps(run, paired_config, lora, tmp_path, scope):
    # every step sees all 8 pairs; the last one is scored before the last update
    config = with_rows({**paired_config, **lora}, tmp_path / "rows.jsonl", make_pairs(8))
    config = {**config, "gradient_accumulation_steps": 2, "max_steps": 70, "num_epochs": 70}
    trainer = run({**config, "aot_scope": scope, "logging_steps": 1})
    numbers = read(config)
    assert numbers["source"]["kind"] == "last effective batches"
    assert numbers["source"]["description"] == (
        "the effective batches of the optimizer steps 7 to 70, each scored in its step, as there is no "
        "evaluation set: 512 pairs that the model was trained on"
    )
    report = numbers["runs"]["aot"]
    assert report["answers"] == {"chosen": 512, "rejected": 512}
    assert numbers["examples"] == numbers["answers"] == {}
    for side in ("chosen", "rejected"):
        logged = np.mean(column(trainer, f"logps/{side}")[-64:])
        assert report["changes"][side]["log_probability_after"] == pytest.approx(logged, rel=1e-5)


def test_the_best_model_is_what_is_reported_where_it_is_loaded(run, evaluated, lora):
    config = {**evaluated, **lora, "load_best_model_at_end": True, "learning_rate": 0.05}
    trainer = run(config)
    best = trainer.state.best_global_step
    assert best < trainer.state.global_step
    numbers = read(config)
    assert numbers["source"]["step"] == best
    assert_answers_of(numbers, config, make_pairs(12, seed=5))
    assert_numbers_of(numbers, sides(config, make_pairs(12, seed=5)), "aot")


def test_the_best_model_that_was_not_saved_is_not_reported(run, evaluated, lora):
    """Trainer loads the best step that has a checkpoint; the best of all may have none."""
    config = {**evaluated, **lora, "load_best_model_at_end": True, "learning_rate": 0.05, "save_steps": 4}
    trainer = run({**config, "metric_for_best_model": "eval_logps/chosen", "greater_is_better": True})
    numbers = read(config)
    best = trainer.state.best_model_checkpoint
    saved = trainer.state.global_step if best is None else int(best.rpartition("-")[2])
    assert saved != trainer.state.best_global_step  # or this would say nothing
    assert numbers["source"]["step"] == saved
    assert_numbers_of(numbers, sides(config, make_pairs(12, seed=5)), "aot")


def test_a_failure_before_the_model_is_saved_loses_nothing(run, small, caplog, monkeypatch):
    def fail(self, scores):
        raise MemoryError("no room for a copy")

    monkeypatch.setattr(ReportCallback, "_run", fail)
    config, _ = small
    run(config)
    assert (Path(config["output_dir"]) / "adapter_model.safetensors").exists()
    assert any("no dominance report: MemoryError: no room" in r.getMessage() for r in caplog.records)


@pytest.mark.parametrize(
    ("failure", "why"),
    [
        pytest.param(lambda: torch.zeros(2**60), "RuntimeError: ", marks=pytest.mark.slow),
        (lambda: signal.raise_signal(signal.SIGINT), "KeyboardInterrupt"),
    ],
    ids=["exception", "Ctrl-C"],
)
def test_answers_that_fail_lose_nothing(run, small, caplog, monkeypatch, failure, why):
    """Neither the trained model nor the rest of the report; axolotl's handler of Ctrl-C would end the run."""
    monkeypatch.setattr("axolotl_aot.training.answer_samples.greedy_answers", lambda *_: failure())
    config, _ = small
    trainer = run(config)
    assert (Path(config["output_dir"]) / "adapter_model.safetensors").exists()
    answers = read(config)["answers"]["aot"]
    assert answers["why_not"].startswith(why) and answers["samples"] == []
    said = [r.getMessage() for r in caplog.records]
    assert any("evaluation prompts are answered, before and after" in line for line in said)
    assert any(f"no answers in the report: {why}" in line for line in said)
    assert not any("answers/length" in entry for entry in trainer.state.log_history)


def test_aot_report_false(run, small):
    config, _ = small
    run({**config, "aot_report": False})
    assert not (Path(config["output_dir"]) / "dominance").exists()


@pytest.mark.slow
def test_a_model_that_moves_away_from_chosen_answers_is_told(run, paired_config, lora, tmp_path, caplog):
    """The last lines of the log are what a user reads; the report says the same, and what its course was."""
    rows = make_pairs(12)
    pairs = [{**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]} for pair in rows]
    config = with_rows({**paired_config, **lora}, tmp_path / "train.jsonl", rows)
    config = with_test_rows(config, tmp_path / "eval.jsonl", pairs)  # the same, the wrong way round
    config |= {"learning_rate": 1e-2, "max_steps": 30, "num_epochs": 10, "eval_steps": 30}
    config |= {"aot_entropy": float("inf")}
    run(config)
    numbers = read(config)
    changes = numbers["runs"]["aot"]["changes"]
    policy, reference = sides(config, pairs)["chosen"]
    assert (policy - reference).mean() < -1  # it has moved away, or this would say nothing
    share = f"{np.mean(policy < reference):.0%}".replace("100%", "all")
    words = f"{share} of the chosen answers are less likely than under the base model, by "
    assert changes["base_model"].startswith(words) and "`aot_anchor`, here 0, " in changes["base_model"]
    (record,) = [r for r in caplog.records if "Dominance report: " in r.getMessage()]
    assert record.levelname == "WARNING" and changes["base_model"] in record.getMessage()
    assert [line.partition(":")[0] for line in numbers["course"]] == [
        "chosen answers less likely than under the base model",
        "rejected answers more likely than under the base model",
        # of all with all: a third less a third of 4 ^ -2
        "answers were compared with others 31% of the ranks away in step 1, 31% of the ranks away in step 30 "
        "(0%",
    ]
    assert numbers["settings"]["aot_entropy"] == ".inf"


def test_a_failing_report_loses_nothing(run, small, caplog):
    config, _ = small
    out = Path(config["output_dir"])
    out.mkdir(parents=True)
    (out / "dominance").write_text("a file where the folder should be")
    run(config)
    adapter = load_file(out / "adapter_model.safetensors")
    assert any(matrix.abs().sum() > 0 for name, matrix in adapter.items() if "lora_B" in name)
    (message,) = [r.getMessage() for r in caplog.records if "no dominance report" in r.getMessage()]
    assert "FileExistsError" in message and "the model is saved" in message
    assert "axolotl aot-report" in message and "config.yml" in message


def test_answers_of_one_label_are_told(run, unpaired_config, lora, tmp_path, caplog):
    config = with_rows({**unpaired_config, **lora}, tmp_path / "rows.jsonl", unpair(make_pairs(40))[:50])
    config = {**config, "max_steps": 1, "aot_stratify": False, "micro_batch_size": 2}
    for seed in range(20):  # until both answers of the one step have the same label
        run({**config, "seed": seed, "output_dir": str(tmp_path / f"out{seed}")})
        if any("a report needs two or more" in r.getMessage() for r in caplog.records):
            break
    else:
        raise AssertionError("no step with one label")
    assert (tmp_path / f"out{seed}" / "adapter_model.safetensors").exists()


def test_curves_and_scalars_in_tensorboard(run, small):
    config, _ = small
    run({**config, "use_tensorboard": True})
    (events,) = {path.parent for path in Path(config["output_dir"]).rglob("events.out.tfevents.*")}
    log = EventAccumulator(str(events), size_guidance={"images": 0}).Reload()
    pictures = log.Images("eval/dominance/quantiles")
    assert [picture.step for picture in pictures] == [0, 3, 4]
    assert all(picture.width > 500 and len(picture.encoded_image_string) > 5_000 for picture in pictures)
    names = set(log.Tags()["scalars"])
    for metric in (*MARGIN_METRICS.values(), "dominance/violation", "dominance/violation_rate"):
        assert {f"train/{metric}", f"eval/{metric}"} <= names
    answers = read(config)["answers"]["aot"]
    for key, measured in answers["after"].items():
        for name, value in ((key, measured), (f"{key}_before", answers["before"][key])):
            (scalar,) = log.Scalars(f"train/answers/{name}")
            assert (scalar.step, scalar.value) == (4, pytest.approx(value))
    assert len(list(events.glob("events.out.tfevents.*"))) == 1  # logged before it was closed


@pytest.mark.slow
def test_curves_in_wandb(run, small, tmp_path, monkeypatch):
    config, _ = small
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    run({**config, "use_wandb": True, "wandb_project": "test", "wandb_mode": "offline"})
    wandb.finish()
    pictures = list(tmp_path.glob("wandb/offline-run-*/files/media/images/**/quantiles_*.png"))
    assert len(pictures) == 3
    for path in pictures:
        with Image.open(path) as image:
            assert image.width > 500 and len(image.getcolors(10**7)) > 50
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    logged = {}
    for item in history(file):
        logged.update(item)
    answers = read(config)["answers"]["aot"]
    for key, measured in answers["after"].items():
        assert logged[f"train/answers/{key}"] == pytest.approx(measured)
        assert logged[f"train/answers/{key}_before"] == pytest.approx(answers["before"][key])


def history(file: Path) -> list[dict]:
    """What a run has logged, from wandb's own file."""
    found = []
    for data in records_of(file):
        record = Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            found.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items})
    return found


def records_of(file: Path) -> Iterator[bytes]:
    """LevelDB's log format, after wandb's header: blocks of 32 KiB of pieces, each with a head of 7 bytes."""
    data, position, record = file.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if (left := 32_768 - position % 32_768) < 7:
            position += left  # a block's end, too short for a head
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last of its pieces
            yield record
            record = b""


def test_ctrl_c_while_the_report_is_written():
    """axolotl's handler, which would save the model that it loaded, is set aside, and comes back."""
    called = []
    previous = signal.signal(signal.SIGINT, lambda *args: called.append(args))
    try:
        with pytest.raises(KeyboardInterrupt), interruptible():
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, previous)
    assert len(called) == 1


def test_a_worker_thread_has_no_signals_to_set():
    entered = []

    def work():
        with interruptible():
            entered.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert entered == [True]
