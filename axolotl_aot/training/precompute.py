"""`precompute_ref_log_probs: true`: the reference scored once, before the first step or evaluation.

It happens after the model is wrapped, so that it is right under every engine, and every process does as
many forward passes as the others.
"""

import logging
from typing import Any

from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from tqdm import tqdm
from transformers import TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from axolotl_aot.scoring.batches import Collator, cut
from axolotl_aot.scoring.reference_cache import ReferenceFileError, References, Sequence, sequences_of
from axolotl_aot.training.objective import ScoringMixin
from axolotl_aot.training.run_setup import AOTSetup

LOG = logging.getLogger(__name__)

SAVE_EVERY = 100  # batches of each process: what an interrupted run has to compute again, at most
SPOT_CHECKS = 4  # completions that are scored again before a file is relied on


class PrecomputeMixin(ScoringMixin):
    """The reference's log-probabilities, on demand from a file that grows with the data.

    `self.setup` says whether, and where the file is.
    """

    setup: AOTSetup
    references: References | None = None
    _spot_checked = False

    def _prepare_references(self) -> None:
        """To be called once the trainer is built."""
        if self.setup.reference_folder is not None:
            name = self._reference_fingerprint()
            self.references = References(self.setup.reference_folder / f"{name}.safetensors", name)
            self._load_references()
            self.add_callback(_BeforeTraining(self))

    def _reference_fingerprint(self) -> str:
        raise NotImplementedError

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        self.score_reference_of(dataloader.dataset)
        return super().evaluation_loop(dataloader, *args, **kwargs)

    def score_reference_of(self, dataset: Dataset) -> None:
        """See to it that every completion of the data is known."""
        if self.references is None:
            return
        sequences = sequences_of(dataset, self.completions)
        known = [key for key in sequences if key in self.references]
        if known and not self._spot_checked:
            shortest = sorted(known, key=lambda key: sum(map(len, sequences[key])))[:SPOT_CHECKS]
            fault = self._spot_check({key: sequences[key] for key in shortest})
            if fault:
                LOG.warning("%s is not of this reference: %s; computing it anew", self.references.path, fault)
                self.references.clear()
                known = []
        self._spot_checked = True  # what is computed from here on needs no check
        todo = {key: sequence for key, sequence in sequences.items() if key not in self.references}
        if known:
            LOG.info(
                "%d log-probabilities of the reference are known from %s", len(known), self.references.path
            )
        if todo:
            self._score_all(todo)

    def _load_references(self) -> None:
        """From the file that the main process sees; all processes must agree on what is known."""
        if self.accelerator.is_main_process:
            try:
                self.references.load()
            except ReferenceFileError as error:
                LOG.warning("%s: %s; computing it anew", self.references.path, error)
        (self.references,) = broadcast_object_list([self.references])

    def _score_all(self, todo: dict[bytes, Sequence]) -> None:
        """Longest first; each process takes every so manieth batch; saved by the main one."""
        keys, sequences = list(todo), list(todo.values())
        lengths = [len(s.prompt) + len(s.completion) for s in sequences]
        probe = self._batch(sequences[:1])
        # what an evaluation batch of the longest samples takes
        limit = self.args.per_device_eval_batch_size * self.sides * max(lengths)
        batches = cut([[length] for length in lengths], self._way(probe).tokens, limit)
        main, world = self.accelerator.is_main_process, self.args.world_size
        scored: list[tuple[bytes, float]] = []
        with tqdm(total=len(keys), desc="Reference log-probabilities", disable=not main) as bar:
            for start in range(0, len(batches), world):
                turn = batches[start : start + world]
                mine = turn[min(self.args.process_index, len(turn) - 1)]  # the last turn may repeat one
                logprobs = self._score_reference(self._batch([sequences[i] for i in mine])).tolist()
                scored += zip([keys[i] for i in mine], logprobs, strict=True)
                bar.update(sum(map(len, turn)))
                if start + world >= len(batches) or (start // world + 1) % SAVE_EVERY == 0:
                    self.references.update(gather_object(scored))
                    scored = []
                    if main:
                        self._save_references()

    def _save_references(self) -> None:
        try:
            self.references.save()
        except OSError as error:  # this run needs no file
            LOG.warning("the reference's log-probabilities are not kept for other runs: %s", error)

    def _spot_check(self, known: dict[bytes, Sequence]) -> str | None:
        """None, or how far some of what is known is from what the reference says now."""
        found = self._score_reference(self._batch(list(known.values())))
        return self._difference(found, found.new_tensor([self.references.get(key) for key in known]))

    def _batch(self, sequences: list[Sequence]) -> dict[str, Any]:
        rows = [{"prompt_ids": s.prompt, "completion_ids": s.completion} for s in sequences]
        return self._prepare_inputs(Collator(["completion_ids"])(rows))


class _BeforeTraining(TrainerCallback):
    def __init__(self, trainer: PrecomputeMixin):
        self.trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.trainer.score_reference_of(self.trainer.train_dataset)
