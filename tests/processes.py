"""Runs of one or several processes for the tests, without paying axolotl's imports each time.

`python -m tests.processes` imports axolotl once and then, for each line of JSON on its input, forks
the processes that torchrun would start, in torchrun's environment; each calls what
`python -m axolotl.cli.train` calls. `Processes` is the side that the tests hold.
"""

import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.tiny import without_report

ROOT = Path(__file__).parents[1]
# for commands as a user starts them: what an activated environment has in its path
AXOLOTL = Path(sys.executable).with_name("axolotl")
ENVIRONMENT = {**os.environ, "PATH": f"{AXOLOTL.parent}{os.pathsep}{os.environ['PATH']}"}
# what every run imports, or every run of one engine, and slowly
PRELOADED = (
    "axolotl.common.datasets",
    "axolotl.core.builders",
    "axolotl.evaluate",
    "axolotl.train",
    "axolotl_aot.training.trainers",
    "deepspeed",
    "trackio",
)
DEADLINE = 180  # seconds; a run takes 10 at most


@dataclass(frozen=True)
class Run:
    """What a run left behind. codes: exit codes, a rank each, negative for a signal."""

    folder: Path
    codes: list[int]
    output: str

    @property
    def logs(self) -> list[list[dict]]:
        """Each rank's log, in the order of ranks."""
        paths = sorted((self.folder / "out").glob("log-*.json"))
        assert len(paths) == len(self.codes), self.output
        return [json.loads(path.read_text()) for path in paths]

    @property
    def engine(self) -> dict:
        """What engine trained, as the first rank saw it."""
        return json.loads((self.folder / "out/engine-0.json").read_text())

    @property
    def steps(self) -> list[list[dict]]:
        """Each rank's log of training steps."""
        return [[entry for entry in log if "loss" in entry] for log in self.logs]


class Processes:
    """Starts runs; one at a time."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.processes"],
            cwd=ROOT,
            env={**ENVIRONMENT, "DS_ACCELERATOR": "cpu"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait()

    def run(self, command: str, config: dict, folder: Path, world: int = 1, **env: str) -> Run:
        """Run `axolotl <command>` on the config with its output in `folder`/out.

        Without a report, unless the config sets `aot_report`.
        """
        folder.mkdir(exist_ok=True)
        path = folder / "config.yml"
        path.write_text(yaml.safe_dump({**without_report(config), "output_dir": str(folder / "out")}))
        env["ACCELERATE_TORCH_DEVICE"] = "cpu"  # not "cpu:0", which is another device to FSDP1
        if world > 1 and not config.get("deepspeed"):
            env["ACCELERATE_USE_CPU"] = "true"
        log = folder / "output.txt"
        job = {"command": command, "config": str(path), "world": world, "env": env, "log": str(log)}
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        codes = json.loads(self._server.stdout.readline())
        return Run(folder, codes, log.read_text()[-20_000:])

    def train(self, config: dict, folder: Path, world: int = 1, **env: str) -> Run:
        """A run of `axolotl train` that is expected to succeed."""
        run = self.run("train", config, folder, world, **env)
        assert set(run.codes) == {0}, f"exit codes {run.codes}\n{run.output}"
        return run


# --- The other side ------------------------------------------------------------------------------


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def _start(job: dict[str, Any], rank: int, port: int, commands: dict[str, Any]) -> int:
    """Fork one process of a run; returns its id."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        world = str(job["world"])
        os.environ.update(job["env"])
        if job["world"] > 1:
            os.environ.update(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=world,
                LOCAL_WORLD_SIZE=world,
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
            )
        file = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        commands[job["command"]](job["config"])
        code = 0
    except SystemExit as error:
        code = 0 if error.code in (None, 0) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(pids: list[int]) -> list[int]:
    """Exit codes of the processes; when one fails, the others are killed, as torchrun does.

    All are killed at a deadline: processes that wait for each other would do so for half an hour.
    """
    codes: dict[int, int] = {}
    deadline = time.monotonic() + DEADLINE
    while len(codes) < len(pids):
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            codes[pid] = os.waitstatus_to_exitcode(status)
        else:
            time.sleep(0.02)
        if any(codes.values()) or time.monotonic() > deadline:
            for other in set(pids) - set(codes):
                os.kill(other, signal.SIGKILL)
    return [codes[pid] for pid in pids]


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    from accelerate import PartialState
    from axolotl.cli.evaluate import do_cli as evaluate
    from axolotl.cli.train import do_cli as train

    for module in PRELOADED:
        importlib.import_module(module)
    assert not PartialState._shared_state, "a child has to find its own rank"
    gc.freeze()
    commands = {"train": train, "evaluate": evaluate}
    for line in sys.stdin:
        job = json.loads(line)
        port = _free_port()
        codes = _wait([_start(job, rank, port, commands) for rank in range(job["world"])])
        print(json.dumps(codes), file=answers, flush=True)


if __name__ == "__main__":
    _serve()
