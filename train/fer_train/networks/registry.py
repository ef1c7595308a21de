"""Make networks by name, and compute their logits for faces."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from fer_runtime.errors import CheckpointError
from fer_runtime.expressions import EXPRESSIONS, FACE_SIZE
from fer_runtime.registry import load
from fer_train.networks.architectures import find_architecture

# Faces per batch of an evaluation.
_EVALUATION_BATCH = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkShape:
    """Number of classes, and size and colour of the faces, of a network; FER2013's by default."""

    classes: int = len(EXPRESSIONS)
    size: int = FACE_SIZE  # pixels, side of the faces
    color: str = "gray"  # or "rgb"


FER2013 = NetworkShape()


def create_network(name: str, shape: NetworkShape = FER2013, *, dropout: float = 0.25) -> nn.Module:
    """Make a network with fresh weights: float32 (batch, 3, size, size), 0 to 1, to logits float32 (batch, classes).

    Args:
        name: as `find_architecture` takes it.
        dropout: share of the hidden layer's values left out of a training step.

    Raises:
        ValueError: there is no such network.
        CheckpointError: it cannot be made, or not for these faces and classes.
    """
    architecture = find_architecture(name)
    wanted = {"classes": shape.classes, "size": shape.size, "color": shape.color, "dropout": dropout}
    if not architecture.is_foreign:
        network: nn.Module = _call(load(architecture.build), {**wanted, **architecture.arguments}, name)
        return network
    from fer_train.networks.foreign import adapted, load_function

    made = _call(load_function(architecture.build), {**wanted, **architecture.arguments}, name)
    return adapted(made, source=name, classes=shape.classes, size=shape.size, color=shape.color)


def takes_dropout(name: str) -> bool:
    """Whether the network's function takes an argument `dropout`; without it that setting does nothing."""
    architecture = find_architecture(name)
    if not architecture.is_foreign:
        return True
    from fer_train.networks.foreign import load_function

    taken, takes_all = _parameters(load_function(architecture.build))
    return takes_all or "dropout" in taken


def _parameters(build: Any) -> tuple[set[str], bool]:
    """Names of a function's parameters, and whether it takes any others as well."""
    parameters = inspect.signature(build).parameters.values()
    takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    return {parameter.name for parameter in parameters}, takes_all


def _call(build: Any, wanted: dict[str, Any], name: str) -> Any:
    """`build` called with those of the arguments that it takes."""
    taken, takes_all = _parameters(build)
    if not takes_all and "classes" not in taken and wanted["classes"] != FER2013.classes:
        raise CheckpointError(
            f"the function of {name} takes no argument `classes`, so it cannot make a network for these classes; add it"
        )
    given = {key: value for key, value in wanted.items() if takes_all or key in taken}
    try:
        inspect.signature(build).bind(**given)
    except TypeError as error:
        raise CheckpointError(
            f"the function of {name} cannot be called with {', '.join(given) or 'nothing'} ({error}); give its other "
            "arguments a default"
        ) from error
    return build(**given)


@cache
def state_shapes(name: str, shape: NetworkShape = FER2013) -> dict[str, tuple[int, ...]]:
    """Shapes of the network's state dict, without taking memory for it."""
    try:
        with torch.device("meta"):
            network = create_network(name, shape)
    except (RuntimeError, TypeError):  # what a network of others does while it is made
        network = create_network(name, shape)
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


def last_layer(name: str, shape: NetworkShape = FER2013) -> tuple[str, ...]:
    """Names of the weights and biases with a row for each class: those that change with the number of classes."""
    other = state_shapes(name, NetworkShape(classes=shape.classes + 1, size=shape.size, color=shape.color))
    return tuple(key for key, sizes in state_shapes(name, shape).items() if other.get(key) != sizes)


def has_label_rows(name: str, shape: NetworkShape = FER2013) -> bool:
    """Whether each tensor of the last layer has its classes in its first dimension, as those of PyTorch's layers."""
    more = state_shapes(name, NetworkShape(classes=shape.classes + 1, size=shape.size, color=shape.color))
    rows = {key: state_shapes(name, shape)[key] for key in last_layer(name, shape)}
    return all(
        sizes[:1] == (shape.classes,) and more.get(key) == (shape.classes + 1, *sizes[1:])
        for key, sizes in rows.items()
    )


def to_network_input(faces: Tensor, *, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Faces as the network takes them: uint8 to float32 (batch, 3, size, size), (faces / 255 - mean) / std.

    Args:
        faces: uint8 (batch, size, size), whose three channels are views of one plane, without a copy; or
            (batch, size, size, 3) in RGB.
    """
    scaled = (faces.to(torch.float32).div_(255.0) - mean) / std
    return scaled.permute(0, 3, 1, 2) if scaled.ndim == 4 else scaled[:, None].expand(-1, 3, -1, -1)


def predict_logits(network: nn.Module, faces: Tensor, *, flip: bool = False) -> Tensor:
    """Logits float32 (faces, classes) on CPU, for faces as `to_network_input` takes them, on the network's device.

    Args:
        flip: mirror the faces first.
    """
    was_training = network.training
    network.eval()
    rows = []
    with torch.inference_mode():
        for batch in torch.split(faces, _EVALUATION_BATCH):
            images = to_network_input(batch.flip(2) if flip else batch)
            rows.append(network(images.contiguous(memory_format=torch.channels_last)).float().cpu())
    network.train(was_training)
    return torch.cat(rows)
