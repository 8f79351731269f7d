"""How axolotl comes to load the data of `rl: aot...`: by this package's pipeline, in every command.

axolotl has a hook for that, `load_datasets`, but `axolotl evaluate` does not call it. What `train`,
`preprocess` and `evaluate` all come to is `axolotl.common.datasets.prepare_preference_datasets`; that
name is given another function, once, which passes every other config on.
"""

import functools
from typing import TYPE_CHECKING, Any

from axolotl_aot import config

if TYPE_CHECKING:
    from axolotl_aot.data.pipeline import Pipeline


def install() -> None:
    """Let axolotl load the data of AOT configs through this package; a second call does nothing."""
    from axolotl.common import datasets

    if not isinstance(datasets.prepare_preference_datasets, _Door):
        datasets.prepare_preference_datasets = _Door(datasets.prepare_preference_datasets)


def pipeline_of(cfg: Any, tokenizer: Any) -> "Pipeline":
    """The data of a translated config."""
    from axolotl_aot.data.pipeline import Pipeline

    aot = config.settings(cfg)
    whole = aot.aot_scope == "effective_batch"
    return Pipeline(
        cfg,
        tokenizer,
        config.active_rl(cfg),
        cfg[config.ENTRIES],
        sort_size=cfg.batch_size if whole else cfg.micro_batch_size,
        stratified=aot.aot_stratify,
    )


class _Door:
    def __init__(self, theirs: Any):
        self._theirs = theirs
        functools.update_wrapper(self, theirs)

    def __call__(self, cfg: Any, tokenizer: Any) -> Any:
        if config.active_rl(cfg) is None:
            return self._theirs(cfg, tokenizer)
        return pipeline_of(cfg, tokenizer).prepare()
