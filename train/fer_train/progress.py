"""The progress output of `fer-train`."""

from __future__ import annotations

import sys
from typing import Any

from fer_runtime.command import say
from fer_train.results import History


class EpochBars:
    """A bar per epoch on a terminal, a line per epoch elsewhere; both on stderr."""

    def __init__(self) -> None:
        self._bar: Any = None

    def batch(self, epoch: int, epochs: int, faces: int, of: int, loss: float, accuracy: float) -> None:
        if not sys.stderr.isatty():
            return
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=of, desc=f"epoch {epoch}/{epochs}", unit="face", leave=False, dynamic_ncols=True)
        self._bar.set_postfix_str(f"loss {loss:.3f} accuracy {accuracy:.1%}", refresh=False)
        self._bar.update(faces - self._bar.n)

    def epoch(self, epoch: int, epochs: int, history: History) -> None:
        self.close()
        left = (epochs - epoch) * history.seconds[-1]
        say(
            f"epoch {epoch}/{epochs}  loss {history.train_loss[-1]:.3f}  accuracy {history.train_acc[-1]:.1%}  "
            f"validation {history.test_loss[-1]:.3f}  {history.test_acc[-1]:.1%}"
            + (f"  mean recall {history.mean_recall[-1]:.1%}" if history.mean_recall else "")
            + f"{' *' if history.best_epoch == epoch else '  '}  {history.seconds[-1]:.0f} s"
            + (f", {left / 60:.0f} min left" if epoch < epochs else ""),
            err=True,
        )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
