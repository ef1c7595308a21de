"""Weights of a layer as 8-bit integers: rounded so that the layer's output on real inputs changes least.

Rounding each weight to the nearest step ignores that errors can cancel. Going through a layer's inputs
one by one, and letting the weights that are still to be rounded make up for the error so far, is optimal
brain quantisation with the ordering of GPTQ (Frantar et al., arXiv 2210.17323).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

FloatArray = npt.NDArray[np.float32]
Int8Array = npt.NDArray[np.int8]

WEIGHT_LIMIT = 127
# CPUs without VNNI (AVX2, before 2019) add two neighbouring products of uint8 and int8 in 16 signed
# bits: 255 * 128 fits, more would be cut off without a word.
PAIR_LIMIT = 128
_DAMPING = 0.01  # of the mean squared input, GPTQ's value: inputs that are never seen have no curvature
_BLOCK = 128  # inputs whose error is passed on at once


@dataclass(frozen=True, slots=True, kw_only=True)
class InputStatistics:
    """What a layer sees, over calibration faces."""

    second_moments: npt.NDArray[np.float64]  # (inputs, inputs), mean of x xᵀ
    means: npt.NDArray[np.float64]  # (inputs,)


def input_statistics(rows: Sequence[FloatArray]) -> InputStatistics:
    """Statistics of a layer's inputs, given in parts float32 (rows, inputs); a convolution's rows are its patches."""
    count = sum(len(part) for part in rows)
    return InputStatistics(
        second_moments=np.sum([(part.T @ part).astype(np.float64) for part in rows], axis=0) / count,
        means=np.sum([part.sum(0, dtype=np.float64) for part in rows], axis=0) / count,
    )


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
    moments = statistics.second_moments + np.eye(inputs) * (
        _DAMPING * np.trace(statistics.second_moments) / inputs + 1e-12
    )
    # Inputs with the most curvature first: their errors are the dear ones, and the others can make up for them.
    order = np.argsort(-np.diag(moments), kind="stable")
    upper = _inverse_factor(moments[np.ix_(order, order)])
    remaining = weights[:, order].astype(np.float64)
    rounded = np.empty((len(weights), inputs))
    for start in range(0, inputs, _BLOCK):
        stop = min(start + _BLOCK, inputs)
        errors = np.empty((len(weights), stop - start))
        for column in range(start, stop):
            integer = np.clip(np.rint(remaining[:, column] / steps[:, 0]), -WEIGHT_LIMIT, WEIGHT_LIMIT)
            rounded[:, column] = integer
            error = (remaining[:, column] - integer * steps[:, 0]) / upper[column, column]
            remaining[:, column + 1 : stop] -= np.outer(error, upper[column, column + 1 : stop])
            errors[:, column - start] = error
        remaining[:, stop:] -= errors @ upper[start:stop, stop:]
    integers = np.empty((len(weights), inputs), np.int8)
    integers[:, order] = rounded.astype(np.int8)
    return integers, ((weights - integers * steps) @ statistics.means).astype(np.float32)


def _inverse_factor(moments: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The upper triangular U with inverse(moments) = Uᵀ U, without the inverse.

    Cholesky's factor of the matrix turned by 180 degrees, turned back, is an upper triangular V with
    moments = V Vᵀ; U is V's inverse. A third of the work, and no precision lost on the way.
    """
    turned = torch.from_numpy(np.ascontiguousarray(moments[::-1, ::-1]))
    factor = torch.linalg.cholesky(turned).flip(0, 1)
    unit = torch.eye(len(moments), dtype=torch.float64)
    inverse: npt.NDArray[np.float64] = torch.linalg.solve_triangular(factor, unit, upper=True).numpy()
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
