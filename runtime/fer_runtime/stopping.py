"""End a command on SIGTERM as on Ctrl-C: results so far are kept, and the exit code tells the two apart."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 143  # 128 and SIGTERM's number, as the shell gives for a command that SIGTERM has ended

_MAIN_THREAD = threading.main_thread().ident


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived. Code that tidies up after Ctrl-C tidies up after this, too."""


class _Undivided:
    """A block that Ctrl-C and SIGTERM do not interrupt in a command: they raise at its end. For short steps only.

    Signals arrive in the main thread alone. In another thread the block changes nothing: raised there, `Terminated`
    would end that thread and never reach the main one.
    """

    def __init__(self) -> None:
        self._is_entered = False
        self._waiting: type[KeyboardInterrupt] | None = None

    def __enter__(self) -> None:
        if threading.get_ident() == _MAIN_THREAD:
            self._is_entered = True

    def __exit__(self, *_: object) -> None:
        if threading.get_ident() != _MAIN_THREAD:
            return
        self._is_entered = False
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            raise waiting

    def stop(self, kind: type[KeyboardInterrupt]) -> None:
        """Raise `kind`, now or at the end of the block."""
        if not self._is_entered:
            raise kind
        self._waiting = kind


undivided = _Undivided()


class Stopping:
    """Whether SIGTERM or Ctrl-C has arrived."""

    def __init__(self) -> None:
        self.was_terminated = False
        self.was_interrupted = False

    def terminate(self, number: int, frame: FrameType | None) -> None:
        """The handler of SIGTERM."""
        # Once: a second SIGTERM must not interrupt the tidying up. SIGKILL is left for impatience.
        if not self.was_terminated:
            self.was_terminated = True
            undivided.stop(Terminated)

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """The handler of SIGINT."""
        self.was_interrupted = True
        undivided.stop(KeyboardInterrupt)


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
    signal.signal(signal.SIGTERM, stopping.terminate)
    takes_interrupts = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if takes_interrupts:
        signal.signal(signal.SIGINT, stopping.interrupt)
    try:
        yield stopping
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if takes_interrupts:
            signal.signal(signal.SIGINT, signal.default_int_handler)
