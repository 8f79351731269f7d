"""How long it takes to prepare data, against axolotl's own way for `rl: kto`.

    python -m benchmarks.preparation                  # 200,000 rows, three times each
    python -m benchmarks.preparation --rows 20000 --repeats 1

The same rows, in turn, each time in a fresh process and with empty caches: from reading the file to the
prepared data on the disk. axolotl leaves the tokens to the trainer; here they are part of what is prepared.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig

from tests.tiny import make_tokenizer

SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "ing")]
AXOLOTL = "kto: chatml.ultra"
RUNS = {
    AXOLOTL: {"rl": "kto", "type": "chatml.ultra"},
    "aot_unpaired: chatml.ultra": {"rl": "aot_unpaired", "type": "chatml.ultra"},
    "aot_unpaired: chat_template": {"rl": "aot_unpaired", "type": "chat_template"},
    "aot_unpaired: scored": {
        "rl": "aot_unpaired",
        "type": "scored",
        "positive_above": 0.5,
        "negative_below": 0.5,
    },
}


def write_rows(path: Path, count: int) -> None:
    """Prompts of about 25 words and completions of about 75, some of them long, as in real data."""
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(5_000)]

    def text(median: float) -> str:
        return " ".join(rng.choices(vocabulary, k=1 + int(median * rng.lognormvariate(0, 0.6))))

    with path.open("w") as file:
        for _ in range(count):
            score = rng.random()
            row = {
                "prompt": text(20) + "?",
                "completion": text(60) + ".",
                "score": score,
                "label": score > 0.5,
            }
            file.write(json.dumps(row) + "\n")


def write_model(folder: Path, rows: Path) -> None:
    """A tokenizer of the rows' text, and the configuration of a model that goes with it."""
    with rows.open() as lines:
        tokenizer = make_tokenizer([next(lines) for _ in range(2_000)], vocab_size=8_000)
    tokenizer.save_pretrained(folder)
    LlamaConfig(vocab_size=len(tokenizer)).save_pretrained(folder)


def prepare(folder: Path, run: dict[str, object]) -> float:
    """Seconds for one run, in this process."""
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_preference_datasets
    from axolotl.utils.dict import DictDefault

    options = dict(run)
    with tempfile.TemporaryDirectory(dir=folder) as prepared:
        cfg = load_cfg(
            DictDefault(
                base_model=str(folder),
                plugins=["axolotl_aot.AOTPlugin"],
                rl=options.pop("rl"),
                chat_template="chatml",
                datasets=[{"path": str(folder / "rows.jsonl"), "split": "train", **options}],
                dataset_prepared_path=prepared,
                output_dir=prepared,
                sequence_len=2_048,
                micro_batch_size=2,
                gradient_accumulation_steps=8,
                num_epochs=1,
                learning_rate=1e-4,
                val_set_size=0,
                remove_unused_columns=False,
                bf16=False,
                seed=0,
            )
        )
        start = time.perf_counter()
        load_preference_datasets(cfg=cfg)
        return time.perf_counter() - start


def measure(folder: Path, name: str) -> float:
    """Seconds for one run, in a fresh process and with an empty cache."""
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        command = [sys.executable, "-m", "benchmarks.preparation", "--one", name, str(folder)]
        environment = {"HF_DATASETS_CACHE": cache, "AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            ["env", *(f"{k}={v}" for k, v in environment.items()), *command],
            check=True,
            stdout=subprocess.PIPE,
        )
    return float(done.stdout.split()[-1])


def compare(count: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of each run, in turn."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "rows.jsonl", count)
        write_model(folder, folder / "rows.jsonl")
        seconds: dict[str, list[float]] = {run: [] for run in RUNS}
        for _ in range(repeats):
            for run, times in seconds.items():
                times.append(measure(folder, run))
    return seconds


def main() -> None:
    """Measure and print, or be one of the processes that are measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs=2, metavar=("RUN", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(prepare(Path(args.one[1]), RUNS[args.one[0]]))
        return
    seconds = compare(args.rows, args.repeats)
    theirs = statistics.median(seconds[AXOLOTL])
    table = Table("rl: type", "seconds", "ratio", title=f"Preparing {args.rows:,} rows")
    for name, times in seconds.items():
        ours = statistics.median(times)
        table.add_row(name, " ".join(f"{t:.1f}" for t in times), f"{ours / theirs:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
