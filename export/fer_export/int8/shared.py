"""Hidden units of a score within a network's own hidden layer, where both read the same inputs.

An operator costs onnxruntime half a microsecond to a whole one, whatever it computes, and v0 takes 40 for a face. One
integer product instead of two gives both layers' units: each output of a layer has a scale of its own. The network's
units that no image of the export switches on are left out; they would multiply thousands of weights for a zero.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from fer_export.int8.gptq import PAIR_LIMIT
from fer_export.int8.scales import STEP
from fer_runtime.errors import ParityError

UNITS = "fer.units"  # metadata of the layer's node: by output, the network's unit, or "u" and the score's unit
_SCORE_STEP = "fer.score_step"  # beside it: what a step of the score's units stands for
_PARAMETERS = ("", "_scale", "_zero", "_bias", "_bias_scale")
_Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedLayer:
    """A hidden layer that also holds the units of a score."""

    weights: str  # constant of the layer
    next_weights: str  # constant of the layer that reads it
    output: str  # uint8 tensor of the units
    places: tuple[int, ...]  # outputs that are the network's units
    units: tuple[int, ...]  # of the network, at these places
    score_places: tuple[int, ...]  # output of each unit of the score, in their order
    score_step: float

    def kept(self, values: _Array, *, axis: int) -> _Array:
        """The kept units out of an array of all the network's units."""
        taken: _Array = np.take(values, self.units, axis)
        return taken


class _Graph:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = model.graph.node
        self.producers = {output: node for node in self.nodes for output in node.output}
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}

    def readers(self, tensor: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if tensor in node.input]

    def source(self, tensor: str) -> str:
        """The integers behind a DequantizeLinear; "" where `tensor` is no such thing."""
        node = self.producers.get(tensor)
        return str(node.input[0]) if node is not None and node.op_type == "DequantizeLinear" else ""

    def neighbours(self, name: str) -> Iterator[tuple[onnx.NodeProto, onnx.NodeProto, onnx.NodeProto]]:
        """Hidden linear layers beside that of the score, each with its QuantizeLinear and the layer that reads it."""
        own = self.producers[f"{name}_hidden"]
        for node in self.nodes:
            if node.op_type != "Gemm" or node.output[0] == own.output[0]:
                continue
            if not self.source(node.input[0]) or self.source(node.input[0]) != self.source(own.input[0]):
                continue
            written = self.readers(node.output[0])
            if len(written) != 1 or written[0].op_type != "QuantizeLinear":
                continue
            read = self.readers(written[0].output[0])
            following = self.readers(read[0].output[0]) if len(read) == 1 else []
            if len(following) == 1 and following[0].op_type == "Gemm" and self.source(following[0].input[1]):
                yield node, written[0], following[0]


def share_layer(model: onnx.ModelProto, name: str, idle: Collection[int] = ()) -> bool:
    """Move the hidden units of the score `name` into a hidden layer of the network that reads the same inputs.

    All results stay what they are on images that switch on no unit of `idle`.

    Args:
        model: an int8 graph with the nodes of `append_score`; changed where there is such a layer.
        idle: units of that layer to leave out.

    Returns:
        Whether there is such a layer.
    """
    graph = _Graph(model)
    layer, written, following = next(graph.neighbours(name), (None, None, None))
    if layer is None or written is None or following is None or graph.constants[written.input[2]].any():
        return False
    held, weights, next_weights = graph.constants, graph.source(layer.input[1]), graph.source(following.input[1])
    own, score = held[weights].shape[1], held[f"{name}_weights"].shape[1]
    order = _order([unit for unit in range(own) if unit not in set(idle)], score, held[next_weights])
    if order is None:
        order = [*range(own), *range(own, own + score)]
    for end in _PARAMETERS:
        both = [held[weights + end], held[f"{name}_weights{end}"]]
        held[weights + end] = np.ascontiguousarray(np.concatenate(both, axis=-1)[..., order])
    zeros = np.zeros((score, held[next_weights].shape[1]), np.int8)
    held[next_weights] = np.concatenate([held[next_weights], zeros])[order]
    signs = held[f"{name}_signs"]
    held[f"{name}_signs"] = np.concatenate([np.zeros((own, 1), np.int8), signs])[order]
    layer.metadata_props.add(key=UNITS, value=" ".join(str(unit) if unit < own else f"u{unit - own}" for unit in order))
    (step,) = [entry.value for entry in graph.producers[f"{name}_units_u8"].metadata_props if entry.key == STEP]
    layer.metadata_props.add(key=_SCORE_STEP, value=step)
    graph.producers[f"{name}_score"].input[0] = following.input[0]
    _write(model, held, without=_separate_nodes(name))
    return True


def _separate_nodes(name: str) -> set[str]:
    ends = ("float", "weights_float", "weights_bias_float", "hidden", "units_u8", "units_u8_float")
    return {f"{name}_{end}" for end in ends}


def _order(kept: Sequence[int], score: int, next_weights: _Array) -> list[int] | None:
    """The kept units and then those of the score, as positions in both layers side by side.

    Units that were no neighbours before may be too large for each other: CPUs without VNNI add up the products of
    neighbours in 16 bits. A unit of the score, which the next layer weighs with 0, keeps them apart. None where there
    are too few for that.
    """
    own = len(next_weights)
    free = list(range(own, own + score))
    order: list[int] = []
    for unit in kept:
        if order and order[-1] < own and _overflows(next_weights[order[-1]], next_weights[unit]):
            if not free:
                return None
            order.append(free.pop(0))
        order.append(unit)
    return order + free


def _overflows(left: _Array, right: _Array) -> bool:
    first, second = left.astype(np.int64), right.astype(np.int64)
    return bool(((first * second > 0) & (np.abs(first) + np.abs(second) > PAIR_LIMIT)).any())


def find_shared(model: onnx.ModelProto, name: str) -> SharedLayer | None:
    """The layer that holds the units of the score `name`; None in a graph without one.

    Raises:
        ParityError: the graph says something of its units that cannot be.
    """
    layers = [node for node in model.graph.node if any(entry.key == UNITS for entry in node.metadata_props)]
    if not layers:
        return None
    graph = _Graph(model)
    try:
        (layer,) = layers
        entries = {entry.key: entry.value for entry in layer.metadata_props}
        names = entries[UNITS].split()
        (written,) = graph.readers(layer.output[0])
        (read,) = graph.readers(written.output[0])
        (following,) = [node for node in graph.readers(read.output[0]) if node.output[0] != f"{name}_score"]
        found = SharedLayer(
            weights=graph.source(layer.input[1]),
            next_weights=graph.source(following.input[1]),
            output=written.output[0],
            places=tuple(place for place, unit in enumerate(names) if not unit.startswith("u")),
            units=tuple(int(unit) for unit in names if not unit.startswith("u")),
            score_places=tuple(
                place
                for _, place in sorted((int(unit[1:]), place) for place, unit in enumerate(names) if unit[0] == "u")
            ),
            score_step=float(entries[_SCORE_STEP]),
        )
    except (KeyError, ValueError) as error:
        raise ParityError(f"the layer shared with {name} cannot be read: {error}") from error
    wanted = {f"u{unit}" for unit in range(len(found.score_places))} | {str(unit) for unit in found.units}
    sizes = {graph.constants[found.weights + end].shape[-1] for end in _PARAMETERS}
    next_rows = {len(graph.constants[constant]) for constant in (found.next_weights, f"{name}_signs")}
    if set(names) != wanted or len(wanted) != len(names) or sizes | next_rows != {len(names)}:
        raise ParityError(f"the layer shared with {name} does not have the {len(names)} units that it names")
    own, score = list(found.places), list(found.score_places)
    if graph.constants[found.next_weights][score].any() or graph.constants[f"{name}_signs"][own].any():
        raise ParityError(f"{name} and the network read each other's units")
    return found


def separate_layer(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The graph with the units of the score in a layer of their own, as `append_score` writes it, for checks.

    Raises:
        ParityError: as for `find_shared`.
    """
    separate = onnx.ModelProto()
    separate.CopyFrom(model)
    shared = find_shared(model, name)
    if shared is None:
        return separate
    graph = _Graph(separate)
    held = graph.constants
    own, score = list(shared.places), list(shared.score_places)
    for end in _PARAMETERS:
        held[f"{name}_weights{end}"] = np.ascontiguousarray(held[shared.weights + end][..., score])
        held[shared.weights + end] = np.ascontiguousarray(held[shared.weights + end][..., own])
    held[shared.next_weights] = held[shared.next_weights][own]
    held[f"{name}_signs"] = held[f"{name}_signs"][score]
    (written,) = [node for node in graph.nodes if shared.output in node.output]
    layer = graph.producers[written.input[0]]
    del layer.metadata_props[:]
    units = f"{name}_units_u8"
    held[f"{units}_scale"], held[f"{units}_zero"] = held[written.input[1]], held[written.input[2]]
    read = graph.producers[layer.input[0]]

    def node(op: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        nodes.append(helper.make_node(op, list(inputs), [output], name=output, **attributes))

    nodes: list[onnx.NodeProto] = []
    node("DequantizeLinear", read.input, f"{name}_float")
    node("DequantizeLinear", [f"{name}_weights{end}" for end in _PARAMETERS[:3]], f"{name}_weights_float", axis=1)
    biases = [f"{name}_weights{end}" for end in _PARAMETERS[3:]]
    node("DequantizeLinear", biases, f"{name}_weights_bias_float", axis=0)
    parts = ("float", "weights_float", "weights_bias_float")
    node("Gemm", [f"{name}_{end}" for end in parts], f"{name}_hidden")
    node("QuantizeLinear", [f"{name}_hidden", f"{units}_scale", f"{units}_zero"], units)
    nodes[-1].metadata_props.add(key=STEP, value=repr(shared.score_step))
    node("DequantizeLinear", [units, f"{units}_scale", f"{units}_zero"], f"{units}_float")
    place = next(index for index, other in enumerate(graph.nodes) if other.output[0] == f"{name}_score")
    graph.nodes[place].input[0] = f"{units}_float"
    everything = [*graph.nodes[:place], *nodes, *graph.nodes[place:]]
    del separate.graph.node[:]
    separate.graph.node.extend(everything)
    _write(separate, held)
    return separate


def _write(model: onnx.ModelProto, held: dict[str, _Array], without: Collection[str] = ()) -> None:
    """Write the constants that are read, and leave out nodes."""
    kept = [node for node in model.graph.node if node.output[0] not in without]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    used = {source for node in model.graph.node for source in node.input}
    del model.graph.initializer[:]
    model.graph.initializer.extend(numpy_helper.from_array(values, key) for key, values in held.items() if key in used)
