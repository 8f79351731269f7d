"""How completions share their prompt's tokens: [prompt, completion, completion, ...], side by side.

Each completion attends to the prompt and to itself, and its positions go on where the prompt ends. So the
prompt's tokens go through the model once, and what the last of them predicts serves all completions.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig

from axolotl_aot.scoring.sizes import HostBatch, SequenceSize

# Layers whose attention is causal and looks at all tokens, or at those of a window.
CAUSAL_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
# Keys of a model's configuration that say from how many tokens on its attention does not look at all of them.
SPAN_KEYS = re.compile(r"(.*_)?(window|chunk)(_size|_length)?|index_topk|local_attention")

Groups = list[list[int]]  # numbers of sequences that share a prompt, or of one that shares none


class Sharing(NamedTuple):
    """What a model allows. span: tokens of the longest sequence whose attention is that of all its tokens;
    None: any. hidden_size: of the model.
    """

    span: int | None
    hidden_size: int

    def covers(self, sizes: list[SequenceSize]) -> bool:
        return self.span is None or max(size.total for size in sizes) <= self.span


def sharing_under(config: PreTrainedConfig) -> Sharing | None:
    """What a model of this configuration allows.

    None where its layers are not all of causal attention, or where it does not say how large they are.
    """
    text = config.get_text_config()
    values = text.to_dict()
    hidden_size = values.get(text.attribute_map.get("hidden_size", "hidden_size"))
    if hidden_size is None or not CAUSAL_LAYERS.issuperset(values.get("layer_types") or ()):
        return None
    spans = [value for key, value in values.items() if SPAN_KEYS.fullmatch(key) and isinstance(value, int)]
    return Sharing(min(filter(None, spans), default=None), hidden_size)


def by_prompt(sizes: list[SequenceSize]) -> Groups:
    """The sequences of each prompt."""
    found: dict[int, list[int]] = {}
    for i, size in enumerate(sizes):
        found.setdefault(size.prompt_number, []).append(i)
    return list(found.values())


def shared_length(group: list[int], sizes: list[SequenceSize]) -> int:
    """Tokens of a group: its prompt and all completions."""
    return sizes[group[0]].prompt + sum(sizes[i].completion for i in group)


class Segment(NamedTuple):
    """Tokens of one sequence that lie side by side.

    start: the first one's place in the rows, flattened. offset: its position in the sequence. prefix: the
    place where the `offset` tokens before it lie, which other sequences may have, too.
    """

    sequence: int
    start: int
    offset: int
    length: int
    prefix: int

    @property
    def places(self) -> slice:
        return slice(self.start, self.start + self.length)

    @property
    def seen(self) -> np.ndarray:
        """The places that its last token sees, in the sequence's order."""
        own = np.arange(self.start, self.start + self.length)
        return np.concatenate([np.arange(self.prefix, self.prefix + self.offset), own])


@dataclass(frozen=True)
class Arrangement:
    """The prompts that are shared; and of every sequence, in order, what is not."""

    prompts: list[Segment]
    rest: list[Segment]

    def __iter__(self) -> Iterator[Segment]:
        return iter(sorted([*self.prompts, *self.rest], key=lambda segment: segment.start))


def arrange(groups: Groups, starts: list[int], sizes: list[SequenceSize]) -> Arrangement:
    """The groups' tokens, each group's from a place in the rows, flattened, onwards."""
    prompts, rest = [], []
    for group, prefix in zip(groups, starts, strict=True):
        shared = sizes[group[0]].prompt if len(group) > 1 else 0
        if shared:
            prompts.append(Segment(group[0], prefix, 0, shared, prefix))
        start = prefix + shared
        for i in group:
            rest.append(Segment(i, start, shared, sizes[i].total - shared, prefix))
            start += sizes[i].total - shared
    return Arrangement(prompts, sorted(rest))


def token_rows(batch: HostBatch, segments: Arrangement, places: int) -> tuple[np.ndarray, np.ndarray]:
    """The token in each place and its position in its sequence, each of shape (places,); 0 where none is."""
    ids, positions = np.zeros(places, np.int64), np.zeros(places, np.int64)
    for one in segments:
        ids[one.places] = batch.ids[one.sequence, one.offset : one.offset + one.length]
        positions[one.places] = np.arange(one.offset, one.offset + one.length)
    return ids, positions


def targets_in(
    batch: HostBatch, segments: Arrangement, device: torch.device
) -> tuple[Tensor, Tensor, list[int]]:
    """Where the token before each target lies; the targets; and how many of them each sequence has."""
    before = [one.seen[:-1][batch.completion[one.sequence, 1 : len(one.seen)]] for one in segments.rest]
    counted = batch.completion.copy()
    counted[:, 0] = False  # nothing stands before a first token
    both = np.stack([np.concatenate(before), batch.ids[counted]])
    positions, targets = torch.from_numpy(both).to(device)
    return positions, targets, [len(places) for places in before]
