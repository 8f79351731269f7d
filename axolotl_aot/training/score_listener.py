"""Callbacks that want to know what a run scores anyway, such as the report."""

from transformers import TrainerCallback, TrainerState

from axolotl_aot.training.objective import Scores


class ScoreListener(TrainerCallback):
    """A callback that is told of scored samples, on every process; the scores are of all processes."""

    def on_step_scored(self, state: TrainerState, scores: Scores) -> None:
        """Of samples of an optimizer step, before it is taken.

        All of them at once; with `aot_scope: micro_batch` once for each micro-batch.
        """

    def on_evaluation_scored(self, state: TrainerState, scores: Scores) -> None:
        """Of an evaluation set's samples, in its order, in an evaluation while training."""
