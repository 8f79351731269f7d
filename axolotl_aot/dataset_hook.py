"""How axolotl comes to load the data of `rl: aot...`: by this package's pipeline, in every command.

axolotl has a hook for that, `load_datasets`, but `axolotl evaluate` does not call it. `train`, `preprocess`
and `evaluate` all call `axolotl.common.datasets.prepare_preference_datasets`, so that function is replaced,
once, by one that hands every other config on to the original.
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from axolotl_aot import config

if TYPE_CHECKING:
    from axolotl_aot.data.pipeline import Pipeline


def install() -> None:
    """Let axolotl load the data of AOT configs through this package; a second call does nothing."""
    from axolotl.common import datasets

    if not isinstance(datasets.prepare_preference_datasets, DatasetHook):
        datasets.prepare_preference_datasets = DatasetHook(datasets.prepare_preference_datasets)


def pipeline_of(cfg: Any, tokenizer: Any) -> "Pipeline":
    """The data of a translated config."""
    from axolotl_aot.data.pipeline import Pipeline

    aot = config.settings(cfg)
    sorts_effective_batch = aot.aot_scope == "effective_batch"
    return Pipeline(
        cfg,
        tokenizer,
        config.active_rl(cfg),
        cfg[config.ENTRIES],
        samples_per_sort=cfg.batch_size if sorts_effective_batch else cfg.micro_batch_size,
        stratified=aot.aot_stratify,
    )


class DatasetHook:
    """In place of axolotl's `prepare_preference_datasets`; `original` is that function."""

    def __init__(self, original: Callable[[Any, Any], Any]):
        self.original = original
        functools.update_wrapper(self, original)

    def __call__(self, cfg: Any, tokenizer: Any) -> Any:
        if config.active_rl(cfg) is None:
            return self.original(cfg, tokenizer)
        return pipeline_of(cfg, tokenizer).prepare()
