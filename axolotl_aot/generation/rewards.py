"""Rewards of answers: by a function of the user's own; and what is asked of any reward's numbers."""

import copy
import hashlib
import importlib
import importlib.util
import inspect
import math
import os
import sys
from collections.abc import Callable, Sequence
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import torch

from axolotl_aot.data.prompts import Prompt
from axolotl_aot.errors import AOTConfigError, AOTDataError, closest

SHOWN = 60  # characters of a prompt or an answer in a message


class Reward(Protocol):
    """Scores answers to a prompt; higher is better.

    name: what messages and the written rows call it. identity: tells it from what it was before a change.
    """

    name: str
    identity: str

    def __call__(self, prompt: Prompt, answers: list[str]) -> Any:
        """One number an answer, which nothing is known of yet; may raise anything."""


class FunctionReward:
    """`--reward`: a function of (messages, answers), or of (text, answers) for prompts that are text."""

    def __init__(self, name: str):
        """Import it. name: `package.module:function` or `path/to/file.py:function`.

        Raises:
            AOTConfigError: there is no such function, or its module cannot be imported.
        """
        self.name = name
        module_name, colon, function = name.rpartition(":")
        if not (colon and module_name and function):
            raise AOTConfigError(
                f"--reward {name}: write package.module:function or path/to/file.py:function"
            )
        module = _imported(module_name, name)
        known = vars(module)
        if function not in known:
            names = [n for n, value in known.items() if callable(value) and not n.startswith("_")]
            raise AOTConfigError(
                f"--reward {name}: {module_name} has no {function!r}.{closest(function, names)}"
            )
        if not callable(known[function]):
            raise AOTConfigError(
                f"--reward {name}: {function!r} is {type(known[function]).__name__}, and must be a function "
                "of (messages, answers) that returns a list of numbers"
            )
        self._function: Callable[[Any, list[str]], Any] = known[function]
        source = Path(inspect.getfile(module)).read_bytes()
        self.identity = f"{name} {hashlib.blake2b(source, digest_size=8).hexdigest()}"

    def __call__(self, prompt: Prompt, answers: list[str]) -> Any:
        return self._function(copy.deepcopy(prompt.messages), list(answers))


def _imported(module: str, name: str) -> ModuleType:
    sys.path.insert(0, os.getcwd())  # as for `python -m`: the user's modules lie where the command is run
    try:
        if not module.endswith(".py"):
            return importlib.import_module(module)
        if not Path(module).is_file():
            raise AOTConfigError(f"--reward {name}: there is no file {module}")
        spec = importlib.util.spec_from_file_location(Path(module).stem, module)
        found = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = found  # for what looks its module up, such as dataclasses
        spec.loader.exec_module(found)
        return found
    except AOTConfigError:
        raise
    except Exception as error:  # whatever the user's module raises
        raise AOTConfigError(
            f"--reward {name}: {module} cannot be imported ({type(error).__name__}: {error})"
        ) from error
    finally:
        sys.path.pop(0)


def scores_of(reward: Reward, prompt: Prompt, answers: list[str]) -> list[float]:
    """The answers' scores, checked.

    Raises:
        AOTDataError: the reward fails, or gives anything but one finite number an answer; it names both
            prompt and answer.
    """
    where = f"{reward.name}: prompt {prompt.row} ({_short(prompt.text, last=True)})"
    try:
        given = reward(prompt, answers)
    except AOTDataError:
        raise
    except Exception as error:  # whatever the user's function raises
        raise AOTDataError(
            f"{where}, answers {', '.join(map(_short, answers))}: {type(error).__name__}: {error}"
        ) from error
    if isinstance(given, (np.ndarray, torch.Tensor)):
        given = given.tolist()
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise AOTDataError(
            f"{where}: gives {given!r:.80}, and must give a list of {len(answers)} numbers, one an answer"
        )
    if len(given) != len(answers):
        raise AOTDataError(f"{where}: gives {len(given)} numbers for {len(answers)} answers")
    return [
        _number(value, f"{where}, answer {i + 1} ({_short(answers[i])})") for i, value in enumerate(given)
    ]


def _number(value: Any, where: str) -> float:
    value = value.item() if isinstance(value, (np.generic, torch.Tensor)) and value.size else value
    if isinstance(value, bool):
        raise AOTDataError(f"{where}: gives {value}, which is no number; write {float(value)}")
    if not isinstance(value, Real) or not math.isfinite(value):
        raise AOTDataError(f"{where}: gives {value!r:.80}, which is not a finite number")
    return float(value)


def _short(text: str, last: bool = False) -> str:
    """A text's beginning, or its end, in quotes."""
    if len(text) <= SHOWN:
        return repr(text)
    return f"...{text[-SHOWN:]!r}" if last else f"{text[:SHOWN]!r}..."
