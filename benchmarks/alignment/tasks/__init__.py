"""The tasks, by name. Imports `benchmarks.alignment.tasks` only."""

from benchmarks.alignment.tasks.covering import Covering
from benchmarks.alignment.tasks.sorting import Sorting
from benchmarks.alignment.tasks.task import Task

TASKS: dict[str, Task] = {task.name: task for task in (Sorting(), Covering())}
