"""The trainers behind `rl: aot` and `rl: aot_unpaired`: axolotl's own DPO and KTO trainers, with the
dominance loss in place of theirs.

What is common to both is put together from `axolotl_aot.training.effective_batch`, `evaluation`, `reporting`,
`precompute` and `resume`; besides, here stands how a row of either kind of data becomes samples. May
import those, `batches`, `checks`, `handover`, `references`, `sampling` and `scoring`; axolotl.
"""

from typing import Any, ClassVar

import pyarrow.compute as pc
import torch
from axolotl.core.trainers import AxolotlKTOTrainer
from axolotl.core.trainers.dpo.trainer import AxolotlDPOTrainer
from axolotl.utils.logging import get_logger
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, set_seed

from axolotl_aot.errors import AOTConfigError
from axolotl_aot.scoring.batches import WEIGHT, Batch, Collator
from axolotl_aot.scoring.reference_cache import fingerprint
from axolotl_aot.training.objective import Completions, Distributions
from axolotl_aot.training.precompute import PrecomputeMixin
from axolotl_aot.training.report_callback import ReportMixin
from axolotl_aot.training.resume import ResumeMixin
from axolotl_aot.training.run_setup import AOTSetup
from axolotl_aot.training.sampling import ShuffledSampler, StratifiedSampler

LOG = get_logger(__name__)

LABEL = 2  # the column of an unpaired sample's label
# `aot_` keys that change how a step is computed, and nothing of what it computes.
NOT_OF_THE_RUN = {"aot_padding_free", "aot_max_tokens_per_micro_batch", "aot_report"}
BATCH_KEYS = "micro_batch_size x gradient_accumulation_steps x processes"

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


class AOTMixin(PrecomputeMixin, ReportMixin, ResumeMixin):
    """What AOT makes of a TRL trainer.

    rl: its type in the YAML. without_effect: the `aot_` keys that it does not read.
    """

    rl: ClassVar[str]
    without_effect: ClassVar[set[str]] = set()

    def __init__(
        self,
        model: PreTrainedModel,
        ref_model: PreTrainedModel | None = None,
        *,
        callbacks: list | None = None,
        **kwargs: Any,
    ):
        self.setup = AOTSetup.among(callbacks)
        self.aot = self.setup.args
        # LoRA's matrices are drawn in TRL's __init__, before Trainer sets the seed
        set_seed(kwargs["args"].seed)
        model, ref_model = self.setup.models(model, ref_model, kwargs.get("peft_config"))
        callbacks = [*(c for c in callbacks or [] if c is not self.setup), self.setup]
        super().__init__(model, ref_model, callbacks=callbacks, **kwargs)
        if self.setup.adapter and "ref" in self.accelerator.unwrap_model(self.model).peft_config:
            # TRL takes a loaded adapter for the start of training and copies it as the reference;
            # the reference of a trained AOT adapter is the model without it
            self.model.delete_adapter("ref")
        self._require_samples_fit()
        self._attach(self.model, self.ref_model)
        self._prepare_references()
        lookup = None if self.references is None else self.references.lookup
        self.data_collator = Collator(self.completions, lookup)

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        """TRL's place to tokenize: `axolotl_aot.data` has done that, template and length included."""
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if WEIGHT not in self._signature_columns:
            self._signature_columns.append(WEIGHT)

    def _require_samples_fit(self) -> None:
        limit = self.aot.aot_max_tokens_per_micro_batch
        if limit is None:
            return
        columns = self.train_dataset.select_columns(["prompt_ids", *self.completions]).with_format("arrow")
        longest = max(
            pc.max(pc.add(pc.list_value_length(rows["prompt_ids"]), pc.list_value_length(rows[name]))).as_py()
            for rows in columns.iter(batch_size=10_000)
            for name in self.completions
        )
        if self.sides * longest > limit:
            raise AOTConfigError(
                f"`aot_max_tokens_per_micro_batch: {limit}`: the longest sample takes {self.sides * longest} "
                f"tokens ({self.sides} x {longest}); set it to that or more, or lower sequence_len"
            )

    @property
    def _begins_as_reference(self) -> bool:
        return self.setup.adapter is not None  # a YAML's model; others are taken as they come

    def _reference_fingerprint(self) -> str:
        model = self.accelerator.unwrap_model(self.ref_model or self.model)
        return fingerprint(model.config, precision=self.accelerator.mixed_precision, dtype=model.dtype)

    def _run_settings(self) -> dict[str, Any]:
        aot = self.aot.model_dump(exclude=self.without_effect | NOT_OF_THE_RUN)
        settings = {"rl": self.rl, "rl_beta": self.beta, **aot}
        if not self._whole:
            settings["micro_batch_size"] = self._sort_size
        # what the order of the samples depends on
        order = {"seed": self._data_seed, "rows of datasets": len(self.train_dataset)}
        return {**settings, **order, BATCH_KEYS: self.effective_batch_size}


class AOTTrainer(AOTMixin, AxolotlDPOTrainer):
    """Paired AOT: the policy's margins must dominate the reference's (arXiv 2406.05882, eq. 5).

    A sequence's rows are (chosen, rejected, chosen under the reference, rejected under it).
    """

    rl = "aot"
    without_effect: ClassVar = {"aot_stratify"}
    tag_names: ClassVar = ["axolotl", "aot"]
    _tag_names: ClassVar = ["trl", "aot"]
    _name = "AOT"
    _paper = PAPER
    paired = True
    completions = ("chosen_ids", "rejected_ids")
    columns = 4

    def _pack(self, policy: Tensor, reference: Tensor, batch: Batch) -> Tensor:
        return torch.stack([*policy.chunk(2), *reference.chunk(2)], dim=1)

    def _unpack(self, rows: Tensor) -> Completions:
        chosen, rejected, chosen_reference, rejected_reference = rows[:, : self.columns].unbind(dim=1)
        return Completions(chosen, chosen_reference, rejected, rejected_reference)

    def _distributions(self, rows: Tensor) -> Distributions:
        chosen, chosen_reference, rejected, rejected_reference = self._unpack(rows)
        weights = self._weights(rows)
        return Distributions(chosen - rejected, chosen_reference - rejected_reference, weights, weights)

    def _rows_by_label(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        numbers = torch.arange(len(rows))
        return numbers, numbers

    def _by_policy(self, gradient: Tensor) -> Tensor:
        return gradient[:, :2].T.reshape(-1)

    def _training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        # Past AxolotlDPOTrainer's own, which collects garbage and empties the allocator's cache after
        # every micro-batch; torch_empty_cache_steps and gc_steps do that at the user's choice.
        return super(AxolotlDPOTrainer, self).training_step(*args, **kwargs)


class AOTUnpairedTrainer(AOTMixin, AxolotlKTOTrainer):
    """Unpaired AOT: the positives' rewards must dominate the negatives' (arXiv 2406.05882, eq. 7).

    A sequence's rows are (log-probability, the same under the reference, label).
    """

    rl = "aot_unpaired"
    tag_names: ClassVar = ["axolotl", "aot"]
    _tag_names: ClassVar = ["trl", "aot"]
    _name = "AOT unpaired"
    _paper = PAPER
    paired = False
    completions = ("completion_ids",)
    columns = 3

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._require_two_samples()

    def _pack(self, policy: Tensor, reference: Tensor, batch: Batch) -> Tensor:
        return torch.stack([policy, reference, batch["label"].to(policy)], dim=1)

    def _unpack(self, rows: Tensor) -> Completions:
        policy, reference, label = rows[:, : self.columns].unbind(dim=1)
        chosen = label > 0.5
        return Completions(policy[chosen], reference[chosen], policy[~chosen], reference[~chosen])

    def _distributions(self, rows: Tensor) -> Distributions:
        chosen, chosen_reference, rejected, rejected_reference = self._unpack(rows)
        weights, label = self._weights(rows), rows[:, LABEL] > 0.5
        masses = (None, None) if weights is None else (weights[label], weights[~label])
        return Distributions(chosen - chosen_reference, rejected - rejected_reference, *masses)

    def _rows_by_label(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        chosen = rows[:, LABEL] > 0.5
        return chosen.nonzero()[:, 0], (~chosen).nonzero()[:, 0]

    def _by_policy(self, gradient: Tensor) -> Tensor:
        return gradient[:, 0]

    def _require_two_samples(self) -> None:
        if self._sort_size < 2:
            key = BATCH_KEYS if self._whole else "micro_batch_size"
            raise AOTConfigError(
                f"`{key}: {self._sort_size}` with `aot_scope: {self.aot.aot_scope}`: one answer has one "
                "label, and rl: aot_unpaired has nothing to compare it with; set it to 2 or more (16 is a "
                "start)"
            )

    def _sampler(self, dataset: Dataset) -> ShuffledSampler:
        if not self.aot.aot_stratify:
            return super()._sampler(dataset)
        return StratifiedSampler(dataset["label"], self._sort_size, self._data_seed, self._epoch)

    def _record(self, samples: Tensor, sorts: Tensor) -> None:
        super()._record(samples, sorts)
        positives = (sorts[..., LABEL] > 0.5).sum(dim=1)
        one_label = int(((positives == 0) | (positives == sorts.shape[1])).sum())
        if one_label:
            self.setup.one_label_steps += one_label
            LOG.warning_once(
                "answers that are sorted together have one label only and contribute no loss; a larger "
                "effective batch makes that rare. dominance/one_label_steps counts such steps."
            )
        self._metrics["train"]["dominance/one_label_steps"] = [self.setup.one_label_steps]
