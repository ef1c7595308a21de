"""Single weights moved in a model file, and whether the replay of its golden faces notices.

`python -m tests.export.moved_weights` moves one weight of every live unit of every bundled model and prints a table.
`--every 20` takes every twentieth unit of each layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fer_export.gate.units import quantized_scales
from fer_export.int8.shared import find_shared
from fer_runtime.model.certificate import parse_certificate
from fer_runtime.model.find import packaged_models_dir
from fer_runtime.model.load import load_model
from fer_runtime.model.self_test import run_self_test
from fer_runtime.model.session import open_session

MOVE = 0.05  # of a weight of the trained network
_SMALL = 64  # positions of a map that a face may switch on at one place alone


@dataclass(frozen=True)
class Layer:
    """A layer's weights in a file, and what the golden faces give it."""

    name: str  # of the weights
    axis: int  # of the weights, that counts units
    steps: np.ndarray  # what one of the file's numbers stands for in the network, by unit
    change: np.ndarray  # what the smallest input moves in the output where the weight moves by one, by unit
    is_rounded: bool  # its output is; a change of less than a step need not show
    inputs: np.ndarray  # (faces, inputs), the largest distance of each from zero
    on: np.ndarray  # (faces, units), which golden face switches which unit on
    moves: np.ndarray  # the same, and the unit is not saturated there: a change of it shows
    # Of a convolution over small maps, its inputs at each position, and where its units are on and not saturated.
    maps: tuple[np.ndarray, np.ndarray] | None


class Replayed:
    """A model file whose weights are moved one at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.loaded = load_model(path)
        self.faces = parse_certificate(self.loaded.metadata, source=str(path)).faces
        self.model = onnx.load_from_string(self.loaded.content)
        self.tensors = {tensor.name: tensor for tensor in self.model.graph.initializer}
        self.producers = {node.output[0]: node for node in self.model.graph.node}
        self.written = quantized_scales(self.model)
        self.shared = find_shared(self.model, "unfamiliarity")
        self.layers = self._layers()

    def _layers(self) -> list[Layer]:
        found = [node for node in self.model.graph.node if node.op_type in ("Conv", "Gemm")]
        sources = [node.input[0] for node in found]
        sources = [
            self.producers[source].input[0] if self._is_int8(node) else source
            for source, node in zip(sources, found, strict=True)
        ]
        outputs = [self._behind(node.output[0]) for node in found]
        largest, moving = self._largest(list(dict.fromkeys([*sources, *outputs])))
        layers = []
        for node, source, output in zip(found, sources, outputs, strict=True):
            weights = self.producers[node.input[1]].input[0] if self._is_int8(node) else node.input[1]
            is_transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
            axis = 1 if node.op_type == "Gemm" and not is_transposed else 0
            units = self.tensors[weights].dims[axis]
            scale: np.ndarray = np.ones(units)
            if self._is_int8(node):
                stored = numpy_helper.to_array(self.tensors[self.producers[node.input[1]].input[1]])
                scale = np.broadcast_to(stored.astype(np.float64), (units,))
            step: Any = self._written(output)[0] / self._written(source)[0]
            if self.shared is not None and weights == self.shared.weights:
                step = np.full(units, step)
                step[list(self.shared.score_places)] = self.shared.score_step / self._written(source)[0]
            elif self.shared is not None and output == "unfamiliarity_score":
                step = 1 / self.shared.score_step
            # The first layer's weights hold the 1/255 of the pixels besides.
            is_first = not any(node.op_type in ("Conv", "Gemm") for node in self._before(source))
            layers.append(
                Layer(
                    name=weights,
                    axis=axis,
                    steps=scale * step * (255 if is_first else 1),
                    change=scale,
                    is_rounded=output in self.written,
                    inputs=largest[source].max(2),
                    on=largest[output].max(2) > 0,
                    moves=np.asarray(moving[output].any(2)),
                    maps=(largest[source], moving[output])
                    if largest[source].shape[2] == largest[output].shape[2] > 1
                    else None,
                )
            )
        return layers

    def _is_int8(self, node: onnx.NodeProto) -> bool:
        return node.input[1] in self.producers

    def _behind(self, output: str) -> str:
        """A layer's output behind its Relu or rounding."""
        readers = [node for node in self.model.graph.node if output in node.input]
        is_inside = len(readers) == 1 and readers[0].op_type in ("Relu", "QuantizeLinear")
        return str(readers[0].output[0]) if is_inside else output

    def _before(self, name: str) -> Iterator[onnx.NodeProto]:
        while name in self.producers:
            yield self.producers[name]
            name = self.producers[name].input[0]

    def _written(self, name: str) -> tuple[float, int]:
        """Step and zero point of a uint8 tensor, also behind what only moves it."""
        while name not in self.written and name in self.producers:
            name = self.producers[name].input[0]
        return self.written.get(name, (1.0, 0))

    def _largest(self, names: list[str]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """By tensor, (faces, channels, positions); of large maps only one position, the largest of all.

        Returns:
            The distance from zero, and where that is above zero and the integer is not at an end of its range.
        """
        shown = onnx.ModelProto()
        shown.CopyFrom(self.model)
        inferred = onnx.shape_inference.infer_shapes(shown).graph
        kinds = {value.name: value.type.tensor_type.elem_type for value in inferred.value_info}
        shown.graph.output.extend(
            helper.make_tensor_value_info(name, kinds[name], None) for name in names if name in kinds
        )
        session = open_session(shown.SerializeToString(), source="the model").session
        given = {"faces": self.faces}
        asked = [name for name in names if name != "faces"]
        result = {"faces": np.full((len(self.faces), 1, 1), 255.0)}
        moving = {"faces": result["faces"] > 0}
        for name, value in zip(asked, session.run(asked, given), strict=True):
            zero = self._written(name)[1] if value.dtype == np.uint8 else 0
            distance = np.abs(value.astype(np.float64) - zero)
            by_position = distance.reshape(*distance.shape[:2], -1)
            is_small = by_position.shape[2] <= _SMALL
            result[name] = by_position if is_small else by_position.max(2, keepdims=True)
            is_free = (value > 0) & (value < 255) if value.dtype == np.uint8 else np.ones(value.shape, bool)
            moves = (by_position > 0) & is_free.reshape(by_position.shape)
            moving[name] = moves if is_small else moves.any(2, keepdims=True)
        return result, moving

    def weights(
        self, random: np.random.Generator, *, every: int = 1, any_weight: bool = False
    ) -> Iterator[tuple[Layer, tuple[int, ...]]]:
        """A random weight of every live unit, or of a share of each layer's units.

        Args:
            random: chooses units and weights.
            every: one live unit in so many, and at least one of each layer.
            any_weight: also weights that no golden face exercises.
        """
        for layer in self.layers:
            live = np.flatnonzero(layer.on.any(0))
            for unit in random.permutation(live)[: -(-len(live) // every)]:
                dims = self.tensors[layer.name].dims
                place = [int(random.integers(size)) for size in dims]
                place[layer.axis] = int(unit)
                exercised = self._exercised(layer, int(unit))
                if not any_weight and len(exercised):
                    # At the middle of a kernel, which no map is too small for.
                    place = [place[0], place[1], *(size // 2 for size in dims[2:])]
                    place[1 - layer.axis] = int(random.choice(exercised))
                yield layer, tuple(place)

    def _exercised(self, layer: Layer, unit: int) -> np.ndarray:
        """Inputs that are on where the unit is, and there move its output by a step or more if it is rounded.

        Where the integer is saturated, a larger sum does not move it.
        """
        if layer.maps is None:
            inputs = layer.inputs[layer.moves[:, unit]]
        else:  # where the unit is on, the middle of its kernel reads that very position
            given, units = layer.maps
            inputs = given.transpose(0, 2, 1)[units[:, unit]]
        least = 1.0 if layer.is_rounded else np.finfo(np.float64).tiny
        return np.flatnonzero((inputs * layer.change[unit] * self._count(layer, unit) >= least).any(0))

    def _count(self, layer: Layer, unit: int) -> float:
        """MOVE in the numbers of the file."""
        count = MOVE / float(layer.steps[unit])
        # The integers of a layer of small weights do not reach as far as that.
        return min(max(1, round(count)), 127) if self.tensors[layer.name].data_type == TensorProto.INT8 else count

    def replay(self, layer: Layer, place: tuple[int, ...]) -> list[str]:
        """Move one weight and replay the golden faces; returns the checks that fail."""
        tensor = self.tensors[layer.name]
        before = numpy_helper.to_array(tensor)
        values = before.copy()
        moved = float(before[place]) + self._count(layer, place[layer.axis])
        if before.dtype == np.int8 and moved > 127:
            moved = 2 * float(before[place]) - moved
        values[place] = moved
        tensor.CopyFrom(numpy_helper.from_array(values, layer.name))
        content = self.model.SerializeToString()
        tensor.CopyFrom(numpy_helper.from_array(before, layer.name))
        with TemporaryDirectory() as folder:
            changed = Path(folder) / self.path.name
            changed.write_bytes(content)
            report = run_self_test(changed)
        # Only what the faces show counts here.
        return [check.name for check in report.checks if not check.passed and check.name != "digest"]


@click.command()
@click.option("--every", default=1, show_default=True, help="Move a weight of one live unit in N, of every layer.")
@click.option("--any-weight", is_flag=True, help="Also weights that no golden face exercises.")
@click.option("--seed", default=0, show_default=True)
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, exists=True))
def main(every: int, any_weight: bool, seed: int, files: tuple[Path, ...]) -> None:
    """Move single weights of FILES by 0.05, by default of the bundled models, and replay their golden faces."""
    click.echo(f"{'file':20} {'layers':>6} {'weights':>7} {'noticed':>8}  not noticed")
    for path in files or tuple(sorted(packaged_models_dir().glob("*.onnx"))):
        replayed = Replayed(path)
        chosen = list(replayed.weights(np.random.default_rng(seed), every=every, any_weight=any_weight))
        missed = [f"{layer.name}{list(place)}" for layer, place in chosen if not replayed.replay(layer, place)]
        layers, share = len(replayed.layers), 1 - len(missed) / len(chosen)
        names = ", ".join(missed[:4]) + (", ..." if len(missed) > 4 else "")
        click.echo(f"{path.name:20} {layers:6} {len(chosen):7} {share:8.1%}  {names}")


if __name__ == "__main__":
    main()
