"""From a checkpoint to an ONNX graph that takes uint8 faces and gives probabilities."""

from __future__ import annotations

import copy
import logging
import warnings
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from fer_export.affine import fold_affine
from fer_export.canonical import canonical_graph
from fer_runtime.errors import CheckpointError
from fer_runtime.model.metadata import METADATA_KEY, ModelMetadata
from fer_train.checkpoints import Checkpoint
from fer_train.networks.architectures import find_architecture

DEFAULT_OPSET = 18  # the lowest that PyTorch's exporter writes without converting afterwards: read by the most runtimes


class _ModelFile(nn.Module):
    """What the file computes: faces uint8 (batch, size, size), or (batch, size, size, 3) in RGB, to logits and
    probabilities float32 (batch, classes).

    Args:
        network: takes planes of 0-255; of a foreign network, 0-1.
        offset: what is taken from the planes.
        scale: what they are divided by.
    """

    def __init__(self, network: nn.Module, *, offset: float, scale: float, temperature: float) -> None:
        super().__init__()
        self.network = network
        self._offset = offset
        self._scale = scale
        self._temperature = temperature

    def forward(self, faces: Tensor) -> tuple[Tensor, Tensor]:
        planes = faces.to(torch.float32)
        planes = planes.unsqueeze(1) if planes.ndim == 3 else planes.permute(0, 3, 1, 2)
        if self._scale != 1:
            planes = planes / self._scale
        # The mean stays outside the convolution: folded into its bias it would be wrong beside the
        # border, where the padding adds zeros and not the mean.
        if self._offset:
            planes = planes - self._offset
        logits = self.network(planes)
        return logits, torch.softmax(logits / self._temperature, dim=1)


def fold_preprocessing(network: nn.Module, *, std: float = 1.0, color: str = "gray") -> nn.Module:
    """A copy of `network` that takes planes of 0-255 instead of 0-1, and one of them instead of three equal ones.

    The first convolution's weights are divided by 255 * std. For grayscale faces they are summed over their input
    channels before: the same function, a third of that layer's work.

    Raises:
        CheckpointError: the network does not begin with a convolution over three channels.
    """
    folded = copy.deepcopy(network)
    name, first = next((found for found in folded.named_modules() if isinstance(found[1], nn.Conv2d)), ("", None))
    if first is None or first.in_channels != 3:
        raise CheckpointError("the network does not begin with a convolution over three channels")
    plane = nn.Conv2d(
        1 if color == "gray" else 3,
        first.out_channels,
        kernel_size=first.kernel_size,
        stride=first.stride,
        padding=first.padding,
        bias=first.bias is not None,
    )
    with torch.no_grad():
        # In double precision, so that the sum rounds once.
        weight = first.weight.double()
        plane.weight.copy_((weight.sum(1, keepdim=True) if color == "gray" else weight) / (255.0 * std))
        if first.bias is not None and plane.bias is not None:
            plane.bias.copy_(first.bias)
    parent, _, attribute = name.rpartition(".")
    setattr(folded.get_submodule(parent), attribute, plane)
    return folded


def export_graph(checkpoint: Checkpoint, *, temperature: float = 1.0, opset: int = DEFAULT_OPSET) -> onnx.ModelProto:
    """The float32 model of `checkpoint`: one file's content, without metadata.

    Args:
        temperature: what the logits are divided by before the softmax.
        opset: ONNX opset version.
    """
    is_foreign = find_architecture(checkpoint.name).is_foreign
    if is_foreign:
        # It brings its own mean and std, and need not begin with a convolution.
        network = _ModelFile(checkpoint.network(), offset=0.0, scale=255.0, temperature=temperature)
    else:
        network = _ModelFile(
            fold_preprocessing(checkpoint.network(), std=checkpoint.std, color=checkpoint.color),
            offset=255.0 * checkpoint.mean,
            scale=1.0,
            temperature=temperature,
        )
    # Two faces: a batch of one would be exported as a constant.
    shape = (checkpoint.size, checkpoint.size) if checkpoint.color == "gray" else (checkpoint.size, checkpoint.size, 3)
    example = torch.zeros(2, *shape, dtype=torch.uint8)
    # The exporter warns about its own internals; what it wrote is checked afterwards.
    logging.getLogger("onnxscript").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(
            network.eval(),
            (example,),
            dynamo=True,
            opset_version=opset,
            external_data=False,
            input_names=["faces"],
            output_names=["logits", "probabilities"],
            dynamic_shapes={"faces": {0: torch.export.Dim("batch")}},
            verbose=False,
            custom_translation_table={torch.ops.aten.as_strided.default: _same_values} if is_foreign else None,
        )
    model: onnx.ModelProto = program.model_proto
    _strip_notes(model)
    if is_foreign:
        outputs = [output.name for output in model.graph.output]
        model = fold_affine(canonical_graph(model, shape, outputs=outputs, source=checkpoint.name, written_opset=opset))
    return model


def _same_values(values: Any, size: Any, stride: Any, storage_offset: Any = None) -> Any:
    """`as_strided`, which PyTorch writes where only the order in memory changes: the exporter makes Gather of it.

    Of a use that changes values the gate would find the difference.
    """
    from onnxscript import opset18

    return opset18.Identity(values)


def set_temperature(model: onnx.ModelProto, temperature: float) -> onnx.ModelProto:
    """A copy of an exported model that divides its logits by another temperature."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    softmax = next(node for node in graph.node if "probabilities" in node.output)
    divisor = next((node for node in graph.node if node.op_type == "Div" and node.output[0] == softmax.input[0]), None)
    if divisor is None:  # the exporter leaves a division by 1 out
        divisor = helper.make_node("Div", [softmax.input[0], "temperature"], ["scaled_logits"], name="scaled_logits")
        softmax.input[0] = "scaled_logits"
        graph.node.insert(list(graph.node).index(softmax), divisor)
        graph.initializer.add().CopyFrom(numpy_helper.from_array(np.array(temperature, np.float32), "temperature"))
        return changed
    constant = next(tensor for tensor in graph.initializer if tensor.name == divisor.input[1])
    constant.CopyFrom(numpy_helper.from_array(np.full(tuple(constant.dims), temperature, np.float32), divisor.input[1]))
    return changed


def fix_batch(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """A copy of an exported model that takes exactly `batch` faces: some runtimes read no dynamic batch."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in (*fixed.graph.input, *fixed.graph.output):
        dimension = value.type.tensor_type.shape.dim[0]
        dimension.Clear()
        dimension.dim_value = batch
    return fixed


def free_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that takes any batch: `fix_batch` changes only the shapes of inputs and outputs."""
    free = onnx.ModelProto()
    free.CopyFrom(model)
    for value in (*free.graph.input, *free.graph.output):
        dimension = value.type.tensor_type.shape.dim[0]
        dimension.Clear()
        dimension.dim_param = "batch"
    return free


def serialize(model: onnx.ModelProto, metadata: ModelMetadata) -> bytes:
    """The file's bytes: `model` with `metadata` as its only metadata entry; equal input gives equal bytes."""
    complete = onnx.ModelProto()
    complete.CopyFrom(model)
    del complete.metadata_props[:]
    complete.metadata_props.add(key=METADATA_KEY, value=metadata.to_json())
    content: bytes = complete.SerializeToString(deterministic=True)
    return content


def _strip_notes(model: onnx.ModelProto) -> None:
    # The exporter notes stack traces with the paths of this machine on every node; they
    # weigh more than v0's nodes and differ between equal exports.
    model.doc_string = ""
    model.graph.doc_string = ""
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    holders = (model.graph.node, model.graph.input, model.graph.output, model.graph.initializer)
    for holder in holders:
        for item in holder:
            del item.metadata_props[:]
            item.doc_string = ""
