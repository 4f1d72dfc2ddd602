"""Being told to stop: a scheduler's notices and Ctrl-C, obeyed when all is saved."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import jax

from asr_jax.distributed.processes import preemption_of_any_process

# How schedulers announce that a machine will be taken away; SIGUSR1 is customary on SLURM.
NOTICES = (signal.SIGTERM, signal.SIGUSR1)


def listen_for_preemption() -> Callable[[int], str | None]:
    """From now on these signals are noted, not obeyed; returns a look at the note, at each step.

    Several processes find it at the same step, whichever of them was told.
    """
    if jax.process_count() > 1:
        return preemption_of_any_process((*NOTICES, signal.SIGINT))
    noted: list[str] = []

    def note(number: int, _: Any) -> None:
        if noted:
            os._exit(128 + number)  # asked twice: leave at once, what is saved is safe
        noted.append(signal.Signals(number).name)
        print(f"\n{noted[0]}: saving, then leaving; once more leaves at once", file=sys.stderr)

    for number in (*NOTICES, signal.SIGINT):
        signal.signal(number, note)
    return lambda _: noted[0] if noted else None


def restore_signal_handlers() -> None:
    """Signals do again what they do by themselves."""
    for number in NOTICES:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
