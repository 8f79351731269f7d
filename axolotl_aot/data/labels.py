"""The labels of unpaired data: there must be answers of both, and both where answers are sorted together."""

import numpy as np
from axolotl.utils.logging import get_logger
from datasets import Dataset

from axolotl_aot.errors import AOTDataError

LOG = get_logger(__name__)

# A warning is due where more than this share of what is sorted together would hold one label only.
MAX_ONE_LABEL_SHARE = 0.05


def require_both_labels(key: str, dataset: Dataset) -> None:
    """key: of the YAML, by which the data set is named.

    Raises:
        AOTDataError: no answer is positive, or none is negative.
    """
    absent = {True, False} - set(_labels(dataset).tolist())
    if absent:
        words = " or ".join({True: "positive", False: "negative"}[label] for label in absent)
        raise AOTDataError(
            f"{key}: no {words} answer among {len(dataset)}; rl: aot_unpaired compares the "
            "distributions of both labels and needs answers of each"
        )


def log_label_share(dataset: Dataset, samples_per_sort: int, stratified: bool) -> None:
    """Log how many of the answers that are sorted together will be positive; warn where often all or none.

    samples_per_sort: answers that are sorted together. stratified: whether the labels are spread over them.
    """
    labels = _labels(dataset)
    positives, total = int(labels.sum()), len(labels)
    size = min(samples_per_sort, total)
    LOG.info(
        f"{positives:,} of {total:,} answers are positive ({positives / total:.1%}): about "
        f"{size * positives / total:.1f} of the {size} that are sorted together"
    )
    share = one_label_share(positives, total - positives, size, stratified)
    if share > MAX_ONE_LABEL_SHARE:
        remedy = "enlarge the effective batch" + ("" if stratified else ", or set `aot_stratify: true`")
        LOG.warning(
            f"about {share:.0%} of the batches that are sorted will hold answers of one label only, and "
            f"contribute no loss: {remedy}"
        )


def one_label_share(positives: int, negatives: int, size: int, stratified: bool) -> float:
    """The share of batches of `size` samples that are to be expected to hold one label only."""
    total = positives + negatives
    if stratified:
        batches = max(1, -(-total // size))
        return max(0, batches - min(positives, negatives)) / batches
    share = positives / total
    return share**size + (1 - share) ** size


def _labels(dataset: Dataset) -> np.ndarray:
    """The labels, shape (samples,). `unique` would first write a copy of a shuffled data set, all of it."""
    return dataset.with_format("numpy")["label"][:]
