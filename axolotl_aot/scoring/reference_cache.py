"""Log-probabilities under the reference, computed once and kept on disk.

The log-probability of a completion depends on the model's weights and on the tokens, and on nothing else.
So a file belongs to one model (`fingerprint`), and a completion is found in it by its tokens, whatever
tokenizer, chat template, data set, order or seed has led to them. When data are added later, only those
are computed.
"""

import hashlib
import json
import os
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from safetensors import SafetensorError
from safetensors.numpy import load, save

FORMAT = "1"
WEIGHTS = ("*.safetensors", "*.bin", "config.json")  # what a model on disk is read from
# Keys of a model's configuration that do not change its log-probabilities.
IRRELEVANT = ("use_cache", "transformers_version")
DIGEST_BYTES = 16


class TokenizedAnswer(NamedTuple):
    """A prompt and a completion, in tokens."""

    prompt: list[int]
    completion: list[int]


class ReferenceFileError(ValueError):
    """A file of log-probabilities that cannot be used; the message says why."""


class ReferenceCache:
    """Log-probabilities in nats of completions under one model, by their tokens."""

    def __init__(self, path: Path, fingerprint: str):
        self.path = path
        self.fingerprint = fingerprint
        self._known: dict[bytes, float] = {}

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._known

    def lookup(self, prompt: list[int], completion: list[int]) -> float:
        """Of a completion that was added before."""
        return self._known[digest(prompt, completion)]

    def get(self, digest: bytes) -> float:
        return self._known[digest]

    def update(self, scored: Iterable[tuple[bytes, float]]) -> None:
        self._known.update(scored)

    def keys(self) -> set[bytes]:
        return set(self._known)

    def remove(self, digests: Iterable[bytes]) -> None:
        for digest in digests:
            del self._known[digest]

    def load(self) -> None:
        """Read the file, if there is one.

        Raises:
            ReferenceFileError: it is damaged, or another model's.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return
        try:
            tensors = load(content)
            digests, logprobs = tensors["digests"], tensors["logprobs"]
            whole = tensors["checksum"].tobytes() == _checksum(self.fingerprint, digests, logprobs)
        except (SafetensorError, KeyError) as error:
            raise ReferenceFileError(f"it is damaged ({error})") from None
        if not whole:
            raise ReferenceFileError("it is damaged or another model's: its checksum differs")
        self.update(zip((row.tobytes() for row in digests), logprobs.tolist(), strict=True))

    def save(self) -> None:
        """Write the file in one go: another run that reads it sees it whole."""
        digests = np.frombuffer(b"".join(self._known), dtype=np.uint8).reshape(-1, DIGEST_BYTES)
        logprobs = np.fromiter(self._known.values(), dtype=np.float32)
        checksum = np.frombuffer(_checksum(self.fingerprint, digests, logprobs), dtype=np.uint8)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(f".{os.getpid()}")
        temporary.write_bytes(save({"digests": digests, "logprobs": logprobs, "checksum": checksum}))
        temporary.replace(self.path)


def digest(prompt: list[int], completion: list[int]) -> bytes:
    """Of a prompt's and a completion's tokens, as short as makes a collision unthinkable."""
    tokens = array("q", [len(prompt), *prompt, *completion])
    return hashlib.blake2b(tokens.tobytes(), digest_size=DIGEST_BYTES).digest()


def sequences_of(dataset: Dataset, completions: Iterable[str]) -> dict[bytes, TokenizedAnswer]:
    """The different sequences of a tokenized data set, by their digest; the columns hold its completions."""
    found: dict[bytes, TokenizedAnswer] = {}
    columns = dataset.select_columns(["prompt_ids", *completions])
    for rows in columns.iter(batch_size=1000):
        for column in completions:
            for prompt, completion in zip(rows["prompt_ids"], rows[column], strict=True):
                found.setdefault(digest(prompt, completion), TokenizedAnswer(prompt, completion))
    return found


def fingerprint(config: Any, **settings: Any) -> str:
    """What tells a model's weights from others': where they come from, as they are there now.

    config: the model's, of transformers. settings: what else its log-probabilities depend on, such as the
    precision it was loaded in.
    """
    name = config._name_or_path  # transformers has no other place, for this and for the next
    shape = {k: v for k, v in config.to_diff_dict().items() if k not in IRRELEVANT}
    parts = {"format": FORMAT, "model": name, "revision": config._commit_hash, "config": shape, **settings}
    if os.path.isdir(name):
        files = sorted(file for pattern in WEIGHTS for file in Path(name).glob(pattern))
        stats = [(file.name, file.stat()) for file in files]
        parts["model"] = os.path.realpath(name)
        parts["files"] = [(file, stat.st_size, stat.st_mtime_ns) for file, stat in stats]
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).hexdigest()


def _checksum(fingerprint: str, digests: np.ndarray, logprobs: np.ndarray) -> bytes:
    content = fingerprint.encode() + digests.tobytes() + logprobs.tobytes()
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()
