"""Being asked to stop: by a scheduler that wants its machine back, or by a person.

SIGTERM, SIGUSR1 and Ctrl-C let the training finish its step and write a checkpoint, and an evaluation its batch. The
command then ends with the status `augfpn.errors.REQUEUE`; started again with ``--resume`` it goes on there. A second
Ctrl-C ends it at once.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from augfpn.errors import Interrupted

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Interruption:
    """A context in which the signals only leave a note.

    Python runs handlers in the main thread; in others, such as a notebook's, they stay as they are.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {one: signal.signal(one, self._receive) for one in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for one, handler in self._before.items():
            signal.signal(one, handler)

    @property
    def requested(self) -> bool:
        return self._received is not None

    @property
    def name(self) -> str:
        """Of the signal; where only another rank has received it, there is none."""
        return self._received.name if self._received else "a signal to another rank"

    def check(self, when: str = "") -> None:
        """Raises Interrupted if it was asked to stop."""
        if self.requested:
            raise Interrupted(f"{self.name}: stopped{when}. Start it again to go on, a training with --resume.")

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._received == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = signal.Signals(number)
