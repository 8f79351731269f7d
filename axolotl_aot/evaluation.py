"""Evaluation over the whole set at once, not an average over batches.

May import `axolotl_aot.scoring`; torch and transformers.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.trainer_utils import EvalLoopOutput

from axolotl_aot.scoring import ScoringMixin


class EvaluationMixin(ScoringMixin):
    """Trainer's evaluation, with the loss and the metrics of all samples of all processes together.

    They do not depend on the batch size or on the number of processes. So `eval_loss` is the dominance
    loss alone: the router's auxiliary loss of a mixture of experts is defined by batches.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        self._eval_rows: list[Tensor] = []
        super().__init__(*args, **kwargs)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[None, None, None]:
        """Collect the rows of a batch from all processes, each sample once."""
        rows = self._rows(model, self._prepare_inputs(inputs))
        self._eval_rows.append(self.accelerator.gather_for_metrics(rows))
        return None, None, None

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """Trainer's loop; loss and metrics come from all rows. The random state is as it was before."""
        self._eval_rows = []
        with torch.random.fork_rng(devices=[]):  # a data loader draws a seed for its workers
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        rows = torch.cat(self._eval_rows)
        self._eval_rows = []
        self._require_finite(rows)
        metrics = {"loss": self._loss(rows).item(), **self._metrics_of(rows)}
        output.metrics.update({f"{metric_key_prefix}_{k}": v for k, v in metrics.items()})
        return output
