"""The command's options, and which of its modes reads them."""

import argparse
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from axolotl_aot.errors import closest
from benchmarks.speed.cases import ALL_CASES, Case
from benchmarks.speed.errors import UsageError
from benchmarks.speed.shapes import SHAPES

STEPS, CLI, HEAD, PROFILE = "steps", "cli", "head", "profile"
MODES = {
    CLI: "axolotl's command line on one YAML, for ours and for `rl: dpo` with TRL's aot",
    HEAD: "log-probabilities from hidden states, against the bare matrix product",
    PROFILE: "where the time of one step goes",
}


class Option(NamedTuple):
    """modes: those that read it; keys: argparse's. A default of None tells that it was not given."""

    modes: tuple[str, ...]
    keys: dict[str, Any]


def positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def sequence_lengths(text: str) -> str:
    return text if text == "real" else str(positive(text))


def setting(text: str) -> str:
    if not text.partition("=")[0] or "=" not in text:
        raise argparse.ArgumentTypeError(f"{text!r} is no KEY=VALUE")
    return text


def existing_file(text: str) -> Path:
    if not (path := Path(text)).is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text}")
    return path


def share(text: str) -> float:
    if not 0 < (value := float(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


_TRAINERS = (STEPS, PROFILE)
_RUNS = (STEPS, CLI, PROFILE)
_ALL = (STEPS, CLI, HEAD, PROFILE)
_SWITCH = {"action": argparse.BooleanOptionalAction}
OPTIONS = {
    "cases": Option(_TRAINERS, {"nargs": "+", "choices": list(ALL_CASES)}),
    "model": Option(_RUNS, {"choices": SHAPES, "help": "a shape, drawn at random"}),
    "base-model": Option(_RUNS, {"help": "a folder with a model, in 4 bits or not, in place of --model"}),
    "vocabulary": Option(_ALL, {"type": positive}),
    "adapter": Option(_RUNS, {"choices": ["full", "lora", "qlora"]}),
    "attention": Option(_RUNS, {"help": "transformers' name of it"}),
    "lengths": Option(_TRAINERS, {"type": sequence_lengths, "help": "tokens of each sequence, or real"}),
    "longest": Option(
        _TRAINERS, {"type": positive, "help": "of real lengths, prompt and completion together"}
    ),
    "prompt": Option(_TRAINERS, {"type": share, "help": "the prompt's share of a sequence"}),
    "sequence-len": Option((CLI,), {"type": positive, "help": "longer pairs are left out"}),
    "micro-batch": Option(_RUNS, {"type": positive, "nargs": "+", "help": "in pairs; each is tried in turn"}),
    "accumulation": Option(_RUNS, {"type": positive}),
    "steps": Option(_RUNS, {"type": positive, "help": "measured, after one that is not"}),
    "checkpointing": Option(_RUNS, {**_SWITCH, "help": "of gradients; on for all but the small model"}),
    "liger-layers": Option(
        _TRAINERS, {**_SWITCH, "help": "Liger's rope, norms and MLP in a Llama, for every contender"}
    ),
    "cached": Option(_TRAINERS, {**_SWITCH, "help": "the reference is computed before"}),
    "contenders": Option(_RUNS, {"nargs": "+"}),
    "data": Option(
        _RUNS, {"type": existing_file, "help": "pairs.jsonl, for real lengths; fitted ones without"}
    ),
    "peer-python": Option(
        (STEPS,), {"help": "an interpreter with another TRL, which trains the same tokens"}
    ),
    "one-process": Option((STEPS,), {"action": "store_true", "help": "all but the peer in this process"}),
    "memory-limit": Option(_TRAINERS, {"type": float, "help": "of the GPU, in GiB, as on a smaller card"}),
    "set": Option((CLI,), {"type": setting, "action": "append", "metavar": "KEY=VALUE", "help": "more YAML"}),
    "set-ours": Option(
        (CLI,), {"type": setting, "action": "append", "metavar": "KEY=VALUE", "help": "for ours"}
    ),
    "repeats": Option((CLI, HEAD), {"type": positive}),
    "tokens": Option((HEAD,), {"type": positive}),
    "hidden": Option((HEAD,), {"type": positive}),
    "chunks": Option((HEAD,), {"type": positive, "nargs": "+", "help": "tokens of a chunk; each is tried"}),
    "dtype": Option((HEAD,), {"choices": ["bfloat16", "float32"]}),
    "trace": Option(
        (PROFILE,), {"type": Path, "help": "a folder for all events of the steps, as Perfetto reads them"}
    ),
    "json": Option(_ALL, {"type": Path, "help": "where to write the figures"}),
}


def make_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.speed",
        description=description,
        formatter_class=argparse.RawTextHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    modes = parser.add_mutually_exclusive_group()
    for mode, text in MODES.items():
        modes.add_argument(f"--{mode}", dest="mode", action="store_const", const=mode, help=text)
    parser.set_defaults(mode=STEPS)
    for name, option in OPTIONS.items():
        parser.add_argument(f"--{name}", **option.keys)
    return parser


def read_options(arguments: list[str] | None, parser: argparse.ArgumentParser) -> tuple[str, dict[str, Any]]:
    """The mode, and what was given.

    Raises:
        UsageError: the mode does not read an option.
    """
    given = vars(parser.parse_args(arguments))
    mode = given.pop("mode")
    for name in given:
        modes = OPTIONS[name.replace("_", "-")].modes
        if mode not in modes:
            where = " or ".join("no mode's option" if m == STEPS else f"--{m}" for m in modes)
            raise UsageError(f"--{name.replace('_', '-')} is read with {where}, not with {mode!r}")
    for name in ("model", "vocabulary"):
        if "base_model" in given and name in given:
            raise UsageError(
                f"--{name} is of a model drawn at random, and --base-model names one: leave one out"
            )
    return mode, given


def require_known(contenders: Iterable[str], known: Iterable[str]) -> None:
    """
    Raises:
        UsageError: a contender is unknown to the mode.
    """
    known = list(known)
    for name in contenders:
        if name not in known:
            raise UsageError(f"--contenders: {name!r} is unknown here.{closest(name, known)}")


def of_a_case(given: dict[str, Any]) -> dict[str, Any]:
    """What was given of a case's fields, but for the micro-batch, of which there may be several."""
    names = {field.name for field in fields(Case)} - {"micro_batch"}
    found = {name: value for name, value in given.items() if name in names}
    return {**found, "contenders": tuple(found["contenders"])} if "contenders" in found else found
