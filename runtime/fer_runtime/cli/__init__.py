"""The command `fer-infer`: its options, and one module for each kind of run."""

import gc

# The collector would run 20 times during these imports and free nothing, as everything in them lives as long as the
# process: a twelfth of the time of `fer-infer --help`.
_was_enabled = gc.isenabled()
gc.disable()

from fer_runtime.cli.infer import main  # noqa: E402 - after the collector has stopped

gc.freeze()
if _was_enabled:
    gc.enable()

__all__ = ["main"]
