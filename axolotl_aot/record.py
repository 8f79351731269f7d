"""What a training run leaves for its report, once the trainer is gone.

May import `axolotl_aot.report`; datasets and transformers.
"""

from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from axolotl_aot.report import Run


@dataclass(frozen=True)
class RunRecord:
    """Answers scored in a run, and its log; of the main process.

    source: which answers they are, as `report` takes it. history: Trainer's log. dataset: whose rows
    they are, tokenized; None where their texts are not to be found.
    """

    run: Run
    source: dict[str, Any]
    history: list[dict[str, float]]
    tokenizer: PreTrainedTokenizerBase
    dataset: Dataset | None = None
