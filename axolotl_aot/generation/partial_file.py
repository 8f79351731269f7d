"""What a job has sampled and scored so far, kept on disk as it goes, so that it can be killed at any moment.

A file of JSON Lines: first what the job is, then, in any order, batches of answers and the scores of
prompts. A line is whole or it does not count: the last one may be torn.
"""

import fcntl
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from axolotl_aot.errors import AOTConfigError, AOTDataError
from axolotl_aot.generation.answers import Sampled

FORMAT = 1
AGAIN = "--overwrite begins anew"


class Scored(NamedTuple):
    """The scores of a prompt's answers. reward: which reward gave them, in a form that tells two apart."""

    reward: str
    scores: list[float]


class PartialFile:
    """The answers and scores of one job.

    batches: the sampled answers, by the batch's number. scores: by the prompt's number.
    """

    def __init__(self, path: Path, job: Mapping[str, Any], *, overwrite: bool = False):
        """Open the file, or begin it.

        job: whatever the answers depend on, as values that JSON can hold.

        Raises:
            AOTConfigError: it belongs to another job, or another process writes it at this moment.
            AOTDataError: it is damaged.
        """
        self.path = path
        self.batches: dict[int, list[Sampled]] = {}
        self.scores: dict[int, Scored] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        try:
            self._lock()
            if overwrite:
                self._file.truncate(0)
            self._read(json.loads(json.dumps(job)))
        except (AOTConfigError, AOTDataError):
            self._file.close()
            raise

    def __enter__(self) -> "PartialFile":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add_batch(self, number: int, answers: Sequence[Sampled]) -> None:
        """Keep a batch of answers."""
        self.batches[number] = list(answers)
        self._write({"batch": number, "answers": [[each.ids, each.finished] for each in answers]})

    def add_scores(self, number: int, scored: Scored) -> None:
        """Keep the scores of a prompt's answers."""
        self.scores[number] = scored
        self._write({"prompt": number, **scored._asdict()})

    def remove(self) -> None:
        """Delete it: the job is done."""
        self.path.unlink()

    # --- The file ----------------------------------------------------------------------------

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise AOTConfigError(
                f"{self.path}: another process is writing it; wait for it, or name another --out"
            ) from None

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()

    def _read(self, job: dict[str, Any]) -> None:
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        self._file.truncate(whole)
        lines = content[:whole].splitlines()
        begun = self._begun(lines[0]) if lines else job
        if len(lines) < 2:  # any job may begin where nothing is kept
            self._file.truncate(0)
            self._write({"aot-sample": FORMAT, "job": job})
            return
        self._require_same(begun, job)
        for number, line in enumerate(lines[1:], start=2):
            found = self._parsed(line, number)
            if "batch" in found:
                self.batches[found["batch"]] = [Sampled(*each) for each in found["answers"]]
            else:
                self.scores[found["prompt"]] = Scored(found["reward"], found["scores"])

    def _parsed(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            return json.loads(line)
        except ValueError as error:
            raise AOTDataError(f"{self.path}, line {number} is damaged ({error}); {AGAIN}") from None

    def _begun(self, line: bytes) -> dict[str, Any]:
        """The job that the file's first line tells of."""
        header = self._parsed(line, 1)
        if not isinstance(header, dict) or header.get("aot-sample") != FORMAT:
            raise AOTConfigError(f"{self.path} is no unfinished file of this version's aot-sample; {AGAIN}")
        return header["job"]

    def _require_same(self, begun: dict[str, Any], job: dict[str, Any]) -> None:
        differ = [
            f"{key} ({begun.get(key)} there, {job.get(key)} now)"
            for key in {**begun, **job}
            if begun.get(key) != job.get(key)
        ]
        if differ:
            raise AOTConfigError(
                f"{self.path} was begun by another command; what differs: {', '.join(differ)}. Run that one "
                f"again to go on with it; {AGAIN}"
            )
