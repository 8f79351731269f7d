"""What a training run keeps for its report, and the plots that it shows meanwhile.

Training and evaluation score their samples anyway; they tell this callback, and nothing is scored again.
"""

from collections import deque
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import torch
from axolotl.utils.logging import get_logger
from PIL import Image
from torch import Tensor
from transformers import Trainer, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback, WandbCallback

from axolotl_aot.report.figures import live_figure
from axolotl_aot.report.runs import Answers, Run, ScoredRun
from axolotl_aot.training.answer_samples import AnswerSamples
from axolotl_aot.training.gathering import join
from axolotl_aot.training.objective import Objective, Scores
from axolotl_aot.training.score_listener import ScoreListener

LOG = get_logger(__name__)

LAST_SAMPLES = 512  # of the last steps, kept where there is no evaluation set
TAG = "eval/dominance/quantiles"  # of the plot of an evaluation


class ReportCallback(ScoreListener):
    """Keeps the scores that the report is made of, on the main process.

    samples: how many evaluation prompts both models are to answer in the end. scored_run: what the report is
    to be of, once training has ended; None where there is nothing.
    """

    def __init__(self, trainer: Trainer, samples: int = 0):
        self.scored_run: ScoredRun | None = None
        self._objective: Objective = trainer.objective
        self._trackers = trainer.callback_handler.callbacks  # others may be added to them later
        self._reference = trainer.reference.words
        self._evaluation_set = trainer.eval_dataset
        self._best_is_loaded = trainer.args.load_best_model_at_end
        self._evaluations: dict[int, Scores] = {}  # by optimizer step
        self._last_steps: deque[tuple[int, Scores]] = deque()
        self._answer_samples = AnswerSamples(trainer, samples) if samples else None

    def on_step_scored(self, state: TrainerState, scores: Scores) -> None:
        if not state.is_world_process_zero:
            return
        self._last_steps.append((state.global_step + 1, _on_cpu(scores)))
        kept = sum(self._samples(scores) for _, scores in self._last_steps)
        while kept - self._samples(self._last_steps[0][1]) >= LAST_SAMPLES:
            kept -= self._samples(self._last_steps.popleft()[1])

    def on_evaluation_scored(self, state: TrainerState, scores: Scores) -> None:
        """Keep the last evaluation and the best one, and show this one's quantile curves."""
        if not state.is_world_process_zero:
            return
        # the best so far is loaded in the end only if a checkpoint is of its step
        kept = {state.best_global_step, _best_saved_step(state)}
        self._evaluations = {s: scores for s, scores in self._evaluations.items() if s in kept}
        self._evaluations[state.global_step] = _on_cpu(scores)
        self._show(state.global_step)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: Any,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        """Make `scored_run` of what was kept. A failure is no reason to lose the trained model."""
        self._trackers = []  # through them the model would be kept alive
        if not (self._evaluations or self._last_steps):
            return
        try:
            run, source = self._of_an_evaluation(state) if self._evaluations else self._of_the_last_steps()
            dataset = self._evaluation_set if self._evaluations else None
            answers = None if self._answer_samples is None else self._answer_samples.answers
            self.scored_run = ScoredRun(run, source, state.log_history, processing_class, dataset, answers)
        except Exception as error:
            LOG.warning(f"no dominance report: {type(error).__name__}: {error}")

    # --- Which samples the report is of ------------------------------------------------------

    def _of_an_evaluation(self, state: TrainerState) -> tuple[Run, dict[str, Any]]:
        best = _best_saved_step(state) if self._best_is_loaded else None
        step = best if best in self._evaluations else max(self._evaluations)
        scores = self._evaluations[step]
        description = f"the evaluation set ({self._count(scores)}), after optimizer step {step}"
        if best not in (None, step):
            description += (
                f"; what is saved is the model of step {best}, which was scored before this run was "
                "resumed: `axolotl aot-report` scores it anew"
            )
        return self._run(scores), {"kind": "evaluation set", "step": step, "description": description}

    def _of_the_last_steps(self) -> tuple[Run, dict[str, Any]]:
        steps, parts = zip(*self._last_steps, strict=True)
        scores = join(parts)
        why = "there is no evaluation set" if self._evaluation_set is None else "no evaluation ran"
        description = (
            f"the effective batches of the optimizer steps {steps[0]} to {steps[-1]}, each scored in its "
            f"step, as {why}: {self._count(scores)} that the model was trained on"
        )
        source = {"kind": "last effective batches", "step": steps[-1], "description": description}
        return self._run(scores), source

    def _run(self, scores: Scores) -> Run:
        chosen, rejected = self._objective.chosen_and_rejected(scores)
        rows = torch.arange(len(scores.policy)) // self._objective.sequences_per_sample
        return Run(
            self._objective.rl,
            self._objective.samples.paired,
            _answers(chosen, rows[scores.label]),
            _answers(rejected, rows[~scores.label]),
            self._reference,
        )

    def _samples(self, scores: Scores) -> int:
        return len(scores.policy) // self._objective.sequences_per_sample

    def _count(self, scores: Scores) -> str:
        return f"{self._samples(scores):,} {self._objective.samples.unit}"

    # --- Plots while training ----------------------------------------------------------------

    def _show(self, step: int) -> None:
        """Send an evaluation's quantile curves to TensorBoard and wandb, where they are in use."""
        sinks = [
            (send, tracker)
            for kind, send in SINKS.items()
            for tracker in self._trackers
            if isinstance(tracker, kind)
        ]
        if not sinks:
            return
        try:
            file = BytesIO()
            live_figure(self._run(self._evaluations[step]), step).savefig(file, format="png")
            for send, tracker in sinks:
                send(tracker, Image.open(file), step)
        except Exception as error:  # a run must not end because a plot cannot be shown
            LOG.warning(f"the quantile curves of step {step} are not shown: {type(error).__name__}: {error}")


def _on_cpu(scores: Scores) -> Scores:
    return Scores(*(None if field is None else field.cpu() for field in scores))


def _answers(scores: Scores, rows: Tensor) -> Answers:
    """The scores of one label's answers as the report takes them; rows: where they stand in the data set."""
    policy, reference = scores.policy.double().numpy(), scores.reference.double().numpy()
    weights = None if scores.weight is None else scores.weight.double().numpy()
    return Answers(policy, reference, weights, rows.numpy())


def _best_saved_step(state: TrainerState) -> int | None:
    """Of the checkpoint that Trainer loads in the end with load_best_model_at_end."""
    best = state.best_model_checkpoint
    return None if best is None else int(best.rpartition("-")[2])


def _to_tensorboard(callback: TensorBoardCallback, image: Image.Image, step: int) -> None:
    callback.tb_writer.add_image(TAG, np.asarray(image.convert("RGB")), step, dataformats="HWC")


def _to_wandb(callback: WandbCallback, image: Image.Image, step: int) -> None:
    import wandb

    # transformers logs by this number, not by wandb's own steps
    wandb.log({TAG: wandb.Image(image), "train/global_step": step})


SINKS: dict[type, Callable[[Any, Image.Image, int], None]] = {
    TensorBoardCallback: _to_tensorboard,
    WandbCallback: _to_wandb,
}
