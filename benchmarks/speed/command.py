"""The command: its mode, and the errors that an option can cause."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import benchmarks.speed
from benchmarks.speed.errors import UsageError
from benchmarks.speed.options import CLI, HEAD, PROFILE, STEPS, make_parser, read_options
from benchmarks.speed.tables import Results

# imported when they are run: --head needs none of what the others load
MAIN = {
    STEPS: "benchmarks.speed.compare_steps",
    CLI: "benchmarks.speed.command_line.compare",
    HEAD: "benchmarks.speed.heads.compare",
    PROFILE: "benchmarks.speed.profiling.compare",
}


def main(arguments: list[str] | None = None) -> None:
    """Measure what the arguments (the command line's) say, and print it."""
    parser = make_parser(benchmarks.speed.__doc__)
    try:
        mode, given = read_options(arguments, parser)
        run: Callable[[dict[str, Any], Results], None] = import_module(MAIN[mode]).main
        run(given, Results(given.get("json")))
    except UsageError as error:
        parser.error(str(error))
