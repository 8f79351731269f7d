"""Columns with values of several types, in a table that allows one type each: kept as JSON.

Each value is encoded once and decoded once. `datasets` has a feature for such columns, `Json`; but it takes a
text that happens to be JSON for JSON, so that `"5"` comes back as a number and `"null"` as nothing.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from datasets import Dataset


@dataclass(frozen=True)
class DecodeJson:
    """For `Dataset.with_transform`: the values of these columns, decoded; other columns as they are."""

    columns: frozenset[str]

    def __call__(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        return {
            name: [json.loads(value) for value in values] if name in self.columns else values
            for name, values in batch.items()
        }


def encoded(value: Any) -> str:
    """The value as JSON; what JSON does not know, such as a date, as text."""
    return json.dumps(value, default=str)


def with_json_columns(dataset: Dataset, columns: Iterable[str]) -> Dataset:
    """The data set, of which these columns hold `encoded` values, with the values themselves."""
    return dataset.with_transform(DecodeJson(frozenset(columns)))
