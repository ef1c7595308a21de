"""Python's garbage collector, stopped while a command loads."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_stopped() -> Iterator[None]:
    """Collect no garbage in the block, which makes objects that live as long as the process.

    While `fer-infer` loads, the collector would run 50 times and free nothing: a twentieth of a run over one image. Of
    the time that PyTorch takes to load it is an eighth.
    """
    was_enabled, loaded = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > loaded:
            gc.freeze()
        if was_enabled:
            gc.enable()
