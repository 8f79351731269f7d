"""`axolotl aot-sample`: answers sampled from what a YAML has trained, scored, and written as training reads
them. What was done is kept as it goes: a job that was stopped goes on, and ends with the same file.
"""

import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from axolotl.loaders import load_tokenizer
from axolotl.utils.dict import DictDefault
from axolotl.utils.logging import get_logger
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from axolotl_aot import __version__, config
from axolotl_aot.data.prompts import Prompts, read_prompts
from axolotl_aot.errors import AOTConfigError
from axolotl_aot.generation.answers import Answer, end_ids, read_answers, room_behind
from axolotl_aot.generation.engines import ENGINES, Engine
from axolotl_aot.generation.job import Job, Place
from axolotl_aot.generation.partial_file import PartialFile, Scored
from axolotl_aot.generation.reward_model import ModelReward
from axolotl_aot.generation.rewards import FunctionReward, Reward, scores_of
from axolotl_aot.generation.rows_out import Summary, row_of, write_rows
from axolotl_aot.generation.settings import Settings, require_agreement
from axolotl_aot.trained.run_config import (
    load_without_training,
    read_yaml,
    sequences_at_once,
    trained_by,
    without_file,
    without_training,
)
from axolotl_aot.trained.weights import kind_of, nothing_in, stamp

LOG = get_logger(__name__)

OF_THE_ENTRY = ("chat_template", "chat_template_jinja")  # what `type: ranked` needs to render as they were


class Result(NamedTuple):
    """said: what there is to say of the answers. entry: of `datasets:`, which reads them."""

    said: list[str]
    entry: dict[str, Any]


def sample(path: Path, prompts: str, out: Path, settings: Settings) -> Result:
    """Sample answers, score them, and write them to `out` as JSON Lines.

    Args:
        path: the YAML of a training run.
        prompts: a file, a folder or a data set of the hub.
        out: the file to write; `out` with `.partial` behind it holds what was done so far.
        settings: the command's options.

    Raises:
        AOTConfigError, AOTDataError: what is wrong with the YAML, an option, a prompt, or a score.
    """
    _require_one_process()
    require_agreement(settings)
    ENGINES[settings.engine].require()
    partial = out.with_name(f"{out.name}.partial")
    if out.exists() and not partial.exists() and not settings.overwrite:
        raise AOTConfigError(f"--out {out} is there already; name another file, or set --overwrite")
    raw = read_yaml(path)
    translated = without_training(raw, "answers are sampled from runs of")
    if not raw.get("datasets"):
        raise AOTConfigError(f"{path}: `datasets` is missing: its first entry says how prompts are read")
    with tempfile.TemporaryDirectory() as folder:
        cfg = load_without_training(translated, Path(folder))
        sampler = _Sampler(cfg, raw, _trained(raw, settings), settings)
        sampler.read(prompts)
        with PartialFile(partial, sampler.identity(), overwrite=settings.overwrite) as kept:
            said = sampler.run(kept, out)
            kept.remove()
    return Result(said, {"path": str(out), "type": "ranked", **sampler.entry_options()})


def _require_one_process() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise AOTConfigError(
            f"aot-sample runs in one process, and here are {os.environ['WORLD_SIZE']} (WORLD_SIZE): start it "
            "as `axolotl aot-sample`, without torchrun or accelerate; several GPUs may each sample from "
            "prompts of their own"
        )


def _trained(raw: dict[str, Any], settings: Settings) -> Path | None:
    """The folder of what is to answer; None for the untrained model."""
    if settings.base:
        return None
    folder = settings.adapter or trained_by(raw)
    if kind_of(folder) is None:
        key = "output_dir" if settings.adapter is None else "--adapter"
        raise AOTConfigError(
            f"{key} {folder}: {nothing_in(folder)}; train first, name what is trained with --adapter, or "
            "take the untrained model with --base"
        )
    return folder


class _Sampler:
    """One job, from prompts to the written file. The model is loaded when the first batch needs it."""

    def __init__(self, cfg: DictDefault, raw: dict[str, Any], trained: Path | None, settings: Settings):
        self._cfg = cfg
        self._raw = raw
        self._trained = trained
        self._settings = settings
        self._tokenizer = load_tokenizer(cfg)
        self._engine: Engine | None = None
        self._read_answers: dict[int, list[Answer]] = {}  # by the prompt's number
        self._batch_size = settings.batch_size or ENGINES[settings.engine].sequences_at_once(cfg)
        self._reward = self._loaded_reward()

    def read(self, path: str) -> None:
        """Read the prompts, and cut the job."""
        cfg, tokenizer = self._cfg, self._tokenizer
        entry = without_file(self._raw["datasets"][0])
        found = read_prompts(path, entry, config.active_rl(cfg), cfg, tokenizer)
        self._prompts: Prompts = found
        if found.again:
            LOG.info(f"--prompts {path}: {found.again:,} rows repeat a prompt, which counts once")
        self._job = Job(
            found.prompts,
            self._settings,
            sequence_len=cfg.sequence_len,
            batch_size=self._batch_size,
            behind=[room_behind(prompt, tokenizer) for prompt in found.prompts],
            ends=end_ids(found.prompts, tokenizer),
        )

    def identity(self) -> dict[str, Any]:
        """What the answers depend on."""
        cfg, base = self._cfg, Path(self._cfg.base_model)
        return self._job.identity(
            **self._origin(),
            base_model_files=stamp(base),
            trained_files=stamp(self._trained) if self._trained else "",
            load_in_4bit=bool(cfg.load_in_4bit),
            load_in_8bit=bool(cfg.load_in_8bit),
            bf16=bool(cfg.bf16),
            fp16=bool(cfg.fp16),
        )

    def entry_options(self) -> dict[str, Any]:
        """What the entry that reads the answers takes over from the YAML's."""
        entry = self._raw["datasets"][0]
        return {key: entry[key] for key in OF_THE_ENTRY if entry.get(key)}

    def run(self, kept: PartialFile, out: Path) -> list[str]:
        """All that is left to do; returns what there is to say."""
        places = list(self._job.places())
        complete = defaultdict(list)  # the prompts whose last answer is in a batch
        for i, place in enumerate(places):
            complete[max(batch for _, batch, _ in place.answers)].append(i)
        try:
            with _Bar(len(self._job)) as advance:
                for number in range(len(self._job.batches)):
                    if number not in kept.batches:
                        kept.add_batch(number, self._answers(number))
                    for i in complete[number]:
                        self._score(i, places[i], kept)
                    advance(len(self._job.batches[number]))
        except BaseException:
            if done := sum(len(batch) for batch in kept.batches.values()):
                LOG.warning(
                    f"{done:,} of {len(self._job):,} answers are kept in {kept.path}; the same command, "
                    "run again, goes on there"
                )
            raise
        summary = Summary(self._settings.n)
        write_rows(out, self._rows(places, kept, summary))
        return summary.lines()

    # --- Parts of it -------------------------------------------------------------------------

    def _answers(self, number: int) -> list[Any]:
        if self._engine is None:
            self._engine = ENGINES[self._settings.engine](self._cfg, self._trained)
        return self._engine.answers(self._job.batch(number))

    def _score(self, i: int, place: Place, kept: PartialFile) -> None:
        """Score a prompt's answers, unless the same reward has done so before."""
        reward, known = self._reward, kept.scores.get(i)
        if reward is None or (known is not None and known.reward == reward.identity):
            return
        prompt = self._job.prompts[i]
        usable = [answer.shown for answer in self._read(i, place, kept) if answer.problem is None]
        scores = scores_of(reward, prompt, usable) if usable else []
        kept.add_scores(i, Scored(reward.identity, scores))

    def _read(self, i: int, place: Place, kept: PartialFile) -> list[Answer]:
        if i not in self._read_answers:
            sampled = [kept.batches[batch][position] for _, batch, position in place.answers]
            prompt, renderer = self._job.prompts[i], self._prompts.renderer
            self._read_answers[i] = read_answers(prompt, sampled, renderer)
        return self._read_answers[i]

    def _rows(self, places: list[Place], kept: PartialFile, summary: Summary) -> Iterator[dict[str, Any]]:
        for i, place in enumerate(places):
            prompt, answers = self._job.prompts[i], self._read(i, place, kept)
            scores = kept.scores[i].scores if self._reward else None
            if summary.add(prompt, answers, scores):
                usable = [answer for answer in answers if answer.problem is None]
                yield row_of(prompt, usable, scores, self._origin(self._reward))

    def _origin(self, reward: Reward | None = None) -> dict[str, Any]:
        """What has made the answers."""
        settings, trained = self._settings, self._trained
        whole = trained is not None and kind_of(trained) == "model"
        return {
            "model": str(trained) if whole else self._cfg.base_model,
            "adapter": None if trained is None or whole else str(trained),
            "engine": settings.engine,
            "n": settings.n,
            "seed": settings.seed,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "max_new_tokens": settings.max_new_tokens,
            "sequence_len": self._cfg.sequence_len,
            **({"reward": reward.name} if reward else {}),
            "version": __version__,
        }

    def _loaded_reward(self) -> Reward | None:
        if self._settings.reward is not None:
            return FunctionReward(self._settings.reward)
        if self._settings.reward_model is not None:
            at_once = self._settings.batch_size or sequences_at_once(self._cfg)
            return ModelReward(self._settings.reward_model, at_once)
        return None


class _Bar:
    """A bar of answers, on the terminal's error stream."""

    def __init__(self, total: int):
        columns = (TextColumn("Sampling"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(stderr=True))
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> Any:
        self._bar.start()
        return lambda count: self._bar.advance(self._task, count)

    def __exit__(self, *error: object) -> None:
        self._bar.stop()
