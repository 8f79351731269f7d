"""Whether a run's batches can hold what they must: the longest sample, and two answers to compare."""

from collections.abc import Sequence

import pyarrow.compute as pc
from datasets import Dataset

from axolotl_aot.errors import AOTConfigError

BATCH_KEYS = "micro_batch_size x gradient_accumulation_steps x processes"


def require_samples_fit(longest: int, sequences_per_sample: int, limit: int | None) -> None:
    """Raises AOTConfigError where a sample alone may exceed `aot_max_tokens_per_micro_batch`.

    longest: tokens of the longest sequence. limit: None for any number.
    """
    if limit is None:
        return
    needed = sequences_per_sample * longest
    if needed > limit:
        raise AOTConfigError(
            f"`aot_max_tokens_per_micro_batch: {limit}`: the longest sample takes {needed} "
            f"tokens ({sequences_per_sample} x {longest}); set it to that or more, or lower sequence_len"
        )


def longest_sequence(dataset: Dataset, columns: Sequence[str]) -> int:
    """Tokens of the longest prompt with a completion.

    columns: of the tokenized data, that hold a sample's completions.
    """
    lengths = dataset.select_columns(["prompt_ids", *columns]).with_format("arrow")
    return max(
        pc.max(pc.add(pc.list_value_length(rows["prompt_ids"]), pc.list_value_length(rows[name]))).as_py()
        for rows in lengths.iter(batch_size=10_000)
        for name in columns
    )


def require_two_samples(samples: int, scope: str) -> None:
    """Raises AOTConfigError where single answers would be sorted; samples: that are sorted together."""
    if samples < 2:
        key = BATCH_KEYS if scope == "effective_batch" else "micro_batch_size"
        raise AOTConfigError(
            f"`{key}: {samples}` with `aot_scope: {scope}`: one answer has one "
            "label, and rl: aot_unpaired has nothing to compare it with; set it to 2 or more (16 is a "
            "start)"
        )
