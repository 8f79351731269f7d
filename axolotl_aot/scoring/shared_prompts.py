"""A layout in which completions share their prompt's tokens: [prompt, completion, completion, ...] in a row.

Each completion attends to the prompt and to itself, and its positions go on where the prompt ends. So the
prompt's tokens go through the model once, and what the last of them predicts serves all completions.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig

from axolotl_aot.scoring.layouts import Layout, binned, first_fit
from axolotl_aot.scoring.sizes import HostBatch, SequenceSize, Sizes, sequence_sizes, to_host

# Layers whose attention is causal and looks at all tokens, or at those of a window.
CAUSAL_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
# Keys of a model's configuration beyond which number of tokens its attention is not that of all of them.
SPAN_KEYS = re.compile(r"(.*_)?(window|chunk)(_size|_length)?|index_topk|local_attention")
# To how many keys, in hidden sizes, a query may attend in the time that a layer's matrix products take for a
# token. Measured on a CPU.
KEYS_PER_HIDDEN_SIZE = 3

Groups = list[list[int]]  # numbers of sequences that share a prompt, or of one that shares none


class Plan(NamedTuple):
    """Which sequences share a prompt; row and start of each group; and the rows' length."""

    groups: Groups
    places: list[tuple[int, int]]
    width: int

    @property
    def tokens(self) -> int:
        return self.width * (1 + max(row for row, _ in self.places))


@dataclass(frozen=True)
class SharedPrompts:
    """Rows of completions behind their prompts, for attention that takes a mask over all pairs of tokens.

    Prompts are shared where it saves time: attention to all tokens of a longer row costs more.

    Args:
        span: tokens that the model's attention reaches back to; with longer sequences nothing is shared, as
            the mask would not be the model's. None: any number.
        keys_per_token: to how many keys a query attends in the time of a token's matrix products.
    """

    span: int | None
    keys_per_token: int

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor) -> Layout:
        """The layout; `binned` where nothing is shared."""
        batch = to_host(input_ids, attention_mask, completion_mask)
        sizes = sequence_sizes(batch)
        plan = self._plan(sizes)
        if len(plan.groups) == len(sizes):
            return binned(input_ids, attention_mask, completion_mask)
        return _lay_out(batch, sizes, plan, input_ids.device)

    def tokens(self, sample_sizes: Sizes) -> int:
        """What a micro-batch of these samples takes, what is left of rows included."""
        return self._plan([size for sample in sample_sizes for size in sample]).tokens

    def _plan(self, sizes: list[SequenceSize]) -> Plan:
        apart = _fit([[i] for i in range(len(sizes))], sizes)
        if self.span is not None and apart.width > self.span:
            return apart
        groups = self._groups(sizes)
        if len(groups) == len(sizes):
            return apart
        return min(_fit(groups, sizes), apart, key=self._cost_of)

    def _groups(self, sizes: list[SequenceSize]) -> Groups:
        of_prompt: dict[int, list[int]] = {}
        for i, size in enumerate(sizes):
            of_prompt.setdefault(size.prompt_number, []).append(i)
        return [group for members in of_prompt.values() for group in self._grouped(members, sizes)]

    def _grouped(self, members: list[int], sizes: list[SequenceSize]) -> Groups:
        """Sequences of one prompt in as many groups as makes their rows cheap."""
        groups: Groups = []
        length = 0
        for i in sorted(members, key=lambda i: sizes[i].completion):
            longer = length + sizes[i].completion
            if groups and self._cost(longer) - self._cost(length) < self._cost(sizes[i].total):
                groups[-1].append(i)
                length = longer
            else:
                groups.append([i])
                length = sizes[i].total
        return groups

    def _cost_of(self, plan: Plan) -> float:
        return plan.tokens / plan.width * self._cost(plan.width)

    def _cost(self, length: int) -> float:
        """Of a row, in tokens that attend to nothing."""
        return length + length**2 / self.keys_per_token


def shared_prompts(config: PreTrainedConfig) -> SharedPrompts | None:
    """How prompts can be shared under a model of this configuration.

    None where its layers are not all of causal attention, or where it does not say how large they are.
    """
    text = config.get_text_config()
    values = text.to_dict()
    hidden_size = values.get(text.attribute_map.get("hidden_size", "hidden_size"))
    if hidden_size is None or not CAUSAL_LAYERS.issuperset(values.get("layer_types") or ()):
        return None
    spans = [value for key, value in values.items() if SPAN_KEYS.fullmatch(key) and isinstance(value, int)]
    return SharedPrompts(min(filter(None, spans), default=None), KEYS_PER_HIDDEN_SIZE * hidden_size)


def _fit(groups: Groups, sizes: list[SequenceSize]) -> Plan:
    lengths = [_length(group, sizes) for group in groups]
    width = max(lengths)
    return Plan(groups, first_fit(lengths, width), width)


def _length(group: list[int], sizes: list[SequenceSize]) -> int:
    return sizes[group[0]].prompt + sum(sizes[i].completion for i in group)


# --- From a plan to what the model gets ------------------------------------------------------------


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


def _segments(plan: Plan, sizes: list[SequenceSize]) -> tuple[list[Segment], list[Segment]]:
    """The prompts that are shared; and of every sequence, in order, what is not."""
    prompts, rest = [], []
    for group, (row, column) in zip(plan.groups, plan.places, strict=True):
        prefix = row * plan.width + column
        prompt = sizes[group[0]].prompt if len(group) > 1 else 0
        if prompt:
            prompts.append(Segment(group[0], prefix, 0, prompt, prefix))
        start = prefix + prompt
        for i in group:
            rest.append(Segment(i, start, prompt, sizes[i].total - prompt, prefix))
            start += sizes[i].total - prompt
    return prompts, sorted(rest)


def _lay_out(batch: HostBatch, sizes: list[SequenceSize], plan: Plan, device: torch.device) -> Layout:
    prompts, rest = _segments(plan, sizes)
    # what is left of a row: tokens that see themselves alone, as attention to nothing is not a number
    segment = np.arange(plan.tokens)
    prefix = segment.copy()
    ids, position_ids = np.zeros_like(segment), np.zeros_like(segment)
    for one in (*prompts, *rest):
        position_ids[one.places] = np.arange(one.offset, one.offset + one.length)
        ids[one.places] = batch.ids[one.sequence, one.offset : one.offset + one.length]
        segment[one.places] = one.start
        prefix[one.places] = one.prefix
    rows = torch.from_numpy(np.stack([ids, position_ids, segment, prefix])).to(device)
    ids, position_ids, segment, prefix = rows.view(4, -1, plan.width)
    before, lengths = _before_targets(batch, rest)
    counted = batch.completion.copy()
    counted[:, 0] = False
    positions, targets = torch.from_numpy(np.stack([before, batch.ids[counted]])).to(device)
    return Layout(
        {"input_ids": ids, "position_ids": position_ids, "attention_mask": prefix_mask(segment, prefix)},
        positions=positions,
        targets=targets,
        lengths=lengths,
    )


def _before_targets(batch: HostBatch, rest: list[Segment]) -> tuple[np.ndarray, list[int]]:
    """Where the token before each target lies, and how many targets each sequence has."""
    before = []
    for one in rest:
        shared = np.arange(one.prefix, one.prefix + one.offset)
        places = np.concatenate([shared, np.arange(one.start, one.start + one.length)])
        before.append(places[:-1][batch.completion[one.sequence, 1 : len(places)]])
    return np.concatenate(before), [len(places) for places in before]


def prefix_mask(segment: Tensor, prefix: Tensor) -> Tensor:
    """Which tokens of a row each of them sees: those before it, of its own segment and of the one that
    comes before that.

    segment, prefix: numbers of segments, shape (rows, width). Returns booleans, (rows, 1, width, width).
    """
    keys = segment[:, None, :]
    seen = (keys == segment[:, :, None]) | (keys == prefix[:, :, None])
    return seen.tril()[:, None]
