"""Stop a run at a signal, after its state has been saved."""

from __future__ import annotations

import signal
import threading
from typing import Any


class Stopped(Exception):
    """A signal asked the run to stop and its checkpoint has been written."""

    def __init__(self, number: int = signal.SIGTERM):
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number  # as a shell reports a program that the signal ended


class StopSignal:
    """Remember the first SIGTERM or Ctrl-C inside a `with` block; a second one has its usual effect.

    Python delivers signals to the main thread only, so in other threads nothing is received.
    """

    def __init__(self) -> None:
        self.received = False
        self.number = signal.SIGTERM  # the signal that was received
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignal:
        self.received = False
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._handlers[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        for number in list(self._handlers):
            signal.signal(number, self._handlers.pop(number))

    def _receive(self, number: int, _frame: Any) -> None:
        self.received, self.number = True, signal.Signals(number)
        signal.signal(number, self._handlers[signal.Signals(number)])
