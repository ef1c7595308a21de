"""Networks of others: timm's, and any function that makes a torch.nn.Module."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from fer_runtime.errors import CheckpointError, DownloadError, first_line
from fer_runtime.extras import needs_extra
from fer_runtime.text import printable


def load_function(target: str) -> Callable[..., Any]:
    """The function that "package.module:function" names; modules of the working folder are found, too.

    Raises:
        CheckpointError: there is no such module or function.
    """
    module, _, attribute = target.partition(":")
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        if module.startswith("."):
            raise ImportError("a name cannot begin with a point")
        imported = import_module(module)
    except ImportError as error:
        raise CheckpointError(
            f"the network {target} cannot be imported ({error}); give --model package.module:function, with the module "
            "installed or in the working folder"
        ) from error
    except Exception as error:  # whatever the module does while it is imported
        raise CheckpointError(
            f"the network {target} cannot be imported ({type(error).__name__}: {first_line(error)}); see where: "
            f"python -c 'import {module}'"
        ) from error
    function = getattr(imported, attribute, None)
    if function is None:
        raise CheckpointError(f"{module} has no {attribute}; give --model {module}:FUNCTION")
    if not callable(function):
        raise CheckpointError(f"{target} is not a function; give one that returns a torch.nn.Module")
    build: Callable[..., Any] = function
    return build


def timm_network(*, name: str, classes: int, size: int, color: str, dropout: float) -> nn.Module:
    """A network of timm with fresh weights.

    Raises:
        CheckpointError: timm has no such network, or none for faces of this size.
        ExtraMissingError: timm is not installed.
    """
    return _create(name, classes=classes, size=size, color=color, dropout=dropout)


def timm_pretrained(name: str, *, classes: int, size: int, color: str) -> dict[str, Tensor]:
    """The weights that timm's authors trained, fetched by timm on first use; the last layer is fresh.

    Raises:
        DownloadError: they are not there and cannot be fetched.
    """
    try:
        network = _create(name, classes=classes, size=size, color=color, dropout=0.0, pretrained=True)
    except (OSError, RuntimeError, ValueError) as error:  # the hub's errors share no base class of their own
        raise DownloadError(
            f"cannot fetch the weights of timm's {name} ({first_line(error)}); fetch model.safetensors of "
            f"https://huggingface.co/timm/{_pretrained_name(name)} where there is a network and give it: --weights "
            "FILE, or start without weights: --weights none"
        ) from error
    state: dict[str, Tensor] = network.state_dict()
    return state


def _create(name: str, *, classes: int, size: int, color: str, dropout: float, pretrained: bool = False) -> nn.Module:
    timm = _timm()
    if "/" in name or name.split(".")[0] not in timm.list_models():
        raise CheckpointError(
            f"timm {timm.__version__} has no network {name}; list its networks with: "
            "python -c 'import timm; print(*timm.list_models(), sep=chr(10))'"
        )
    settings = {
        "pretrained": pretrained,
        "num_classes": classes,
        "in_chans": 1 if color == "gray" else 3,
        "drop_rate": dropout,
    }
    try:
        # Transformers have a position for each patch of the image; convolutions take any size.
        network: nn.Module = timm.create_model(name, img_size=size, **settings)
    except TypeError:
        network = timm.create_model(name, **settings)
    except AssertionError as error:
        raise CheckpointError(
            f"timm's {name} cannot take faces of {size} x {size} ({error}); give another --size"
        ) from error
    last = network.get_classifier()  # type: ignore[operator]
    if isinstance(last, nn.Linear):
        # timm's first values of mobilenets and efficientnets are 1 / sqrt(classes), meant for 1,000 of them: of 7,
        # logits begin at a standard deviation of 6, and training never recovers.
        last.reset_parameters()
    return network


def _timm() -> Any:
    with needs_extra("timm"):
        from fer_train.networks.torchvision_import import torchvision_models

        torchvision_models()  # timm imports torchvision, which may need what this does first
        import timm
    return timm


def _pretrained_name(name: str) -> str:
    config = _timm().get_pretrained_cfg(name)
    tag = getattr(config, "tag", "") if config is not None else ""
    return f"{name}.{tag}" if tag and "." not in name else name


def adapted(network: Any, *, source: str, classes: int, size: int, color: str) -> nn.Module:
    """The network, such that it takes faces float32 (batch, 1 or 3, size, size), 0 to 1.

    Mean and std of its own configuration are applied before its first layer, so that an export holds them. Names in
    its state dict stay as they are. Grayscale faces may come as one plane or as three equal ones.

    Raises:
        CheckpointError: it is no network, or does not give a logit per class for such faces.
    """
    if not isinstance(network, nn.Module):
        raise CheckpointError(f"{source} returns a {type(network).__name__}, not a torch.nn.Module")
    if next(network.parameters(), torch.empty(0)).is_meta:
        return network  # asked for its shapes alone
    planes, reason = None, ""
    for count in (1, 3) if color == "gray" else (3,):
        try:
            shape = _answer(network, count, size)
        except Exception as error:  # whatever a layer raises about an input that it does not take
            reason = reason or first_line(error)
            continue
        if shape != (2, classes):
            raise CheckpointError(f"{source} gives {list(shape)} for two faces, not logits of shape [2, {classes}]")
        planes = count
        break
    if planes is None:
        raise CheckpointError(f"{source} cannot take {color} faces of {size} x {size}: {reason}; give another --size")
    network.register_forward_pre_hook(_Normalize(planes, *_mean_and_std(network, planes)))
    return network


def _answer(network: nn.Module, planes: int, size: int) -> tuple[int, ...]:
    was_training = network.training
    network.eval()
    with torch.inference_mode():
        answer = network(torch.zeros(2, planes, size, size))
    network.train(was_training)
    return tuple(answer.shape) if isinstance(answer, Tensor) else ()


class _Normalize:
    """Before the network's own forward: its number of planes, with its mean and std taken out."""

    def __init__(self, planes: int, mean: Sequence[float], std: Sequence[float]) -> None:
        self.planes, self.mean, self.std = planes, tuple(mean), tuple(std)

    def __call__(self, network: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        (images,) = inputs
        if images.shape[1] > self.planes:
            images = images[:, : self.planes]
        elif images.shape[1] < self.planes:
            images = images.expand(-1, self.planes, -1, -1)
        if set(self.mean) == {0.0} and set(self.std) == {1.0}:
            return images
        mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (self.mean, self.std))
        return (images - mean) / std


def _mean_and_std(network: nn.Module, planes: int) -> tuple[Sequence[float], Sequence[float]]:
    """Of the network's configuration, as timm keeps it, or its attributes `mean` and `std`; else 0 and 1."""
    config = getattr(network, "pretrained_cfg", None) or getattr(network, "default_cfg", None) or {}
    found = []
    for key, default in (("mean", 0.0), ("std", 1.0)):
        value = config.get(key) if isinstance(config, dict) else None
        value = getattr(network, key, None) if value is None else value
        values = [default] if not isinstance(value, (int, float, list, tuple)) else value
        values = list(values) if isinstance(values, (list, tuple)) else [values]
        numbers = [number for number in values if isinstance(number, (int, float)) and math.isfinite(number)]
        if len(values) not in (1, 3) or numbers != values or (key == "std" and min(numbers) <= 0):
            raise CheckpointError(
                f"the network's {key} is {printable(str(value), limit=60)}; give one number, or three for the colours"
                + (", above 0" if key == "std" else "")
            )
        values = [float(number) for number in numbers]
        # A gray face is its mean over the colours.
        found.append(values if len(values) == planes else [sum(values) / len(values)] * planes)
    return found[0], found[1]
