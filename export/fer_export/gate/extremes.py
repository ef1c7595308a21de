"""Made-up faces on which the sums of every layer reach as far as on labelled faces.

A layer's sums are its outputs before ReLU and rounding: the accumulators of an int8 kernel. How far they reach decides
whether a kernel saturates or overflows as it should. The search climbs gradients of the float network. Its tensors are
held to the ranges that labelled faces set, as int8 holds them: a sum that needs more than that is not reached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from fer_export.gate.golden import mutated_faces
from fer_export.torch_module import OnnxModule
from fer_runtime.errors import ModelFileError
from fer_runtime.model.parity import FloatArray, Uint8Array
from fer_runtime.model.session import open_session

_BoolArray = npt.NDArray[np.bool_]

NEAR = 0.05  # of a sum's range on labelled faces, from its end
_GRAYS = 4  # of a face that was searched for: two bits a pixel
_BATCH = 64
_AT_ONCE = 8  # faces that climb together
_STEPS = 40
_RATE = 0.05  # of Adam, for pixels of 0 to 1
_GOAL = 0.98  # of a sum's range: above 0.95 by what the grays round
_WIDTHS = 0.5, 0.08  # of the range, over which a missing extreme draws: at the first step and at the last
_FAR = 0.02  # what one draws with beyond that, as a share of its distance
# Multiply-adds of the search: ten seconds of one core for v0, a minute and a half for v3, two for v1.
_MOST_WORK = 2e12
_FEWEST_ROUNDS, _MOST_ROUNDS = 2, 40
_PATIENCE = 4  # rounds that reach nothing more
_OWN = 10.0  # what a face's own extreme draws with, where few are left and each face is given one
_MUTANTS = 64  # of a round without gradients


class Sums:
    """The sums of a float model's layers, and the ends of their ranges on labelled faces.

    Args:
        model: the float model.
        more: further tensors and the axes along which a unit's values lie.
        labelled: faces that set the ranges, uint8.
    """

    def __init__(
        self, model: onnx.ModelProto, more: Sequence[tuple[str, tuple[int, ...]]], labelled: Uint8Array
    ) -> None:
        self.tensors = list(dict.fromkeys([*layer_outputs(model), *more]))
        ends = _Ends(model, self.tensors)
        found = [ends.run(labelled[start : start + _BATCH]) for start in range(0, len(labelled), _BATCH)]
        self.high: FloatArray = np.stack([highest.max(0) for highest, _ in found]).max(0)
        self.low: FloatArray = np.stack([lowest.min(0) for _, lowest in found]).min(0)
        # A sum that labelled faces never move is reached by any other; float32 holds what is divided by this.
        self.range: FloatArray = np.maximum(self.high - self.low, np.float32(1e-30))
        self.places = ends.places(labelled[:1])
        self.model = _held(
            model,
            {
                name: (float(self.low[place].min()), float(self.high[place].max()))
                for (name, _), place in zip(self.tensors, self.places, strict=True)
            },
        )
        self._ends = _Ends(self.model, self.tensors)

    @property
    def layers(self) -> int:
        return len(self.tensors)

    @property
    def units(self) -> int:
        return len(self.high)

    def highest_of(self, tensors: Sequence[tuple[str, tuple[int, ...]]]) -> FloatArray:
        """The highest sums of some of the tensors on labelled faces, (units,)."""
        return np.concatenate([self.high[self.places[self.tensors.index(tensor)]] for tensor in tensors])

    def reached(self, faces: Uint8Array) -> _BoolArray:
        """Which extremes each face reaches: (faces, 2 * units), the highest sums first."""
        share = self.shares(faces)
        reached: _BoolArray = share >= 1 - NEAR
        return reached

    def shares(self, faces: Uint8Array) -> FloatArray:
        """How far each face drives each sum, (faces, 2 * units); 1 is the extreme of labelled faces."""
        rows: list[npt.NDArray[np.floating]] = [np.zeros((0, 2 * self.units), np.float32)]
        for start in range(0, len(faces), _BATCH):
            highest, lowest = self._ends.run(faces[start : start + _BATCH])
            rows.append(np.concatenate([highest - self.low, self.high - lowest], 1) / np.tile(self.range, 2))
        return np.concatenate(rows)

    def layers_reached(self, faces: Uint8Array) -> int:
        """How many of the 2 * layers extremes of whole layers, over all their units, some face reaches."""
        found = [self._ends.run(faces[start : start + _BATCH]) for start in range(0, len(faces), _BATCH)]
        highest = np.concatenate([high for high, _ in found]).max(0)
        lowest = np.concatenate([low for _, low in found]).min(0)
        count = 0
        for place in self.places:
            top, bottom = float(self.high[place].max()), float(self.low[place].min())
            near = NEAR * (top - bottom)
            count += int(highest[place].max() >= top - near) + int(lowest[place].min() <= bottom + near)
        return count


class _Ends:
    """The highest and lowest value of each unit of some tensors."""

    def __init__(self, model: onnx.ModelProto, tensors: Sequence[tuple[str, tuple[int, ...]]]) -> None:
        watched = onnx.ModelProto()
        watched.CopyFrom(model)
        self.names = [
            _reduced(watched, name, axes, operator, f"{operator}_of_{number}")
            for operator in ("ReduceMax", "ReduceMin")
            for number, (name, axes) in enumerate(tensors)
        ]
        self.session = open_session(watched.SerializeToString(), source="the float model").session

    def run(self, faces: Uint8Array) -> tuple[FloatArray, FloatArray]:
        """Of each face: (faces, units), (faces, units)."""
        found = self.session.run(self.names, {"faces": faces})
        count = len(found) // 2
        return np.concatenate(found[:count], 1), np.concatenate(found[count:], 1)

    def places(self, face: Uint8Array) -> list[slice]:
        """Columns of each tensor's units."""
        found = self.session.run(self.names, {"faces": face})
        ends = np.cumsum([highest.shape[1] for highest in found[: len(found) // 2]]).tolist()
        return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _reduced(model: onnx.ModelProto, name: str, axes: tuple[int, ...], operator: str, output: str) -> str:
    if axes:
        constant = f"{output}_axes"
        model.graph.initializer.append(numpy_helper.from_array(np.array(axes), constant))
        model.graph.node.append(helper.make_node(operator, [name, constant], [output], keepdims=0))
    else:
        model.graph.node.append(helper.make_node("Identity", [name], [output]))
    model.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, None))
    return output


def layer_outputs(model: onnx.ModelProto) -> list[tuple[str, tuple[int, ...]]]:
    """Outputs of convolutions and linear layers, with all their axes but the faces' and the units'."""
    constants = {tensor.name for tensor in model.graph.initializer}
    ranks = tensor_ranks(model)
    found = []
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or not any(name in constants for name in node.input[:2]):
            continue
        if (rank := ranks.get(node.output[0])) is not None:
            units = 1 if node.op_type == "Conv" else rank - 1
            found.append((node.output[0], tuple(axis for axis in range(1, rank) if axis != units)))
    return found


def tensor_ranks(model: onnx.ModelProto) -> dict[str, int]:
    """Number of dimensions of each tensor whose shape can be inferred, by name."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    return {value.name: len(value.type.tensor_type.shape.dim) for value in (*inferred.value_info, *inferred.output)}


def _held(model: onnx.ModelProto, bounds: dict[str, tuple[float, float]]) -> onnx.ModelProto:
    """A copy whose tensors are held to their bounds before another node reads them."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    outputs = {output.name for output in graph.output}
    nodes = list(graph.node)
    for name, ends in bounds.items():
        readers = [node for node in nodes if name in node.input]
        if not readers or name in outputs:
            continue
        held = f"{name}_held"
        limits = [f"{held}_{end}" for end in ("low", "high")]
        for limit, value in zip(limits, ends, strict=True):
            graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), limit))
        for node in readers:
            for place, given in enumerate(node.input):
                if given == name:
                    node.input[place] = held
        position = next(place for place, node in enumerate(nodes) if name in node.output)
        nodes.insert(position + 1, helper.make_node("Clip", [name, *limits], [held]))
    del graph.node[:]
    graph.node.extend(nodes)
    return changed


def faces_at_extremes(sums: Sums, given: Uint8Array, *, most: int) -> Uint8Array:
    """Few synthetic faces that together reach as many extremes as the search finds, uint8.

    Args:
        sums: of the network.
        given: synthetic faces that may be chosen as well.
        most: how many. The first 9 hold all extremes of v0, the first 25 those of v3; v1 needs more than 104.
    """
    random = np.random.default_rng(0)
    climber = _climber(sums)
    rounds = _MOST_ROUNDS
    if isinstance(climber, _Climber):
        work = 3 * climber.multiplications * _AT_ONCE * _STEPS  # of a round, forth and back
        rounds = int(np.clip(_MOST_WORK // work, _FEWEST_ROUNDS, _MOST_ROUNDS))
    pool, shares = given, sums.shares(given)
    chosen: list[int] = []
    missing: _BoolArray = np.ones(2 * sums.units, bool)
    idle = 0
    for _ in range(rounds):
        starts = [climber.noise(random, given.shape[1:]) for _ in range(_AT_ONCE)]
        if chosen:
            # Half of the faces start where an extreme that is missing is nearest.
            targets = random.permutation(np.flatnonzero(missing))[: _AT_ONCE // 2]
            starts[: len(targets)] = [pool[int(shares[:, extreme].argmax())] for extreme in targets]
        more = climber.climb(np.stack(starts), missing, random)
        pool, shares = np.concatenate([pool, more]), np.concatenate([shares, sums.shares(more)])
        reached = shares >= 1 - NEAR
        idle += 1
        for _ in range(_AT_ONCE // 4):
            gains = (reached & missing).sum(1)
            best = int(gains.argmax())
            if gains[best]:
                chosen.append(best)
                missing = missing & ~reached[best]
                idle = 0
        if not missing.any() or idle == _PATIENCE:
            break
    # What no face has reached so far, a face of its own may.
    idle = 0
    for _ in range(rounds):
        left = np.flatnonzero(shares.max(0) < 1 - NEAR)
        if not len(left) or idle == _PATIENCE:
            break
        own = np.resize(random.permutation(left), _AT_ONCE)
        starts = [pool[int(shares[:, extreme].argmax())] for extreme in own]
        more = climber.climb(np.stack(starts), shares.max(0) < 1 - NEAR, random, own=own)
        reached_more = sums.shares(more)
        idle = 0 if (reached_more[:, left] >= 1 - NEAR).any() else idle + 1
        pool, shares = np.concatenate([pool, more]), np.concatenate([shares, reached_more])
    return pool[_fewest(shares >= 1 - NEAR, most)]


def _fewest(reached: _BoolArray, most: int) -> list[int]:
    """Greedy: few faces that reach what all reach."""
    missing = reached.any(0)
    chosen: list[int] = []
    while missing.any() and len(chosen) < most:
        best = int((reached & missing).sum(1).argmax())
        chosen.append(best)
        missing = missing & ~reached[best]
    return chosen


def _climber(sums: Sums) -> _Climber | _Mutator:
    try:
        return _Climber(sums)
    except ModelFileError:  # an adopted graph has operators that PyTorch is not told of
        return _Mutator(sums)


class _Climber:
    """Follows gradients."""

    def __init__(self, sums: Sums) -> None:
        self.sums = sums
        self._module = OnnxModule(sums.model, [name for name, _ in sums.tensors]).eval()
        weights = {node.output[0]: node.input[1] for node in sums.model.graph.node if len(node.input) > 1}
        sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in sums.model.graph.initializer}
        face = [dimension.dim_value for dimension in sums.model.graph.input[0].type.tensor_type.shape.dim][1:]
        with torch.inference_mode():
            values = self._module(torch.zeros(1, *face))
        self.multiplications = sum(
            sizes.get(weights.get(name, ""), 0) * int(np.prod(value.shape[2:]))
            for (name, _), value in zip(sums.tensors, values, strict=True)
        )

    def noise(self, random: np.random.Generator, shape: tuple[int, ...]) -> Uint8Array:
        return random.integers(0, 256, shape, np.uint8)

    def climb(
        self,
        starts: Uint8Array,
        missing: _BoolArray,
        random: np.random.Generator,
        *,
        own: npt.NDArray[np.int64] | None = None,
    ) -> Uint8Array:
        """Faces that reach more of the missing extremes.

        Args:
            own: one of them for each face, which counts more.
        """
        module, wanted = self._drawing(missing)
        left = torch.from_numpy(np.flatnonzero(missing))
        weights = torch.ones(1, len(left)) if own is None else 1 + _OWN * (left == torch.from_numpy(own)[:, None])
        pixels = torch.from_numpy(starts.astype(np.float32) / 255).clamp(0.02, 0.98).requires_grad_()
        optimizer = torch.optim.Adam([pixels], lr=_RATE)
        first, last = _WIDTHS
        for step in range(_STEPS):
            width = first + (last - first) * step / _STEPS
            # Rounded as the face will be; the gradient passes as if it were not.
            rounded = torch.round(pixels.detach() * (_GRAYS - 1)) / (_GRAYS - 1)
            shares = _shares(module(255 * (pixels + (rounded - pixels).detach())), wanted)
            optimizer.zero_grad()
            gain = torch.sigmoid((shares - _GOAL) / width) + _FAR * shares.clamp(max=_GOAL)
            (-(weights * gain).sum()).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            with torch.no_grad():
                pixels.clamp_(0, 1)
        grays = np.rint(pixels.detach().numpy() * (_GRAYS - 1)) * (255 // (_GRAYS - 1))
        faces: Uint8Array = grays.astype(np.uint8)
        return faces

    def _drawing(self, missing: _BoolArray) -> tuple[OnnxModule, list[_Wanted]]:
        """The network up to the tensors of the missing extremes, and those extremes.

        The others draw at nothing. Their gradients would be zeros that take most of a round's time.
        """
        sums = self.sums
        highest, lowest = np.split(missing, 2)
        wanted, names = [], []
        for (name, axes), place in zip(sums.tensors, sums.places, strict=True):
            ends = np.flatnonzero(highest[place]), np.flatnonzero(lowest[place])
            if not any(len(units) for units in ends):
                continue
            names.append(name)
            above, below = (torch.from_numpy(units) for units in ends)
            low, high, reach = (torch.from_numpy(ends[place]) for ends in (sums.low, sums.high, sums.range))
            wanted.append(_Wanted(axes=axes, above=above, below=below, low=low, high=high, range=reach))
        if self._module.outputs != tuple(names):
            self._module = OnnxModule(sums.model, names).eval()
        return self._module, wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """The extremes of one tensor that faces climb to."""

    axes: tuple[int, ...]  # along which a unit's values lie
    above: torch.Tensor  # units whose highest sums are missing, int64
    below: torch.Tensor  # units whose lowest sums are missing, int64
    low: torch.Tensor  # of each unit on labelled faces, float32
    high: torch.Tensor
    range: torch.Tensor


def _shares(values: Sequence[torch.Tensor], wanted: Sequence[_Wanted]) -> torch.Tensor:
    """How far each face drives the wanted sums, (faces, extremes), the highest sums first."""
    above, below = [], []
    for value, extremes in zip(values, wanted, strict=True):
        if len(extremes.above):
            units = _units(value, extremes.axes, extremes.above)
            highest = units.amax(extremes.axes) if extremes.axes else units
            above.append((highest - extremes.low[extremes.above]) / extremes.range[extremes.above])
        if len(extremes.below):
            units = _units(value, extremes.axes, extremes.below)
            lowest = units.amin(extremes.axes) if extremes.axes else units
            below.append((extremes.high[extremes.below] - lowest) / extremes.range[extremes.below])
    return torch.cat([*above, *below], 1)


def _units(value: torch.Tensor, axes: tuple[int, ...], units: torch.Tensor) -> torch.Tensor:
    (axis,) = set(range(1, value.ndim)) - set(axes)
    return value if len(units) == value.shape[axis] else value.index_select(axis, units)


class _Mutator:
    """Keeps the best of many changes."""

    def __init__(self, sums: Sums) -> None:
        self.sums = sums

    def noise(self, random: np.random.Generator, shape: tuple[int, ...]) -> Uint8Array:
        return (random.integers(0, _GRAYS, shape) * (255 // (_GRAYS - 1))).astype(np.uint8)

    def climb(
        self,
        starts: Uint8Array,
        missing: _BoolArray,
        random: np.random.Generator,
        *,
        own: npt.NDArray[np.int64] | None = None,
    ) -> Uint8Array:
        if own is not None:  # mutants of all starts compete: those for the others' extremes stay, too
            missing = np.isin(np.arange(len(missing)), own)
        faces = np.concatenate([starts, mutated_faces(starts, _MUTANTS, random)])
        shares = self.sums.shares(faces)[:, missing]
        score = (1 / (1 + np.exp(-(shares - _GOAL) / np.mean(_WIDTHS)))).sum(1)
        return faces[np.argsort(-score, kind="stable")[:_AT_ONCE]]
