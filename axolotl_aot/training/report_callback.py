"""The report of a training run: what is kept for it while training, and how it is written in the end."""

from collections import deque
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import torch
from axolotl.utils.logging import get_logger
from PIL import Image
from torch import Tensor
from transformers.integrations import TensorBoardCallback, WandbCallback
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from axolotl_aot.report.figures import live_figure
from axolotl_aot.report.runs import Answers, Run, ScoredRun
from axolotl_aot.training.effective_batch import EffectiveBatchMixin
from axolotl_aot.training.evaluation import EvaluationMixin
from axolotl_aot.training.run_setup import AOTSetup

LOG = get_logger(__name__)

LAST_SAMPLES = 512  # of the last steps, kept where there is no evaluation set
TAG = "eval/dominance/quantiles"  # of the plot of an evaluation


class ReportMixin(EffectiveBatchMixin, EvaluationMixin):
    """Keeps what the report needs, and shows each evaluation's quantile curves where the run reports to.

    `self.setup` is handed the record when training has ended.
    """

    setup: AOTSetup
    rl: str

    def __init__(self, *args: Any, **kwargs: Any):
        self._evaluations: dict[int, Tensor] = {}  # rows, by optimizer step
        self._last_steps: deque[tuple[int, Tensor]] = deque()
        super().__init__(*args, **kwargs)

    def _rows_by_label(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers of the rows that hold chosen answers, and of those that hold rejected ones."""
        raise NotImplementedError

    @property
    def _reports(self) -> bool:
        return self.aot.aot_report and self.is_world_process_zero()

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        output = super().train(*args, **kwargs)
        if self._reports and (self._evaluations or self._last_steps):
            try:
                self.setup.record = self._run_record()
            except Exception as error:  # what was trained is not saved yet
                LOG.warning(f"no dominance report: {type(error).__name__}: {error}")
        return output

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        output = super().evaluation_loop(*args, **kwargs)
        if self._reports and self.is_in_train:
            step = self.state.global_step
            # the best so far is loaded in the end only if a checkpoint is of its step
            kept = {self.state.best_global_step, self._best_saved_step}
            self._evaluations = {s: rows for s, rows in self._evaluations.items() if s in kept}
            self._evaluations[step] = self.evaluated_rows.cpu()
            self._show(step)
        return output

    @property
    def _best_saved_step(self) -> int | None:
        """Of the checkpoint that Trainer loads in the end with load_best_model_at_end."""
        best = self.state.best_model_checkpoint
        return None if best is None else int(best.rpartition("-")[2])

    def _record(self, samples: Tensor, sorts: Tensor) -> None:
        super()._record(samples, sorts)
        if self._reports:
            self._last_steps.append((self.state.global_step + 1, samples.cpu()))
            kept = sum(len(rows) for _, rows in self._last_steps)
            while kept - len(self._last_steps[0][1]) >= LAST_SAMPLES:
                kept -= len(self._last_steps.popleft()[1])

    def _run(self, rows: Tensor) -> Run:
        chosen, chosen_reference, rejected, rejected_reference = self._unpack(rows.double())
        weights = self._distributions(rows.double())[2:]
        sides = (chosen, chosen_reference), (rejected, rejected_reference)
        answers = (
            Answers(*map(Tensor.numpy, side), None if mass is None else mass.numpy(), numbers.numpy())
            for side, mass, numbers in zip(sides, weights, self._rows_by_label(rows), strict=True)
        )
        return Run(self.rl, self.paired, *answers)

    def _run_record(self) -> ScoredRun:
        common = {"history": self.state.log_history, "tokenizer": self.processing_class}
        if self._evaluations:
            best = self._best_saved_step if self.args.load_best_model_at_end else None
            step = best if best in self._evaluations else max(self._evaluations)
            run = self._run(self._evaluations[step])
            samples = f"{len(self._evaluations[step]):,} {'pairs' if self.paired else 'answers'}"
            description = f"the evaluation set ({samples}), after optimizer step {step}"
            if best not in (None, step):
                description += (
                    f"; what is saved is the model of step {best}, which was scored before this run was "
                    "resumed: `axolotl aot-report` scores it anew"
                )
            source = {"kind": "evaluation set", "step": step, "description": description}
            return ScoredRun(run, source, dataset=self.eval_dataset, **common)
        steps, rows = zip(*self._last_steps, strict=True)
        samples = f"{sum(map(len, rows)):,} {'pairs' if self.paired else 'answers'}"
        why = "there is no evaluation set" if self.eval_dataset is None else "no evaluation ran"
        source = {
            "kind": "last effective batches",
            "step": steps[-1],
            "description": f"the effective batches of the optimizer steps {steps[0]} to {steps[-1]}, each "
            f"scored in its step, as {why}: {samples} that the model was trained on",
        }
        return ScoredRun(self._run(torch.cat(rows)), source, **common)

    def _show(self, step: int) -> None:
        """Send an evaluation's quantile curves to TensorBoard and wandb, where they are in use."""
        sinks = [
            (send, c)
            for kind, send in SINKS.items()
            for c in self.callback_handler.callbacks
            if isinstance(c, kind)
        ]
        if not sinks:
            return
        try:
            file = BytesIO()
            live_figure(self._run(self._evaluations[step]), step).savefig(file, format="png")
            for send, callback in sinks:
                send(callback, Image.open(file), step)
        except Exception as error:  # a run must not end because a plot cannot be shown
            LOG.warning(f"the quantile curves of step {step} are not shown: {type(error).__name__}: {error}")


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
