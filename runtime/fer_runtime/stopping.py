"""SIGTERM ends a command as Ctrl-C does: what is finished is kept, and the exit code says which of the two it was."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 143  # 128 and SIGTERM's number, as the shell gives for a command that SIGTERM has ended


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived. Code that tidies up after Ctrl-C tidies up after this, too."""


class Stopping:
    """Whether SIGTERM has arrived."""

    def __init__(self) -> None:
        self.was_terminated = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # Once: a second SIGTERM must not interrupt the tidying up. SIGKILL is left for impatience.
        if not self.was_terminated:
            self.was_terminated = True
            raise Terminated


@contextmanager
def stopped_by_sigterm() -> Iterator[Stopping]:
    """Turn SIGTERM into `Terminated` while the block runs; a handler that somebody else has set stays."""
    import signal  # takes as long as all of this package's modules that --help needs

    handler = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if isinstance(handler, Stopping):  # of the group that this command belongs to
        yield handler
        return
    stopping = Stopping()
    is_main = threading.current_thread() is threading.main_thread()  # others may set no handler
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield stopping
        return
    signal.signal(signal.SIGTERM, stopping._handle)
    try:
        yield stopping
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
