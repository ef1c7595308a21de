"""Made-up faces that switch on every unit of a network, for certificates and for gates without data.

A unit is an output of a ReLU: a channel of a convolution, or a neuron of a linear layer. A face switches it on where it
is above zero. What no face switches on, no comparison of logits can show. A layer that no ReLU follows has units as
well: there a face switches a unit on where the layer's own output is above zero. The layers that compute an output
have no units: the output itself is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from fer_export.gate.extremes import Sums, faces_at_extremes, layer_outputs, tensor_ranks
from fer_export.gate.golden import candidate_faces, mutated_faces, synthetic_faces
from fer_export.gate.units import OUTPUT_LAYERS
from fer_runtime.model.parity import FloatArray, Uint8Array
from fer_runtime.model.session import open_session

_BoolArray = npt.NDArray[np.bool_]

FEWEST_GOLDEN_FACES = 12
# Batches of a self-test: one for v0 and v3, three for v1. With their answers 64 faces are 60 kB of v0's int8 file,
# which has 350 kB.
GOLDEN_BATCH, MOST_BATCHES = 64, 4
_OTHERS = 24  # at least, beside those that reach extremes: for units, connections and classes
_CANDIDATES = 496  # beside the sixteen synthetic faces
_MORE_CANDIDATES = 1024  # where those leave units out

_BATCH = 64
_ROUNDS, _MUTANTS, _PARENTS = 40, 48, 6  # of the search for a face that switches on one unit
_MOST_SEARCHES = 24
# A connection is exercised well where an error of its weight moves the unit by so many of 255 steps, and the unit is
# neither almost off nor near the top of its tensor's range, where int8 saturates.
_ERROR, _STEPS, _NEAR_OFF, _NEAR_TOP, _WELL = 0.05, 2, 0.02, 0.7, 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """Which units the golden faces switch on."""

    golden: Uint8Array  # (faces, size, size) or (faces, size, size, 3), for the certificate
    made_up: Uint8Array  # all that were tried; the gate's when there are no labelled faces
    units: int  # of the network
    live: int  # switched on by a labelled face or, without them, by a synthetic one
    covered: int  # of the live ones, switched on by a golden face
    weights_live: int  # connections of hidden linear layers whose both ends some synthetic face switches on at once
    weights_covered: int  # of those, by a golden face
    layer_extremes: int  # highest and lowest sums of the layers on labelled faces; 0 without them
    layer_extremes_covered: int  # of those, reached within 5 % of their range by a golden face
    extremes: int  # the same of each unit of the layers
    extremes_covered: int
    is_measured: bool  # live units were counted on labelled faces
    classes: tuple[int, ...]  # that the synthetic faces reach

    def to_dict(self) -> dict[str, Any]:
        """The coverage as the certificate states it."""
        return {
            "units": self.units,
            "live": self.live,
            "covered": self.covered,
            "weights_live": self.weights_live,
            "weights_covered": self.weights_covered,
            **(
                {
                    "layer_extremes": self.layer_extremes,
                    "layer_extremes_covered": self.layer_extremes_covered,
                    "extremes": self.extremes,
                    "extremes_covered": self.extremes_covered,
                }
                if self.extremes
                else {}
            ),
            "live_on": "labelled faces" if self.is_measured else "made-up faces",
        }


class _Watched:
    """The float model, and which of its units and hidden inputs each face switches on."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.relus = [node for node in model.graph.node if node.op_type == "Relu"]
        produced = {node.output[0]: node for node in model.graph.node}
        # Hidden linear layers: a Gemm whose output a Relu takes. Its weights are too many for chance to reach them all.
        self.linear = [
            (index, produced[relu.input[0]].input[0])
            for index, relu in enumerate(self.relus)
            if relu.input[0] in produced and produced[relu.input[0]].op_type == "Gemm"
        ]
        ranks = tensor_ranks(model)
        watched = onnx.ModelProto()
        watched.CopyFrom(model)
        # Each unit tensor with the one before its ReLU, and the axes along which the highest value is taken.
        self.tensors = [
            (node.output[0], node.input[0], tuple(range(2, ranks[node.output[0]]))) for node in self.relus
        ] + [(name, name, axes) for name, axes in _layers_without_relu(model)]
        self.on_names = [self._highest(watched, name, axes) for name, _, axes in self.tensors]
        faces = model.graph.input[0].type.tensor_type.shape.dim
        self.face_shape = tuple(dimension.dim_value for dimension in faces[1:])
        self.ends = list(dict.fromkeys(end for index, name in self.linear for end in (self.tensors[index][0], name)))
        for name in self.ends:
            watched.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
        self.session = open_session(watched.SerializeToString(), source="the float model").session
        self.model = model
        self._before: Any = None

    @staticmethod
    def _highest(model: onnx.ModelProto, name: str, axes: tuple[int, ...]) -> str:
        output = f"{name}_highest"
        if axes:
            constant = f"{output}_axes"
            model.graph.initializer.append(numpy_helper.from_array(np.array(axes), constant))
            model.graph.node.append(helper.make_node("ReduceMax", [name, constant], [output], keepdims=0))
        else:
            model.graph.node.append(helper.make_node("Identity", [name], [output]))
        model.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, None))
        return output

    def run(self, faces: Uint8Array) -> tuple[_BoolArray, dict[str, FloatArray], FloatArray]:
        """Units on (faces, units), values at both ends of each hidden linear layer by tensor, and logits."""
        units, values, logits = [], [], []
        names = [*self.on_names, *self.ends, "logits"]
        for start in range(0, len(faces), _BATCH):
            found = self.session.run(names, {"faces": faces[start : start + _BATCH]})
            count = len(self.on_names)
            none = np.zeros((len(found[-1]), 0), np.bool_)  # a linear classifier has no units
            units.append(np.concatenate([none, *(highest > 0 for highest in found[:count])], axis=1))
            values.append(found[count:-1])
            logits.append(found[-1])
        ends = {name: np.concatenate([part[index] for part in values]) for index, name in enumerate(self.ends)}
        return np.concatenate(units), ends, np.concatenate(logits)

    def before(self, faces: Uint8Array) -> FloatArray:
        """The highest value before each unit's Relu, float32 (faces, units)."""
        if self._before is None:
            watched = onnx.ModelProto()
            watched.CopyFrom(self.model)
            names = [self._highest(watched, before, axes) for _, before, axes in self.tensors]
            self._before = names, open_session(watched.SerializeToString(), source="the float model").session
        names, session = self._before
        rows: FloatArray = np.concatenate(session.run(names, {"faces": faces}), axis=1)
        return rows

    @property
    def places(self) -> list[slice]:
        """Columns of each tensor's units."""
        face = synthetic_faces(self.face_shape)[:1]
        sizes = [highest.shape[-1] for highest in self.session.run(self.on_names, {"faces": face})]
        ends = np.cumsum(sizes)
        return [slice(int(end - size), int(end)) for size, end in zip(sizes, ends, strict=True)]


def cover_units(fp32: onnx.ModelProto, labelled: Uint8Array | None = None) -> Coverage:
    """Choose synthetic faces that switch on every unit which labelled faces switch on.

    Args:
        fp32: the float model that `export_graph` wrote.
        labelled: validation faces, uint8; None counts the units that synthetic faces switch on.
    """
    watched = _Watched(fp32)
    shape = watched.face_shape
    made = synthetic_faces(shape)
    tensors = [(name, axes) for _, name, axes in watched.tensors]
    sums = None if labelled is None or not tensors else Sums(fp32, tensors, labelled)
    most = GOLDEN_BATCH * MOST_BATCHES
    at_extremes = made[:0] if sums is None else faces_at_extremes(sums, made, most=most - _OTHERS)
    most = GOLDEN_BATCH * -(-(len(at_extremes) + _OTHERS) // GOLDEN_BATCH)
    faces = np.concatenate([at_extremes, made, candidate_faces(_CANDIDATES, shape=shape)])
    on, values, logits = watched.run(faces)

    def extend(more: Uint8Array) -> None:
        nonlocal faces, on, values, logits
        found = watched.run(more)
        faces, on = np.concatenate([faces, more]), np.concatenate([on, found[0]])
        values = {name: np.concatenate([part, found[1][name]]) for name, part in values.items()}
        logits = np.concatenate([logits, found[2]])

    if not on.any(0).all():
        extend(candidate_faces(_MORE_CANDIDATES, seed=1, shape=shape))
    live: _BoolArray = np.asarray(on.any(0))
    if sums is not None:
        live = sums.highest_of(tensors) > 0
    wanted: list[Callable[[Uint8Array], FloatArray]] = [
        _unit_score(watched, int(unit)) for unit in np.flatnonzero(live & ~on.any(0))
    ]
    wanted += [_class_score(watched, label) for label in range(logits.shape[1]) if label not in set(logits.argmax(1))]
    for number, score in enumerate(wanted[:_MOST_SEARCHES]):
        found = _search(score, faces, np.random.default_rng(number))
        if found is not None:
            extend(found[None])
    pairs = []
    for index, name in watched.linear:
        output, before, axes = watched.tensors[index]
        top = values[output].max() if sums is None else sums.highest_of([(before, axes)]).max()
        pairs.append((values[output], values[name], max(float(top), 0.0)))
    first = list(range(len(at_extremes)))
    chosen, weights_live, weights_covered = _choose(on, live, pairs, logits.argmax(1), first, most)
    golden = faces[chosen]
    return Coverage(
        golden=golden,
        made_up=faces,
        units=on.shape[1],
        live=int(live.sum()),
        covered=int((on[chosen].any(0) & live).sum()),
        weights_live=weights_live,
        weights_covered=weights_covered,
        layer_extremes=0 if sums is None else 2 * sums.layers,
        layer_extremes_covered=0 if sums is None else sums.layers_reached(golden),
        extremes=0 if sums is None else 2 * sums.units,
        extremes_covered=0 if sums is None else int(sums.reached(golden).any(0).sum()),
        is_measured=labelled is not None,
        classes=tuple(sorted(set(logits.argmax(1).tolist()))),
    )


def _unit_score(watched: _Watched, unit: int) -> Callable[[Uint8Array], FloatArray]:
    return lambda faces: watched.before(faces)[:, unit]


def _class_score(watched: _Watched, label: int) -> Callable[[Uint8Array], FloatArray]:
    def score(faces: Uint8Array) -> FloatArray:
        logits = watched.run(faces)[2]
        others = np.delete(logits, label, axis=1).max(1)
        ahead: FloatArray = logits[:, label] - others
        return ahead

    return score


def _search(
    score: Callable[[Uint8Array], FloatArray], faces: Uint8Array, random: np.random.Generator
) -> Uint8Array | None:
    """A synthetic face whose score is above zero, by mutation of the best so far; None when none is found."""
    pool = faces
    scores = np.concatenate([score(pool[start : start + _BATCH]) for start in range(0, len(pool), _BATCH)])
    for _ in range(_ROUNDS):
        best = np.argsort(-scores, kind="stable")[:_PARENTS]
        if scores[best[0]] > 0:
            break
        more = mutated_faces(pool[best], _MUTANTS, random)
        pool, scores = np.concatenate([pool[best], more]), np.concatenate([scores[best], score(more)])
    best_place = int(scores.argmax())
    found: Uint8Array = pool[best_place]
    return found if scores[best_place] > 0 else None


def _choose(
    on: _BoolArray,
    live: _BoolArray,
    pairs: Sequence[tuple[FloatArray, FloatArray, float]],
    labels: npt.NDArray[np.int64],
    first: Sequence[int],
    most: int = GOLDEN_BATCH,
) -> tuple[list[int], int, int]:
    """Greedy: after the first, the face that adds most, units first, then connections of hidden linear layers.

    A connection that a face exercises well counts for more than one whose ends are only on: a small error in its weight
    moves the unit's integer by several steps, and the unit is not saturated.

    Args:
        pairs: of each such layer, its units, its inputs, and the highest unit on labelled faces.
        first: indices of faces that are chosen in any case.
        most: faces to choose.

    Returns:
        Indices of the chosen faces, connections that any face reaches, and those that the chosen faces reach.
    """
    chosen: list[int] = []
    # Each unit twice: a fault may hide where the unit's effect on one face is small.
    missing = np.minimum(on.sum(0), 2) * live
    ends = [(units > 0, inputs > 0) for units, inputs, _ in pairs]
    ends += [
        ((units > _NEAR_OFF * top) & (units < _NEAR_TOP * top), inputs * _ERROR > _STEPS / 255 * top)
        for units, inputs, top in pairs
    ]
    ends = [(units.astype(np.float32), inputs.astype(np.float32)) for units, inputs in ends]
    needed = [(units.T @ inputs > 0).astype(np.float32) for units, inputs in ends]
    weights = [1.0] * len(pairs) + [_WELL] * len(pairs)
    everything = int(sum(need.sum() for need in needed[: len(pairs)]))

    def take(face: int) -> None:
        nonlocal missing
        chosen.append(face)
        missing = np.maximum(missing - on[face], 0)
        for need, (outputs, inputs) in zip(needed, ends, strict=True):
            need[np.ix_(outputs[face] > 0, inputs[face] > 0)] = 0

    for face in first:
        take(face)
    while len(chosen) < most:
        gains = (on & (missing > 0)).sum(1).astype(np.float64) * 1e6
        for weight, need, (outputs, inputs) in zip(weights, needed, ends, strict=True):
            gains += weight * ((outputs @ need) * inputs).sum(1)
        # Of equal gain, a label that no chosen face has.
        new_label = ~np.isin(labels, labels[chosen])
        gains[chosen] = -1
        best = int(np.argmax(gains + 0.5 * new_label))
        if gains[best] == 0 and not new_label[best] and len(chosen) >= FEWEST_GOLDEN_FACES:
            break
        take(best)
    left = int(sum(need.sum() for need in needed[: len(pairs)]))
    return chosen, everything, everything - left


# A ReLU behind these still switches the layer's units: they add to them or scale them.
_BEFORE_RELU = frozenset(("Add", "Sub", "Mul", "Div", "BatchNormalization"))


def _layers_without_relu(model: onnx.ModelProto) -> list[tuple[str, tuple[int, ...]]]:
    """Outputs of hidden layers that no ReLU follows, with all their axes but the faces' and the units'."""
    reach_relu: set[str] = set()
    for node in reversed(model.graph.node):
        if node.op_type == "Relu" or (node.op_type in _BEFORE_RELU and node.output[0] in reach_relu):
            reach_relu.update(node.input)
    return [(name, axes) for name, axes in layer_outputs(model) if name not in reach_relu and name not in OUTPUT_LAYERS]
