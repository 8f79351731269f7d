"""What Ctrl-C does: in training the adapter is saved, and once it is saved nothing is, where axolotl's own
handler saves the base model that it loaded.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from typing import Any

from axolotl.utils.distributed import cleanup_distributed
from transformers import TrainerCallback, TrainerState, TrainingArguments


class SaveAdapterOnInterrupt(TrainerCallback):
    """Takes Ctrl-C over while a run trains.

    Sharded engines are left to axolotl, since one process alone cannot save there; so is a worker that
    trains in a thread, where Python takes no signals.
    """

    def __init__(self) -> None:
        self._previous_handler: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        if args.fsdp or args.deepspeed:
            return
        if not state.is_local_process_zero or current_thread() is not main_thread():
            return

        def save_and_exit(signum: int, frame: Any) -> None:
            model.save_pretrained(args.output_dir)
            cleanup_distributed()
            sys.exit(0)

        self._previous_handler = signal.signal(signal.SIGINT, save_and_exit)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Give Ctrl-C back to axolotl."""
        if self._previous_handler is not None:
            signal.signal(signal.SIGINT, self._previous_handler)
            self._previous_handler = None


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, where axolotl's handler would save the model that it loaded."""
    if current_thread() is not main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
