"""The command `fer-infer`: its options, and one module for each kind of run."""

from fer_runtime.collector import collector_stopped

with collector_stopped():
    from fer_runtime.cli.infer import main

__all__ = ["main"]
