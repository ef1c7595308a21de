"""Probabilities averaged over time, and an expression with hysteresis, so that neither flickers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


@dataclass(slots=True)
class Smoother:
    """An exponential moving average in seconds, so that it means the same at 5 and at 60 frames a second.

    Args:
        time_constant: seconds after which the average has followed a sudden change by 63 %.
        hysteresis: lead in probability that another expression needs to replace the present one.
    """

    time_constant: float = 0.4
    hysteresis: float = 0.1
    _average: FloatArray | None = None
    _time: float = 0.0
    _best: int = 0

    def update(self, time: float, probabilities: FloatArray) -> tuple[FloatArray, int]:
        """The averaged probabilities, shape (classes,), and the index of the expression.

        Args:
            time: seconds, rising from call to call.
            probabilities: of this frame, shape (classes,).
        """
        if self._average is None:
            self._average, self._best = probabilities.astype(np.float32), int(probabilities.argmax())
        else:
            weight = 1 - math.exp(-(time - self._time) / self.time_constant)
            self._average = (self._average + np.float32(weight) * (probabilities - self._average)).astype(np.float32)
            challenger = int(self._average.argmax())
            if self._average[challenger] > self._average[self._best] + self.hysteresis:
                self._best = challenger
        self._time = time
        return self._average, self._best
