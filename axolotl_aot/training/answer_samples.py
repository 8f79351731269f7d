"""Answers of the reference and of the trained policy to a few evaluation prompts, for the report."""

from typing import Any

from accelerate.utils import is_peft_model
from axolotl.utils.logging import get_logger
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from axolotl_aot.generation.evaluation_prompts import EvaluationPrompts, evaluation_prompts, greedy_answers
from axolotl_aot.report.answers import answer_metrics, answers_shown, no_answers
from axolotl_aot.training.interrupt import interruptible
from axolotl_aot.training.reference import as_reference

LOG = get_logger(__name__)


class AnswerSamples(TrainerCallback):
    """Has both models answer when training has ended, on the main process, and logs what is measured.

    The best model is loaded by then, if it is to be. Training itself is not touched.

    trainer: built; its evaluation set must not be empty. count: how many prompts. answers: what the report
    shows, once training has ended; None before, and on other processes.
    """

    def __init__(self, trainer: Trainer, count: int):
        self.answers: dict[str, Any] | None = None
        self._trainer: Trainer | None = trainer
        self._count = count
        # before the trackers, which close when training ends
        trainer.callback_handler.callbacks.insert(0, self)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """A failure, or Ctrl-C, is no reason to lose the trained model."""
        trainer, self._trainer = self._trainer, None  # it would be kept alive
        if trainer is None or not state.is_world_process_zero:
            return
        try:
            with interruptible():
                self.answers = _answers(trainer, self._count)
                if metrics := answer_metrics(self.answers):
                    trainer.log(metrics)
        except (Exception, KeyboardInterrupt) as error:
            why = f"{type(error).__name__}: {error}".removesuffix(": ")
            if self.answers is None:
                self.answers = no_answers(why)
            else:
                LOG.warning(f"what was measured of the model's answers is not logged: {why}")
        if self.answers["why_not"] is not None:
            LOG.warning(f"no answers in the report: {self.answers['why_not']}")


def _why_not(trainer: Trainer) -> str | None:
    """None where one process can have a model answer; else the engine under which it cannot."""
    engine = (
        "FSDP" if trainer.is_fsdp_enabled else "DeepSpeed ZeRO-3" if is_deepspeed_zero3_enabled() else None
    )
    if engine is None:
        return None
    return f"under {engine} no process holds all weights; `axolotl aot-report` has the saved model answer"


def _answers(trainer: Trainer, count: int) -> dict[str, Any]:
    why = _why_not(trainer)
    if why is not None:
        return no_answers(why)
    policy = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    tokenizer = trainer.processing_class
    columns = trainer.objective.samples.columns
    asked = evaluation_prompts(trainer.eval_dataset, columns, count, policy, tokenizer)
    LOG.info(
        f"{len(asked.prompts)} evaluation prompts are answered, before and after training, in up to "
        f"{asked.max_new_tokens} tokens each (aot_report_samples)"
    )
    with trainer.compute_loss_context_manager():  # the precision of training
        after = greedy_answers(policy, asked)
        before = _reference_answers(trainer, policy, asked)
    return answers_shown(asked, before, after, tokenizer)


def _reference_answers(trainer: Trainer, policy: Any, asked: EvaluationPrompts) -> list[list[int]]:
    if trainer.ref_model is not None:
        reference = trainer.accelerator.unwrap_model(trainer.ref_model, keep_torch_compile=False)
        return greedy_answers(reference, asked)
    if not is_peft_model(policy):
        raise ValueError("the run has no reference model of its own")
    with as_reference(policy):
        return greedy_answers(policy, asked)
