"""The trainers behind `rl: aot` and `rl: aot_unpaired`: axolotl's own DPO and KTO trainers, with the
objective in place of their loss.
"""

from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate.utils import broadcast, is_peft_model
from axolotl.core.trainers import AxolotlKTOTrainer
from axolotl.core.trainers.dpo.trainer import AxolotlDPOTrainer
from datasets import Dataset
from peft import PeftConfig
from torch import Tensor, nn
from torch.distributed.fsdp import StateDictType
from transformers import PreTrainedModel, set_seed
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from axolotl_aot.scoring.batches import REFERENCE_LOGPROBS, WEIGHT, Batch, Collator
from axolotl_aot.scoring.forward import attach
from axolotl_aot.scoring.models import REFERENCE_ADAPTER, without_adapter
from axolotl_aot.scoring.scorer import MIXED_PRECISION, Scorer
from axolotl_aot.training.adapter_precision import kept_precision, restore_copies
from axolotl_aot.training.batch_checks import (
    BATCH_KEYS,
    longest_sequence,
    require_samples_fit,
    require_two_samples,
)
from axolotl_aot.training.effective_batch import EffectiveBatchMixin
from axolotl_aot.training.evaluation import Evaluation, require_an_engine_that_evaluates
from axolotl_aot.training.fsdp2_fixes import load_into_shards
from axolotl_aot.training.kept_graphs import KeptGraphs
from axolotl_aot.training.lora_inputs import spare_input_copies
from axolotl_aot.training.objective import Objective, PairedObjective, UnpairedObjective
from axolotl_aot.training.precompute import PrecomputedReferences
from axolotl_aot.training.reference import Reference
from axolotl_aot.training.restored_settings import restored_settings
from axolotl_aot.training.resume import RunState, find_checkpoint, go_on_from
from axolotl_aot.training.run_models import policy_and_reference
from axolotl_aot.training.run_setup import AOTSetup
from axolotl_aot.training.start_adapter import StartAdapter, start_from
from axolotl_aot.training.step_scores import StepScoring, scores_of
from axolotl_aot.training.tied_embeddings import require_mergeable

# `aot_` keys that a run may change half-way: they change how a step is computed, not what, or the report.
NOT_OF_THE_RUN = {
    "aot_padding_free",
    "aot_max_tokens_per_micro_batch",
    "aot_report",
    "aot_report_samples",
}

PAPER = {
    "title": "Distributional Preference Alignment of LLMs via Optimal Transport",
    "id": "2406.05882",
    "citation": """\
@inproceedings{melnyk2024distributional,
    title     = {{Distributional Preference Alignment of LLMs via Optimal Transport}},
    author    = {Igor Melnyk and Youssef Mroueh and Brian Belgodere and Mattia Rigotti and Apoorva Nitsure
                 and Mikhail Yurochkin and Kristjan Greenewald and Jiri Navratil and Jarret Ross},
    booktitle = {Advances in Neural Information Processing Systems 37},
    year      = 2024,
}""",
}


class AOTMixin(EffectiveBatchMixin):
    """What AOT makes of a TRL trainer.

    objective_class: what is minimised. without_effect: the `aot_` keys that it does not read.
    """

    objective_class: ClassVar[type[Objective]]
    without_effect: ClassVar[set[str]] = set()

    def __init__(
        self,
        model: PreTrainedModel,
        ref_model: PreTrainedModel | None = None,
        *,
        callbacks: list | None = None,
        **kwargs: Any,
    ):
        setup = AOTSetup.from_callbacks(callbacks)
        self.aot = setup.args
        self.begins_as_reference = setup.adapter is not None  # a YAML's model; others are taken as they come
        self._auto_resume = setup.auto_resume
        # LoRA's matrices are drawn in TRL's __init__, before Trainer sets the seed
        set_seed(kwargs["args"].seed)
        model, ref_model = policy_and_reference(setup, model, ref_model, kwargs.get("peft_config"))
        self.run_state = RunState()
        callbacks = [*(c for c in callbacks or [] if c is not setup), self.run_state]
        super().__init__(model, ref_model, callbacks=callbacks, **kwargs)
        if is_peft_model(self.model):
            spare_input_copies(self.model)
        self.start_adapter = self._set_up_adapter(setup, kwargs.get("peft_config")) if setup.adapter else None
        self.objective = self.objective_class(self.aot, self.beta)
        self._check_batches()
        self._set_up_scoring(setup.reference_folder)

    def _set_up_adapter(self, setup: AOTSetup, peft_config: PeftConfig | None) -> StartAdapter | None:
        """What TRL has made of the adapter, as AOT needs it; what training starts from, if that is named."""
        policy = self.accelerator.unwrap_model(self.model)
        if peft_config is None:
            # a trained adapter: TRL takes it for the start of training and copies it as the reference,
            # which here is the model without it
            if REFERENCE_ADAPTER in policy.peft_config:
                policy.delete_adapter(REFERENCE_ADAPTER)
            return None
        require_mergeable(policy, setup.merge_method)
        restore_copies(policy)
        if not setup.lora_model_dir:
            return None
        return start_from(policy, setup.lora_model_dir, setup.output_dir)

    def _check_batches(self) -> None:
        columns = self.objective.samples.columns
        self.longest_sequence = longest_sequence(self.train_dataset, columns)
        require_samples_fit(self.longest_sequence, len(columns), self.aot.aot_max_tokens_per_micro_batch)
        if not self.objective.samples.paired:
            require_two_samples(self.samples_per_sort, self.aot.aot_scope)

    def _set_up_scoring(self, reference_folder: Path | None) -> None:
        for model in filter(None, (self.model, self.ref_model)):
            attach(without_adapter(self.accelerator.unwrap_model(model, keep_torch_compile=False)))
        self.scorer = Scorer(
            lambda: self.model,
            self.accelerator.device,
            MIXED_PRECISION.get(self.accelerator.mixed_precision),
            autocast=self.compute_loss_context_manager,
            padding_free=self.aot.aot_padding_free,
            needs_one_row=self.aux_loss_enabled,
            trains=True,
            same_everywhere=broadcast,
        )
        self.reference = Reference(self, self.scorer, precomputed=reference_folder is not None)
        self.kept_graphs = KeptGraphs(self)
        self.step_scoring = StepScoring(
            self, self.scorer, self.reference, self.kept_graphs, self.objective.sequences_per_sample
        )
        self.precomputed: PrecomputedReferences | None = None
        lookup = None
        columns = self.objective.samples.columns
        if reference_folder is not None:
            adapter = {} if self.start_adapter is None else {"adapter": self.start_adapter.digest}
            self.precomputed = PrecomputedReferences(
                self, self.reference, self.scorer, reference_folder, columns, **adapter
            )
            self.add_callback(self.precomputed)
            lookup = self.precomputed.cache.lookup
        self.data_collator = Collator(columns, lookup)

    # --- Data --------------------------------------------------------------------------------

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        """TRL's hook to tokenize: `axolotl_aot.data` has done that, template and length included."""
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if WEIGHT not in self._signature_columns:
            self._signature_columns.append(WEIGHT)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Trainer's, which under DeepSpeed casts to the model's precision; the loss needs float32."""
        precise = {k: v.to(self.args.device) for k, v in inputs.items() if k in (REFERENCE_LOGPROBS, WEIGHT)}
        return {**super()._prepare_inputs(inputs), **precise}

    # --- Evaluation --------------------------------------------------------------------------

    def evaluation_loop(
        self, dataloader: Any, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """Trainer's loop; loss and metrics are of all samples. The random state is as it was before.

        Raises:
            AOTConfigError: an engine that cannot evaluate what it has not trained, as for `axolotl evaluate`.
        """
        require_an_engine_that_evaluates(self)
        if self.precomputed is not None:
            self.precomputed.ensure(dataloader.dataset)
        self._evaluation = Evaluation(self, self.objective)
        with torch.random.fork_rng(devices=[]):  # a data loader draws a seed for its workers
            output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        scores = self._evaluation.scores()
        metrics = self._evaluation.metrics(scores)
        output.metrics.update({f"{metric_key_prefix}_{k}": v for k, v in metrics.items()})
        if self.is_in_train:
            for listener in self.score_listeners():
                listener.on_evaluation_scored(self.state, scores)
        return output

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[None, None, None]:
        """Score a batch of the evaluation."""
        batch: Batch = self._prepare_inputs(inputs)
        reference = self.reference.logprobs(batch)
        policy = self.scorer.scores_without_gradients(model, batch).logprobs
        self._evaluation.add(scores_of(batch, policy, reference, self.objective.sequences_per_sample))
        return None, None, None

    # --- Resuming ----------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """Trainer's `train`, which goes on from complete checkpoints of the same run only.

        Raises:
            AOTConfigError: a checkpoint that is incomplete, or that was trained with other settings.
        """
        self.run_state.settings = self._run_settings()
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        adapter = model.peft_config[model.active_adapter] if is_peft_model(model) else None
        self.run_state.restored = restored_settings(self, adapter)
        path = None
        if resume_from_checkpoint:
            checkpoint = find_checkpoint(
                resume_from_checkpoint,
                output_dir=Path(self.args.output_dir),
                newest=self._auto_resume,
                accelerator=self.accelerator,
            )
            if checkpoint is not None:
                go_on_from(checkpoint, self.run_state, self.callback_handler.callbacks)
                self.args.eval_on_start = False  # the start has been
                path = checkpoint.path
        return super().train(resume_from_checkpoint=path, **kwargs)

    def _run_settings(self) -> dict[str, Any]:
        """What a run must not change half-way, by YAML key."""
        without_effect = self.without_effect | NOT_OF_THE_RUN
        if self.aot.aot_sort != "soft":
            without_effect = without_effect | {"aot_soft_sort_strength"}
        aot = self.aot.model_dump(exclude=without_effect)
        settings = {"rl": self.objective.rl, "rl_beta": self.beta, **aot}
        if not self.sorts_effective_batch:
            settings["micro_batch_size"] = self.samples_per_sort
        settings["weights of lora_model_dir"] = self.start_adapter and self.start_adapter.digest
        # what the order of the samples depends on
        order = {"seed": self.data_seed, "rows of datasets": len(self.train_dataset)}
        return {**settings, **order, BATCH_KEYS: self.effective_batch_size}

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        model = self.model if model is None else model
        with kept_precision(model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.accelerator.is_fsdp2 and is_peft_model(model):
            kind = self.accelerator.state.fsdp_plugin.state_dict_type
            if kind is StateDictType.FULL_STATE_DICT:
                load_into_shards(model, resume_from_checkpoint)


class AOTTrainer(AOTMixin, AxolotlDPOTrainer):
    """Paired AOT on axolotl's DPO trainer."""

    objective_class = PairedObjective
    without_effect: ClassVar = {"aot_stratify"}
    tag_names: ClassVar = ["axolotl", "aot"]
    _tag_names: ClassVar = ["trl", "aot"]
    _name = "AOT"
    _paper = PAPER

    def _micro_batch_step(self, *args: Any, **kwargs: Any) -> Tensor:
        # Past AxolotlDPOTrainer's own, which collects garbage and empties the allocator's cache after
        # every micro-batch; torch_empty_cache_steps and gc_steps do that at the user's choice.
        return super(AxolotlDPOTrainer, self).training_step(*args, **kwargs)


class AOTUnpairedTrainer(AOTMixin, AxolotlKTOTrainer):
    """Unpaired AOT on axolotl's KTO trainer."""

    objective_class = UnpairedObjective
    tag_names: ClassVar = ["axolotl", "aot"]
    _tag_names: ClassVar = ["trl", "aot"]
    _name = "AOT unpaired"
    _paper = PAPER
