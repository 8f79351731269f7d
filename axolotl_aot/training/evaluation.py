"""Evaluation over the whole set at once, not an average over batches."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.trainer_utils import EvalLoopOutput

from axolotl_aot.errors import AOTConfigError
from axolotl_aot.training.objective import ScoringMixin


class EvaluationMixin(ScoringMixin):
    """Trainer's evaluation, with the loss and the metrics of all samples of all processes together.

    They do not depend on the batch size or on the number of processes. So `eval_loss` is the dominance
    loss alone: the router's auxiliary loss of a mixture of experts is defined by batches.
    """

    _eval_rows: list[Tensor]  # of the evaluation that is running
    evaluated_rows: Tensor  # of the last evaluation, in the order of its data set

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[None, None, None]:
        """Collect the rows of a batch from all processes, each sample once."""
        rows = self._rows(model, self._prepare_inputs(inputs))
        self._eval_rows.append(self.accelerator.gather_for_metrics(rows))
        return None, None, None

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """Trainer's loop; loss and metrics come from all rows. The random state is as it was before.

        Raises:
            AOTConfigError: an engine that cannot evaluate what it has not trained, as for `axolotl evaluate`.
        """
        self._require_an_engine_that_evaluates()
        self._eval_rows = []
        with torch.random.fork_rng(devices=[]):  # a data loader draws a seed for its workers
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        self.evaluated_rows = rows = torch.cat(self._eval_rows)
        self._eval_rows = []
        self._require_finite(rows)
        metrics = {"loss": self._loss(rows).item(), **self._metrics_of(rows)}
        output.metrics.update({f"{metric_key_prefix}_{k}": v for k, v in metrics.items()})
        return output

    def _require_an_engine_that_evaluates(self) -> None:
        trained = self.is_in_train or self.state.global_step
        if not trained and self.accelerator.is_fsdp2:
            key, why = "fsdp_config", "FSDP2 takes a model together with its optimizer only"
        elif not trained and self.is_deepspeed_enabled and not is_deepspeed_zero3_enabled():
            key, why = "deepspeed", "DeepSpeed evaluates under ZeRO-3 only"
        else:
            return
        raise AOTConfigError(
            f"`{key}` in an evaluation without training: {why}; evaluate with the same YAML without {key}, "
            "in one process or several"
        )
