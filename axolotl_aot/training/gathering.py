"""Scores of several batches or processes, put together.

Processes exchange scores as one matrix, a row for each sample; what its columns are is known here only.
"""

import torch
from accelerate import Accelerator
from torch import Tensor

from axolotl_aot.training.objective import Scores


def join(parts: list[Scores]) -> Scores:
    """One set of scores of several, in order."""
    return Scores(*(None if fields[0] is None else torch.cat(fields) for fields in zip(*parts, strict=True)))


def gather(scores: Scores, accelerator: Accelerator, sequences_per_sample: int) -> Scores:
    """The scores of all processes, in rank order; each must have equally many samples."""
    return _unpack(accelerator.gather(_pack(scores, sequences_per_sample)), scores, sequences_per_sample)


def gather_for_metrics(scores: Scores, accelerator: Accelerator, sequences_per_sample: int) -> Scores:
    """The same for a batch of an evaluation, without the copies that fill up its last batch."""
    matrix = accelerator.gather_for_metrics(_pack(scores, sequences_per_sample))
    return _unpack(matrix, scores, sequences_per_sample)


def in_order(scores: Scores, sequences_per_sample: int) -> Tensor:
    """The numbers of the answers, their samples by position and without copies."""
    positions = scores.position[::sequences_per_sample]
    samples = positions.argsort()[int((positions < 0).sum()) :]
    answers = torch.arange(sequences_per_sample, device=samples.device)
    return (sequences_per_sample * samples[:, None] + answers).flatten()


def _pack(scores: Scores, sequences_per_sample: int) -> Tensor:
    """Shape (samples, columns), of the policy's floating-point type."""
    fields = [field.to(scores.policy.dtype) for field in scores if field is not None]
    return torch.cat([field.view(-1, sequences_per_sample) for field in fields], dim=1)


def _unpack(matrix: Tensor, like: Scores, sequences_per_sample: int) -> Scores:
    """The scores of a matrix that `_pack` has made of scores with the same fields as `like`."""
    fields = iter(part.flatten() for part in matrix.split(sequences_per_sample, dim=1))
    scores = Scores(*(None if field is None else next(fields) for field in like))
    return scores._replace(label=scores.label > 0.5)
