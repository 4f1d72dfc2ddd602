"""Signals that ask a run to stop, from a scheduler or Ctrl-C: the run saves before it exits."""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

import jax
from jax.experimental import multihost_utils

# Sent by schedulers before they take a machine away; SIGUSR1 is customary on SLURM.
SCHEDULER_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class _FirstSignal:
    """The first signal that this process received; a second one ends the process."""

    def __init__(self) -> None:
        self._name: str | None = None

    def handle(self, number: int, _: FrameType | None) -> None:
        if self._name:
            os._exit(128 + number)  # the last checkpoint stays valid
        self._name = signal.Signals(number).name
        print(
            f"\n{self._name}: saving a checkpoint before exiting (send again to exit now)",
            file=sys.stderr,
        )

    def received(self, step: int) -> str | None:
        return self._name


def listen_for_preemption() -> Callable[[int], str | None]:
    """Catch the signals that ask the run to stop.

    Returns a function of the step, which gives the name of the signal that was received, or None.
    When any of several processes receives one, all of them see it at the same step.
    """
    numbers = (*SCHEDULER_SIGNALS, signal.SIGINT)
    if jax.process_count() > 1:
        return _signal_of_any_process(numbers)
    first = _FirstSignal()
    for number in numbers:
        signal.signal(number, first.handle)
    return first.received


def restore_signal_handlers() -> None:
    """Restore the default effect of the signals that listen_for_preemption catches."""
    for number in SCHEDULER_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _signal_of_any_process(numbers: tuple[int, ...]) -> Callable[[int], str | None]:
    """Turn the signals into SIGTERM, for which XLA's preemption service listens.

    In the background the processes agree on the step at which all of them see it.
    """
    for number in numbers:
        if number != signal.SIGTERM:
            signal.signal(number, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    reached = multihost_utils.reached_preemption_sync_point
    return lambda step: "SIGTERM" if reached(step) else None
