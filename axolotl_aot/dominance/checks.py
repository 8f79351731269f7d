"""What all losses and measures ask of samples, masses and options."""

from collections.abc import Iterable
from difflib import get_close_matches

import torch
from torch import Tensor


def require_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raises ValueError, with the closest choice, for a value that is none of them."""
    choices = list(choices)
    if value not in choices:
        close = get_close_matches(str(value), choices, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown {name} {value!r}: must be one of {', '.join(choices)}.{hint}")


def require_sample(name: str, sample: Tensor) -> None:
    """Raises ValueError for a sample that is empty, not 1-D, or not finite."""
    if sample.ndim != 1 or len(sample) == 0:
        raise ValueError(f"{name} must be a non-empty 1-D tensor, got shape {tuple(sample.shape)}")
    finite = sample.isfinite()
    if not finite.all():
        count = int((~finite).sum())
        raise ValueError(f"{name} has {count} of {len(sample)} values that are not finite")


def masses(name: str, weights: Tensor | None, sample: Tensor) -> Tensor:
    """A sample's masses, (n,) in float64, not normalised; ones without weights.

    Raises:
        ValueError: weights of another shape, negative, not finite or all zero.
    """
    if weights is None:
        return torch.ones(len(sample), dtype=torch.float64, device=sample.device)
    if weights.shape != sample.shape:
        raise ValueError(
            f"{name} must have the sample's shape {tuple(sample.shape)}, got {tuple(weights.shape)}"
        )
    weights = weights.detach().to(sample.device, torch.float64)
    if not (weights.isfinite() & (weights >= 0)).all() or weights.sum() == 0:
        raise ValueError(f"{name} must be finite, non-negative and not all zero")
    return weights


def common_dtype(*samples: Tensor) -> torch.dtype:
    """What samples are computed in: float32, or float64 where one of them is."""
    dtype = torch.float32
    for sample in samples:
        dtype = torch.promote_types(dtype, sample.dtype)
    return dtype
