"""The whole job of sampling, cut into batches that do not depend on where it was interrupted."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from axolotl_aot.data.prompts import Prompt
from axolotl_aot.errors import AOTDataError
from axolotl_aot.generation.decoding import Decoding, batches_by_length
from axolotl_aot.generation.settings import Settings

LEAST_ROOM = 16  # tokens that a prompt must leave for its answer, where the user has asked for no fewer
NAMED = 5  # prompts in a message


class Batch(NamedTuple):
    """Sequences that are generated at once. ends: tokens that end an answer besides the model's own."""

    prompts: Sequence[Sequence[int]]
    decoding: Decoding
    ends: frozenset[int]
    seed: int


class Job:
    """Every prompt answered n times, in batches of prompts of like length.

    sequence_len: the most tokens of a prompt and its answer. behind: tokens that training puts behind the
    answer's end, a prompt each. ends: tokens that end an answer besides the model's own.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        settings: Settings,
        *,
        sequence_len: int,
        batch_size: int,
        behind: Sequence[int],
        ends: set[int],
    ):
        """Raises AOTDataError where prompts leave no room for an answer; it names them."""
        self.prompts = prompts
        self._settings = settings
        self._ends = frozenset(ends)
        self._room = [sequence_len - len(p.ids) - more for p, more in zip(prompts, behind, strict=True)]
        _require_room(prompts, self._room, settings.max_new_tokens, sequence_len)
        # the answers to a prompt follow each other
        self._prompt_of = [i for i in range(len(prompts)) for _ in range(settings.n)]
        self.batches = batches_by_length([prompts[i].ids for i in self._prompt_of], batch_size)

    def __len__(self) -> int:
        """How many answers it has."""
        return len(self._prompt_of)

    def batch(self, number: int) -> Batch:
        """What the engine gets of a batch; answers end where the longest of its prompts leaves no room."""
        prompts = [self._prompt_of[i] for i in self.batches[number]]
        room = min(self._room[i] for i in prompts)
        asked = self._settings.max_new_tokens
        most = room if asked is None else min(asked, room)
        decoding = Decoding(most, self._settings.temperature, self._settings.top_p)
        seed = _seed(self._settings.seed, number)
        return Batch([self.prompts[i].ids for i in prompts], decoding, self._ends, seed)

    def places(self) -> Iterator["Place"]:
        """Where the answers of each prompt are, in the order of the prompts."""
        of = [Place([]) for _ in self.prompts]
        for number, batch in enumerate(self.batches):
            for position, sequence in enumerate(batch):
                of[self._prompt_of[sequence]].answers.append((sequence, number, position))
        for place in of:
            place.answers.sort()
            yield place

    def identity(self, **more: Any) -> dict[str, Any]:
        """All that the answers depend on.

        more: what the caller knows, such as the model and the seed.
        """
        contents = [(prompt.ids, prompt.after) for prompt in self.prompts]
        digest = hashlib.blake2b(json.dumps(contents).encode(), digest_size=8).hexdigest()
        prompts = f"{len(self.prompts)} with the digest {digest}"
        return {**more, "batch_size": len(self.batches[0]), "prompts": prompts}


class Place(NamedTuple):
    """answers: number of the sequence, of its batch, and its position there."""

    answers: list[tuple[int, int, int]]


def _require_room(prompts: Sequence[Prompt], room: list[int], asked: int | None, sequence_len: int) -> None:
    least = min(LEAST_ROOM, asked or LEAST_ROOM)
    short = [(p, left) for p, left in zip(prompts, room, strict=True) if left < least]
    if short:
        named = ", ".join(f"row {p.row} ({len(p.ids)} tokens)" for p, _ in short[:NAMED])
        more = f" and {len(short) - NAMED} more" if len(short) > NAMED else ""
        raise AOTDataError(
            f"--prompts: {named}{more} leave fewer than {least} tokens for an answer within `sequence_len: "
            f"{sequence_len}`; leave them out, or set a larger sequence_len"
        )


def _seed(seed: int, batch: int) -> int:
    """A batch's own seed, so that it does not matter which batches were drawn before it."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{batch}".encode(), digest_size=8).digest(), "big") >> 2
