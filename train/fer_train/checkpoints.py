"""Trained weights on disk: a state dict with its settings, read without running code."""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fer_runtime.errors import CheckpointError
from fer_runtime.expressions import EXPRESSIONS
from fer_runtime.files import write_atomically
from fer_train.networks.registry import NETWORKS, create_network

FORMAT = "fer-edge checkpoint"


class OtherNetworkError(CheckpointError):
    """The weights are whole, and those of another network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Weights and what is needed to use them right."""

    name: str  # of the network, such as "v0"
    state_dict: dict[str, Tensor]
    mean: float = 0.0  # input = (faces / 255 - mean) / std, one number for all channels
    std: float = 1.0
    expressions: tuple[str, ...] = EXPRESSIONS  # in the order of the logits
    training: dict[str, Any] = field(default_factory=dict)  # summary: recipe, data, accuracy

    def network(self) -> nn.Module:
        """The network with these weights, on CPU in eval mode."""
        network = create_network(self.name)
        network.load_state_dict(self.state_dict)
        return network.eval()


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` atomically, tensors on CPU; equal weights and settings give equal bytes."""
    content = {
        "format": FORMAT,
        "name": checkpoint.name,
        "state_dict": {key: value.detach().cpu().contiguous() for key, value in checkpoint.state_dict.items()},
        "mean": checkpoint.mean,
        "std": checkpoint.std,
        "expressions": list(checkpoint.expressions),
        "training": checkpoint.training,
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getvalue())


def load_checkpoint(path: Path, *, name: str) -> Checkpoint:
    """Read weights of the network `name`: a checkpoint of ours, a plain state dict, or a whole pickled module.

    No code of the file runs, whatever it holds: PyTorch's restricted unpickler reads it, and the classes of
    the first version's modules are replaced by an empty one that only takes their attributes.

    Raises:
        CheckpointError: the file is missing, damaged, holds anything else, or is of another network.
    """
    content = _read(path, name)
    if isinstance(content, dict) and content.get("format") == FORMAT:
        if content.get("name") in NETWORKS and content["name"] != name:
            raise OtherNetworkError(f"{path} holds {content['name']}, not {name}; use --model {content['name']}")
        checkpoint = _own_checkpoint(content, path)
    else:
        checkpoint = Checkpoint(name=name, state_dict=_state_dict_in(content, path, name))
    _check_fits(checkpoint.state_dict, path, name)
    return checkpoint


def load_for_training(path: Path, *, name: str) -> Checkpoint:
    """`load_checkpoint` for what works with the trainer's own pictures and classes: logits in the order of EXPRESSIONS.

    Raises:
        CheckpointError: as for `load_checkpoint`, or the network takes normalised faces, which the trainer has not.
    """
    checkpoint = load_checkpoint(path, name=name)
    if (checkpoint.mean, checkpoint.std) != (0.0, 1.0):
        raise CheckpointError(
            f"{path} takes faces with mean {checkpoint.mean:g} and std {checkpoint.std:g} taken out, which fer-train "
            "does not do; for a teacher, give the model that fer-export makes of it"
        )
    if checkpoint.expressions == EXPRESSIONS:
        return checkpoint
    order = [checkpoint.expressions.index(expression) for expression in EXPRESSIONS]
    last = [key for key, module in create_network(name).named_modules() if isinstance(module, nn.Linear)][-1]
    state = dict(checkpoint.state_dict)
    for key in (f"{last}.weight", f"{last}.bias"):
        state[key] = state[key][order]
    return replace(checkpoint, state_dict=state, expressions=EXPRESSIONS)


def _own_checkpoint(content: dict[str, Any], path: Path) -> Checkpoint:
    """A checkpoint out of what `save_checkpoint` wrote, or what somebody made of it."""
    try:
        checkpoint = Checkpoint(
            name=content["name"],
            state_dict=_state_dict_in(content["state_dict"], path, content["name"]),
            mean=float(content["mean"]),
            std=float(content["std"]),
            expressions=tuple(content["expressions"]),
            training=dict(content["training"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is a damaged checkpoint ({error!r}); copy it again, or train again") from error
    if sorted(checkpoint.expressions) != sorted(EXPRESSIONS):
        raise CheckpointError(
            f"{path} was trained for {', '.join(map(str, checkpoint.expressions))}; "
            f"its classes must be {', '.join(EXPRESSIONS)}"
        )
    if not (checkpoint.std > 0 and math.isfinite(checkpoint.std) and math.isfinite(checkpoint.mean)):
        raise CheckpointError(
            f"{path} normalises faces with mean {checkpoint.mean:g} and std {checkpoint.std:g}, which nothing can be "
            "divided by; train again"
        )
    return checkpoint


# The classes in modules that the first version saved whole, with torch.save(model).
_MODULE_CLASSES = (
    "__main__.FaceExpressionModel",
    "NNmodel.face_expression_model.FaceExpressionModel",
    "face_expression_model.FaceExpressionModel",
    "fer_train.networks.registry.FaceExpressionCNN",
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.batchnorm.BatchNorm2d",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.conv.Conv2d",
    "torch.nn.modules.dropout.Dropout",
    "torch.nn.modules.flatten.Flatten",
    "torch.nn.modules.linear.Identity",
    "torch.nn.modules.linear.Linear",
    "torch.nn.modules.pooling.AdaptiveAvgPool2d",
    "torch.nn.modules.pooling.MaxPool2d",
    "torchvision.models.resnet.BasicBlock",
    "torchvision.models.resnet.ResNet",
)


class _PickledModule:
    """Stands in for every class of _MODULE_CLASSES: takes a module's attributes and has no code."""

    _parameters: dict[str, Tensor | None]
    _buffers: dict[str, Tensor | None]
    _modules: dict[str, _PickledModule | None]

    def state_dict(self, prefix: str = "") -> dict[str, Tensor]:
        """Parameters and buffers by the names that `nn.Module.state_dict` gives them."""
        found: dict[str, Tensor] = {}
        for values in (self._parameters, self._buffers):
            found |= {prefix + key: value for key, value in values.items() if value is not None}
        for key, module in self._modules.items():
            if isinstance(module, _PickledModule):
                found |= module.state_dict(f"{prefix}{key}.")
        return found


def _read(path: Path, name: str) -> Any:
    allowed: list[Any] = [(_PickledModule, one) for one in _MODULE_CLASSES]
    try:
        if path.is_file() and path.stat().st_size == 0:
            raise CheckpointError(f"{path} is empty; copy it again, or train with: fer-train --model {name}")
        with torch.serialization.safe_globals([*allowed, set]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"no checkpoint at {path}; train one with: fer-train --model {name}") from error
    except CheckpointError:
        raise
    except Exception as error:  # torch.load raises a dozen types for damaged files
        if refused := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise CheckpointError(
                f"{path} asks for {refused[1]}, which no checkpoint needs; it was not run. Load the file where you "
                "trust it, and save its weights alone: torch.save(network.state_dict(), FILE)"
            ) from error
        fact = error.strerror if isinstance(error, PermissionError) else "it is cut short, damaged, or no PyTorch file"
        raise CheckpointError(
            f"cannot read the checkpoint {path}: {fact}; copy it again, or train with: fer-train --model {name}"
        ) from error


def _state_dict_in(content: Any, path: Path, name: str) -> dict[str, Tensor]:
    """Weights out of a module, a state dict, or a dict that holds one of them beside an optimiser's state."""
    if isinstance(content, dict):
        for key in ("state_dict", "model_state_dict", "model"):
            if isinstance(content.get(key), (dict, _PickledModule)):
                return _state_dict_in(content[key], path, name)
    try:
        values = content.state_dict() if isinstance(content, _PickledModule) else content
        if not isinstance(values, dict) or not values:
            raise TypeError
        if not all(isinstance(key, str) and isinstance(one, Tensor) for key, one in values.items()):
            raise TypeError
    except (AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{path} holds no weights of a network; train some with: fer-train --model {name}"
        ) from error
    # DataParallel puts "module." before every name.
    return {
        key.removeprefix("module."): value.detach().float() if value.is_floating_point() else value.detach()
        for key, value in values.items()
    }


def _check_fits(state_dict: dict[str, Tensor], path: Path, name: str) -> None:
    """Hold the weights against the network, so that a message names the layer and not a traceback."""
    differences = _differences(state_dict, name)
    if not differences:
        return
    others = [other for other in NETWORKS if other != name and not _differences(state_dict, other)]
    if others:
        advice = f"it is a checkpoint of {others[0]}: use --model {others[0]}"
    elif all(" has shape " in one for one in differences):
        advice = f"{name} has {len(EXPRESSIONS)} classes: {', '.join(EXPRESSIONS)}"
    else:
        advice = "it is of another network"
    more = f" and {len(differences) - 1} more differences" if len(differences) > 1 else ""
    raise OtherNetworkError(f"{path} does not fit {name}: {differences[0]}{more}; {advice}")


def _differences(state_dict: dict[str, Tensor], name: str) -> list[str]:
    wanted = create_network(name).state_dict()
    # Other shapes first: a wrong number of classes is told apart from a wrong network by them.
    return [
        *(
            f"{key} has shape {tuple(state_dict[key].shape)}, not {tuple(value.shape)}"
            for key, value in wanted.items()
            if key in state_dict and state_dict[key].shape != value.shape
        ),
        *(f"{key} is missing" for key in wanted if key not in state_dict),
        *(f"{key} is unknown" for key in state_dict if key not in wanted),
    ]
