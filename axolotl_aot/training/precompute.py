"""`precompute_ref_log_probs: true`: the reference scored once, before the first step or evaluation.

It happens after the model is wrapped, so that it is right under every engine, and every process does as
many forward passes as the others.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list, gather_object
from axolotl.utils.logging import get_logger
from datasets import Dataset
from transformers import Trainer, TrainerCallback

from axolotl_aot.scoring.reference_cache import (
    ReferenceCache,
    ReferenceFileError,
    TokenizedAnswer,
    fingerprint,
    sequences_of,
)
from axolotl_aot.scoring.scorer import Scorer, collate, score_each
from axolotl_aot.training.reference import Reference
from axolotl_aot.training.score_checks import difference

LOG = get_logger(__name__)

SAVE_EVERY = 100  # batches of each process: what an interrupted run has to compute again, at most
SPOT_CHECKS = 4  # completions that are scored again before a file is relied on


class PrecomputedReferences(TrainerCallback):
    """The reference's log-probabilities of whole data sets, in a file that grows with the data.

    As a callback it sees to the training set before the first step; an evaluation asks `ensure`.

    Args:
        trainer: built, with its models.
        folder: where the file is.
        columns: of the data, that hold a sample's completions.
        settings: what the reference depends on besides its base model and precision.
    """

    def __init__(
        self,
        trainer: Trainer,
        reference: Reference,
        scorer: Scorer,
        folder: Path,
        columns: Iterable[str],
        **settings: str,
    ):
        self._trainer = trainer
        self._reference = reference
        self._scorer = scorer
        self._columns = tuple(columns)
        accelerator = trainer.accelerator
        model = accelerator.unwrap_model(trainer.ref_model or trainer.model)
        name = fingerprint(model.config, precision=accelerator.mixed_precision, dtype=model.dtype, **settings)
        self.cache = ReferenceCache(folder / f"{name}.safetensors", name)
        self._load()
        self._unchecked = self.cache.keys()  # what is computed from here on needs no check

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.ensure(self._trainer.train_dataset)

    def ensure(self, dataset: Dataset) -> None:
        """See to it that every completion of the data is known."""
        sequences = sequences_of(dataset, self._columns)
        self._check_file(sequences)
        known = [key for key in sequences if key in self.cache]
        todo = {key: sequence for key, sequence in sequences.items() if key not in self.cache}
        if known:
            LOG.info("%d log-probabilities of the reference are known from %s", len(known), self.cache.path)
        if todo:
            self._score_all(todo)

    def _check_file(self, sequences: dict[bytes, TokenizedAnswer]) -> None:
        """A few of its completions are scored again before any is used; all go if these differ."""
        used = [key for key in sequences if key in self._unchecked]
        if not used:
            return
        shortest = sorted(used, key=lambda key: sum(map(len, sequences[key])))[:SPOT_CHECKS]
        fault = self._spot_check({key: sequences[key] for key in shortest})
        if fault:
            LOG.warning("%s is not of this reference: %s; computing it anew", self.cache.path, fault)
            self.cache.remove(self._unchecked)
        self._unchecked = set()

    def _load(self) -> None:
        """From the file that the main process sees; all processes must agree on what is known."""
        if self._trainer.accelerator.is_main_process:
            try:
                self.cache.load()
            except ReferenceFileError as error:
                LOG.warning("%s: %s; computing it anew", self.cache.path, error)
        (self.cache,) = broadcast_object_list([self.cache])

    def _score_all(self, todo: dict[bytes, TokenizedAnswer]) -> None:
        """The processes take turns; the main one saves, now and then and in the end."""
        args = self._trainer.args
        probe = collate([next(iter(todo.values()))], self._scorer.device)
        batches = score_each(
            self._reference.score,
            todo,
            tokens=self._scorer.strategy(probe).tokens,
            # an evaluation batch of the longest samples fits into memory
            sequences_at_once=args.per_device_eval_batch_size * len(self._columns),
            device=self._scorer.device,
            description="Reference log-probabilities",
            process=args.process_index,
            processes=args.world_size,
        )
        unsaved: list[tuple[bytes, float]] = []
        for number, scored in enumerate(batches, start=1):
            unsaved += scored
            if number % SAVE_EVERY == 0:
                self._keep(unsaved)
                unsaved = []
        if unsaved:  # on all processes or on none: they have as many batches
            self._keep(unsaved)

    def _keep(self, scored: list[tuple[bytes, float]]) -> None:
        """What all processes have scored, known to all of them and saved."""
        self.cache.update(gather_object(scored))
        if not self._trainer.accelerator.is_main_process:
            return
        try:
            self.cache.save()
        except OSError as error:  # this run needs no file
            LOG.warning("the reference's log-probabilities are not kept for other runs: %s", error)

    def _spot_check(self, known: dict[bytes, TokenizedAnswer]) -> str | None:
        """None, or how far some of what is known is from what the reference says now."""
        found = self._reference.score(collate(list(known.values()), self._scorer.device))
        expected = found.new_tensor([self.cache.get(key) for key in known])
        return difference(found, expected, self._scorer.epsilon)
