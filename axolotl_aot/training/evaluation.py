"""Evaluation over the whole set at once, not an average over batches."""

from transformers import Trainer
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from axolotl_aot.errors import AOTConfigError
from axolotl_aot.training.gathering import gather_for_metrics, join
from axolotl_aot.training.objective import Objective, Scores
from axolotl_aot.training.score_checks import require_finite


class Evaluation:
    """One evaluation, whose scores are collected batch by batch.

    Loss and metrics are of all samples of all processes together: they depend neither on the batch size nor
    on the number of processes. So `eval_loss` is the objective's loss alone: the router's auxiliary loss of
    a mixture of experts is defined by batches.
    """

    def __init__(self, trainer: Trainer, objective: Objective):
        self._trainer = trainer
        self._objective = objective
        self._batches: list[Scores] = []

    def add(self, scores: Scores) -> None:
        """A batch of this process; those of all processes are collected, each sample once."""
        accelerator = self._trainer.accelerator
        self._batches.append(gather_for_metrics(scores, accelerator, self._objective.sequences_per_sample))

    def scores(self) -> Scores:
        """Of all samples, in the order of the data set.

        Raises:
            FloatingPointError: log-probabilities that are not finite.
        """
        scores = join(self._batches)
        require_finite(scores, self._trainer.state.global_step + 1)
        return scores

    def metrics(self, scores: Scores) -> dict[str, float]:
        """The loss and the metrics of all samples."""
        loss = self._objective.loss(scores)
        return {"loss": loss.value.item(), **self._objective.metrics(scores, loss.coupling)}


def require_an_engine_that_evaluates(trainer: Trainer) -> None:
    """Raises AOTConfigError for an engine that cannot evaluate what it does not train."""
    trained = trainer.is_in_train or trainer.state.global_step
    if not trained and trainer.accelerator.is_fsdp2:
        key, why = "fsdp_config", "FSDP2 takes a model together with its optimizer only"
    elif not trained and trainer.is_deepspeed_enabled and not is_deepspeed_zero3_enabled():
        key, why = "deepspeed", "DeepSpeed evaluates under ZeRO-3 only"
    else:
        return
    raise AOTConfigError(
        f"`{key}` in an evaluation without training: {why}; evaluate with the same YAML without {key}, "
        "in one process or several"
    )
