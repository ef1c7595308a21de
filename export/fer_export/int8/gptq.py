"""Weights of a layer as 8-bit integers: rounded so that the layer's output on real inputs changes least.

Rounding each weight to the nearest step ignores that errors can cancel. Going through a layer's inputs
one by one, and letting the weights that are still to be rounded make up for the error so far, is optimal
brain quantization with the ordering of GPTQ (Frantar et al., arXiv 2210.17323).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

FloatArray = npt.NDArray[np.float32]
Int8Array = npt.NDArray[np.int8]

WEIGHT_LIMIT = 127
# CPUs without VNNI (AVX2, before 2019) add two neighbouring products of uint8 and int8 in 16 signed
# bits: 255 * 128 fits, more would be cut off without a word.
PAIR_LIMIT = 128
_DAMPING = 0.01  # of the mean squared input, GPTQ's value: inputs that are never seen have no curvature
_BLOCK = 128  # inputs whose error is passed on at once


class InputStatistics:
    """Statistics of a layer's inputs over calibration faces, gathered part by part without keeping the parts."""

    def __init__(self, inputs: int) -> None:
        self.rows = 0
        # In single precision: ResNet18's widest layers have 4,608 inputs, and all layers' sums live at once.
        self._products = torch.zeros(inputs, inputs)
        self._sums = torch.zeros(inputs, dtype=torch.float64)

    def add(self, rows: FloatArray) -> None:
        """Count inputs float32 (rows, inputs); a convolution's rows are its patches."""
        part = torch.from_numpy(rows)
        self._products.addmm_(part.T, part)
        self._sums += part.sum(0, dtype=torch.float64)
        self.rows += len(rows)

    @property
    def second_moments(self) -> Tensor:
        """Mean of x xᵀ, float64 (inputs, inputs)."""
        return self._products.double().div_(self.rows)

    @property
    def magnitudes(self) -> npt.NDArray[np.float64]:
        """Root mean square of each input, float64 (inputs,)."""
        magnitudes: npt.NDArray[np.float64] = (self._products.diagonal().double() / self.rows).sqrt().numpy()
        return magnitudes

    @property
    def means(self) -> npt.NDArray[np.float64]:
        """float64 (inputs,)."""
        means: npt.NDArray[np.float64] = (self._sums / self.rows).numpy()
        return means


def weight_scales(weights: FloatArray) -> FloatArray:
    """Steps float32 (outputs,) for which no weight and no sum of neighbouring weights leaves its range.

    Args:
        weights: float32 (outputs, ..., inputs), the inputs in the order in which they lie in memory.
    """
    largest = np.abs(weights).reshape(len(weights), -1).max(1) / WEIGHT_LIMIT
    # Rounding may add half a step to each of the two.
    pairs = _pair_sums(weights).reshape(len(weights), -1).max(1, initial=0) / (PAIR_LIMIT - 2)
    scales: FloatArray = np.maximum(np.maximum(largest, pairs), 1e-12).astype(np.float32)
    return scales


def _pair_sums(weights: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Sums of neighbours on the last axis, where both have the same sign."""
    left, right = weights[..., :-1], weights[..., 1:]
    sums: npt.NDArray[Any] = np.where(left * right > 0, np.abs(left) + np.abs(right), 0)
    return sums


def round_weights(
    weights: FloatArray, scales: FloatArray, statistics: InputStatistics | None = None
) -> tuple[Int8Array, FloatArray]:
    """Integer weights, and what to add to the bias so that the mean output stays.

    Args:
        weights: float32 (outputs, inputs).
        scales: steps float32 (outputs,).
        statistics: of the inputs; None rounds each weight to the nearest step.

    Returns:
        int8 (outputs, inputs), float32 (outputs,).
    """
    steps = scales.astype(np.float64)[:, None]
    if statistics is None:
        nearest = np.clip(np.rint(weights / steps), -WEIGHT_LIMIT, WEIGHT_LIMIT).astype(np.int8)
        return nearest, np.zeros(len(weights), np.float32)
    inputs = weights.shape[1]
    moments = statistics.second_moments
    diagonal = moments.diagonal()
    diagonal += _DAMPING * diagonal.mean() + 1e-12
    # Inputs with the most curvature first: their errors are the dear ones, and the others can make up for them.
    order = diagonal.argsort(descending=True, stable=True)
    upper = inverse_factor(moments[order][:, order])
    remaining = torch.tensor(weights, dtype=torch.float64)[:, order]
    step = torch.tensor(steps[:, 0])
    integers = torch.empty(len(weights), inputs, dtype=torch.float64)
    for start in range(0, inputs, _BLOCK):
        stop = min(start + _BLOCK, inputs)
        errors = torch.empty(len(weights), stop - start, dtype=torch.float64)
        for column in range(start, stop):
            integer = (remaining[:, column] / step).round_().clamp_(-WEIGHT_LIMIT, WEIGHT_LIMIT)
            integers[:, order[column]] = integer
            error = (remaining[:, column] - integer * step) / upper[column, column]
            remaining[:, column + 1 : stop].addr_(error, upper[column, column + 1 : stop], alpha=-1)
            errors[:, column - start] = error
        remaining[:, stop:].addmm_(errors, upper[start:stop, stop:], alpha=-1)
    rounded: Int8Array = integers.numpy().astype(np.int8)
    return rounded, ((weights - rounded * steps) @ statistics.means).astype(np.float32)


def inverse_factor(moments: Tensor) -> Tensor:
    """The upper triangular U with inverse(moments) = Uᵀ U, without the inverse.

    Cholesky's factor of the matrix turned by 180 degrees, turned back, is an upper triangular V with
    moments = V Vᵀ; U is V's inverse. A third of the work, and no precision lost on the way.
    """
    factor = torch.linalg.cholesky(moments.flip(0, 1)).flip(0, 1)
    unit = torch.eye(len(moments), dtype=torch.float64)
    inverse: Tensor = torch.linalg.solve_triangular(factor, unit, upper=True)
    return inverse


def trim_pairs(integers: Int8Array) -> Int8Array:
    """Integer weights (outputs, ..., inputs) whose neighbours' sums stay within PAIR_LIMIT.

    The scales leave room for rounding to the nearest step; making up for errors may exceed it here and there.
    """
    trimmed = integers.astype(np.int16)
    for place in np.argwhere(_pair_sums(trimmed) > PAIR_LIMIT):
        left, right = tuple(place), (*place[:-1], place[-1] + 1)
        excess = abs(int(trimmed[left])) + abs(int(trimmed[right])) - PAIR_LIMIT
        larger = left if abs(trimmed[left]) >= abs(trimmed[right]) else right
        if excess > 0:
            trimmed[larger] -= np.sign(trimmed[larger]) * excess
    return trimmed.astype(np.int8)
