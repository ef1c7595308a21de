"""Trained weights on disk: a state dict with its settings, read without running code and without trust."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import zipfile
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fer_runtime.errors import CheckpointError
from fer_runtime.expressions import EXPRESSIONS, FACE_SIZE
from fer_runtime.files import write_atomically
from fer_runtime.labels import check_labels, label_difference
from fer_runtime.model.find import FILE_STEMS, checkpoint_path, packaged_models_dir
from fer_runtime.model.metadata import COLORS, MAX_SIZE, MIN_SIZE
from fer_runtime.text import counted, printable
from fer_runtime.untrusted_json import parse_json
from fer_train.checkpoint_files import FLOATS, INTEGERS, CheckpointFile, UnreadableError, open_checkpoint
from fer_train.networks.architectures import ARCHITECTURES, may_be_named_by_file
from fer_train.networks.registry import NetworkShape, create_network, has_label_rows, last_layer, state_shapes
from fer_train.pickle_reader import ForeignClassError, StoredModule, StoredTensor

FORMAT = "fer-edge checkpoint"
SAFETENSORS_SUFFIX = ".safetensors"
_METADATA_KEY = "fer"  # of a safetensors header: our settings as JSON

# Segments that wrappers put into the names of weights: torch.compile, DataParallel and DDP, FSDP.
_WRAPPERS = frozenset(("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))
# Where a file holds the network twice, averaged weights are the ones its author evaluated; timm and Ultralytics
# choose the same way.
_AVERAGED = ("ema", "averag", "swa")
_MAX_GROUPS = 1000  # places of a file that are searched for weights
_MAX_TENSORS = 20_000  # names in one place
_MAX_DEPTH = 6


class OtherNetworkError(CheckpointError):
    """The weights are whole, and those of another network."""


class UnregisteredNetworkError(CheckpointError):
    """A checkpoint names a network whose code fer-edge runs only where the user names it."""

    def __init__(self, message: str, *, network: str) -> None:
        super().__init__(message)
        self.network = network  # printable


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Weights of a network, with the preprocessing and labels that they need."""

    name: str  # of the network, such as "v0"
    state_dict: dict[str, Tensor]
    mean: float = 0.0  # input = (faces / 255 - mean) / std, one number for all channels
    std: float = 1.0
    expressions: tuple[str, ...] = EXPRESSIONS  # the labels, in the order of the logits
    size: int = FACE_SIZE  # pixels, side of the faces
    color: str = "gray"  # or "rgb"
    training: dict[str, Any] = field(default_factory=dict)  # summary: recipe, data, accuracy
    place: str = ""  # where in a file of another program the weights were, such as "state_dict, model."
    labels_assumed: bool = False  # the file does not say the order of its logits

    def network(self) -> nn.Module:
        """The network with these weights, on CPU in eval mode."""
        network = create_network(self.name, self.shape)
        network.load_state_dict(self.state_dict)
        return network.eval()

    @property
    def shape(self) -> NetworkShape:
        """The number of labels, and the faces, that the network is made for."""
        return NetworkShape(classes=len(self.expressions), size=self.size, color=self.color)


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` atomically, tensors on CPU; equal weights and settings give equal bytes.

    A name that ends in `.safetensors` is written in that format, any other with `torch.save`.
    """
    state = {key: value.detach().cpu().contiguous() for key, value in checkpoint.state_dict.items()}
    settings = {
        "format": FORMAT,
        "name": checkpoint.name,
        "mean": checkpoint.mean,
        "std": checkpoint.std,
        "expressions": list(checkpoint.expressions),
        "training": checkpoint.training,
        # Left out where they are the default, so that the same training gives the bytes of earlier versions.
        **({"size": checkpoint.size} if checkpoint.size != FACE_SIZE else {}),
        **({"color": checkpoint.color} if checkpoint.color != "gray" else {}),
    }
    if path.suffix == SAFETENSORS_SUFFIX:
        from safetensors.torch import save

        write_atomically(path, save(state, {_METADATA_KEY: json.dumps(settings, sort_keys=True, allow_nan=False)}))
        return
    buffer = io.BytesIO()
    # The order of the keys is that of earlier versions, so that the same training gives the same file.
    torch.save({key: settings[key] for key in ("format", "name")} | {"state_dict": state} | settings, buffer)
    write_atomically(path, buffer.getvalue())


def load_checkpoint(path: Path, *, name: str, labels: Sequence[str] | None = None) -> Checkpoint:
    """Read weights of the network `name`: a checkpoint of ours, or what another program saved of this very network.

    Read are `torch.save`'s files (a state dict, a whole module, or either inside a dict) and safetensors. Weights are
    found under any key and behind any prefix (`model.`, `module.`, `_orig_mod.`) if all names and shapes fit. No code
    of the file runs, and every shape, dtype and size is checked before values are read.

    Args:
        labels: order of the logits, for a file that does not say it; None assumes the order of EXPRESSIONS.

    Raises:
        CheckpointError: the file is missing, damaged, unsafe, holds anything else, or is of another network.
    """
    with _opened(path, name) as file:
        return _checkpoint_in(file, path, name, labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class StatedFaces:
    """What a file of weights says of the faces that its network takes."""

    network: str | None  # None where it does not say, or code would have to be run that the user has not named
    size: int = FACE_SIZE
    color: str = "gray"


def stated_faces(path: str | Path) -> StatedFaces:
    """What a file of weights says of itself; the defaults where it is not a checkpoint of ours.

    Raises:
        CheckpointError: the file is missing, damaged or unsafe.
    """
    with _opened(Path(path), "NAME") as file:
        settings = _own_settings(file, Path(path))
    if settings is None:
        return StatedFaces(network=None)
    name = settings["name"] if may_be_named_by_file(settings["name"]) else None
    return StatedFaces(network=name, size=settings["size"], color=settings["color"])


def find_weights(given: str) -> str:
    """A file of weights; in a checkout also one of its own checkpoints, whatever the current folder is.

    Raises:
        CheckpointError: it has the name of a shipped checkpoint, and there is none.
    """
    path = Path(given)
    if os.path.lexists(path) or path.name not in {checkpoint_path(Path(), name).name for name in FILE_STEMS}:
        return given
    shipped = packaged_models_dir() / path.name
    if not shipped.is_file():
        raise CheckpointError(
            f"no checkpoint at {path}; fer-edge's own checkpoints are in the folder models of its repository, not in "
            "the installed package: copy the file, and give its path"
        )
    return str(shipped)


def stated_network(path: Path) -> str:
    """The name of the network that a checkpoint of ours says that it is of.

    Raises:
        CheckpointError: the file is missing, damaged, or of another program.
        UnregisteredNetworkError: it is of a network whose code only the user can name.
    """
    with _opened(path, "NAME") as file:
        settings = _own_settings(file, path)
    if settings is None:
        raise CheckpointError(f"{path} does not say of which network it is; name it with --model")
    name: str = settings["name"]
    if not may_be_named_by_file(name):
        raise UnregisteredNetworkError(
            f"{path} is of the network {_shown(name)}; if you trust its code, give --model {_shown(name)}",
            network=_shown(name),
        )
    return name


def load_start(path: Path, *, name: str) -> Checkpoint | dict[str, Tensor]:
    """Weights to start the network `name` from: a checkpoint of ours, of any network, or a plain state dict.

    Unlike `load_checkpoint`, names and shapes may differ from the network's. Tensors together are no larger than the
    file, so that a small one cannot ask for much memory.

    Raises:
        CheckpointError: the file is missing, damaged, unsafe, or holds anything but tensors.
    """
    with _opened(path, name) as file:
        settings = _own_settings(file, path)
        if settings is None:
            content = file.content
            inner = content.get("state_dict") if isinstance(content, dict) else None
            tensors = _tensors_by_name(content if inner is None else inner)
            if not tensors:
                raise CheckpointError(f"{path} holds no state dict; --weights takes a file of fer-train --pretrain")
            stated = sum(math.prod(tensor.shape) for tensor in tensors.values())
            if stated > path.stat().st_size:  # a byte for each value is the least that any type takes
                raise CheckpointError(f"{path} states {stated:,} values, more than it has bytes; copy it again")
            return _read_all(tensors, file, path)
    if settings["name"] != name and not may_be_named_by_file(settings["name"]):
        raise OtherNetworkError(f"{path} holds {_shown(settings['name'])}, not {name}")
    return load_for_training(path, name=settings["name"])


@contextmanager
def _opened(path: Path, name: str) -> Iterator[CheckpointFile]:
    """The file, open; what is wrong with it as a CheckpointError."""
    retrain = f"copy it again, or train with: fer-train --model {name}"
    try:
        with open_checkpoint(path) as file:
            yield file
    except FileNotFoundError as error:
        raise CheckpointError(f"no checkpoint at {path}; train one with: fer-train --model {name}") from error
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error.strerror}; {retrain}") from error
    except ForeignClassError as error:
        raise CheckpointError(
            f"{path} asks for {_shown(error.name)}, which no checkpoint needs; it was not run. Load the file where you "
            "trust it, and save its weights alone: torch.save(network.state_dict(), FILE)"
        ) from error
    except UnreadableError as error:
        if path.suffix == ".onnx":
            raise CheckpointError(
                f"{path} is an ONNX file; --weights and --checkpoint take a checkpoint (.pth), such as the one that it "
                "was exported from. fer-train --teacher and fer-export --adopt take ONNX files"
            ) from error
        raise CheckpointError(f"cannot read the checkpoint {path}: {error}; {retrain}") from error


def load_for_training(path: Path, *, name: str) -> Checkpoint:
    """`load_checkpoint` for the trainer, of faces that are not normalized.

    Raises:
        CheckpointError: as for `load_checkpoint`, or the network takes normalized faces.
    """
    checkpoint = load_checkpoint(path, name=name)
    if (checkpoint.mean, checkpoint.std) != (0.0, 1.0):
        raise CheckpointError(
            f"{path} normalizes faces with mean {checkpoint.mean:g} and std {checkpoint.std:g}, which fer-train does "
            "not do; for a teacher, give the model that fer-export makes of it"
        )
    return checkpoint


def in_label_order(checkpoint: Checkpoint, expressions: Sequence[str]) -> Checkpoint:
    """The same network with its logits in another order: the last layer's rows are exchanged.

    Args:
        expressions: the order, the same labels as the checkpoint's.

    Raises:
        CheckpointError: they are other labels.
    """
    if checkpoint.expressions == tuple(expressions):
        return checkpoint
    if difference := label_difference(expressions, checkpoint.expressions):
        raise CheckpointError(
            f"a checkpoint of {checkpoint.name} has other labels than {', '.join(expressions)}: {difference}"
        )
    if not has_label_rows(checkpoint.name, checkpoint.shape):
        raise CheckpointError(
            f"the labels of {checkpoint.name} cannot be put in the order {', '.join(expressions)}: it has weights that "
            "change with the number of labels and have no row for each; train it with the labels in that order"
        )
    order = [checkpoint.expressions.index(expression) for expression in expressions]
    state = dict(checkpoint.state_dict)
    for key in last_layer(checkpoint.name, checkpoint.shape):
        state[key] = state[key][order]
    return replace(checkpoint, state_dict=state, expressions=tuple(expressions))


def _checkpoint_in(file: CheckpointFile, path: Path, name: str, labels: Sequence[str] | None) -> Checkpoint:
    settings = _own_settings(file, path)
    if settings is None:
        expressions = EXPRESSIONS if labels is None else tuple(labels)
        shape = NetworkShape(classes=len(expressions))
        place, tensors = _weights_of(file.content, path, name, shape)
        return Checkpoint(
            name=name,
            state_dict=_with_counters(_read_all(tensors, file, path), name, shape),
            expressions=expressions,
            place=place,
            labels_assumed=labels is None,
        )
    if settings["name"] != name and settings["name"] not in ARCHITECTURES:
        raise CheckpointError(
            f"{path} is a checkpoint of the network {_shown(repr(settings['name']))}, which this fer-edge does not "
            f"know; it knows {', '.join(ARCHITECTURES)}"
        )
    if settings["name"] != name:
        raise OtherNetworkError(f"{path} holds {settings['name']}, not {name}; use --model {settings['name']}")
    if labels is not None and tuple(labels) != settings["expressions"]:
        raise CheckpointError(
            f"{path} states the order of its labels, {', '.join(settings['expressions'])}; leave --labels out"
        )
    shape = NetworkShape(classes=len(settings["expressions"]), size=settings["size"], color=settings["color"])
    place, tensors = _weights_of(settings.pop("state_dict"), path, name, shape)
    return Checkpoint(**settings, state_dict=_with_counters(_read_all(tensors, file, path), name, shape))


def _own_settings(file: CheckpointFile, path: Path) -> dict[str, Any] | None:
    """The settings of a file that `save_checkpoint` wrote, checked, with its weights; None for any other file."""
    content = file.content
    if text := file.metadata.get(_METADATA_KEY):
        try:
            content = {**parse_json(text), "state_dict": content}
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{path} has damaged settings in its header; copy it again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return None
    try:
        mean, std = (_number(content[key], key) for key in ("mean", "std"))
        expressions = content["expressions"]
        if not isinstance(expressions, list) or not all(isinstance(name, str) for name in expressions):
            raise TypeError("expressions is not a list of texts")
        check_labels(expressions)
        size, color = content.get("size", FACE_SIZE), content.get("color", "gray")
        if not isinstance(size, int) or isinstance(size, bool) or not MIN_SIZE <= size <= MAX_SIZE:
            raise TypeError(f"size is not a whole number from {MIN_SIZE} to {MAX_SIZE}")
        if not isinstance(color, str) or color not in COLORS:
            raise TypeError(f"color is not one of {', '.join(COLORS)}")
        if not isinstance(content["name"], str):
            raise TypeError("name is not a text")
        training = _plain(content["training"])
        if not isinstance(training, dict):
            raise TypeError("training is not a dict")
        weights = content["state_dict"]
    except KeyError as error:
        raise CheckpointError(
            f"{path} is a damaged checkpoint ({error} is missing); copy it again, or train again"
        ) from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is a damaged checkpoint ({error}); copy it again, or train again") from error
    if not std > 0:
        raise CheckpointError(f"{path} has damaged settings: std must be positive, got {std:g}; train again")
    return {
        "name": content["name"],
        "mean": mean,
        "std": std,
        "expressions": tuple(expressions),
        "size": size,
        "color": color,
        "training": training,
        "state_dict": weights,
    }


def _number(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e6:
        raise TypeError(f"{key} is not a finite number")
    return float(value)


def _plain(value: Any, depth: int = 0) -> Any:
    """`value` if it is JSON of a sensible depth; the results and the exported model quote it."""
    if depth > 12:
        raise ValueError("its training summary is nested too deeply")
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("its training summary has a key that is not a text")
        return {key: _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, depth + 1) for item in value]
    if value is None or isinstance(value, (bool, str)):
        return value
    if (isinstance(value, int) and abs(value) < 1 << 63) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise TypeError("its training summary holds something other than texts and numbers")


@dataclass(frozen=True, slots=True)
class _Group:
    """Tensors by name, found at one place of a file."""

    place: str  # "model", "checkpoint/ema"; "" is the file's top
    tensors: dict[str, StoredTensor]


def _groups(content: Any, path: Path) -> Iterator[_Group]:
    """Every dict and module of the file that holds tensors by name, the outermost first."""
    seen: set[int] = set()
    waiting: list[tuple[str, Any, int]] = [("", content, 0)]
    for _ in range(_MAX_GROUPS):
        if not waiting:
            return
        place, value, depth = waiting.pop(0)
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, StoredModule):
            yield _Group(place, _module_tensors(value, path))
        elif isinstance(value, dict):
            if tensors := _tensors_by_name(value):
                yield _Group(place, tensors)
            if depth < _MAX_DEPTH:
                inner = [(key, held) for key, held in value.items() if isinstance(held, (dict, list, StoredModule))]
                waiting += [(f"{place}/{key}".strip("/"), held, depth + 1) for key, held in inner]
        elif isinstance(value, list) and depth < _MAX_DEPTH:
            inner = [(str(key), held) for key, held in enumerate(value) if isinstance(held, (dict, StoredModule))]
            waiting += [(f"{place}/{key}".strip("/"), held, depth + 1) for key, held in inner]


def _module_tensors(module: StoredModule, path: Path) -> dict[str, StoredTensor]:
    """Parameters and buffers by the names that `nn.Module.state_dict` gives them.

    Raises:
        CheckpointError: modules hold each other, or there are too many.
    """
    found: dict[str, StoredTensor] = {}
    open_modules: list[int] = []

    def visit(current: StoredModule, prefix: str) -> None:
        if id(current) in open_modules or len(open_modules) > 50:
            raise CheckpointError(f"{path}: the module {_shown(prefix.rstrip('.') or 'of the file')} holds itself")
        open_modules.append(id(current))
        dropped = current.attributes.get("_non_persistent_buffers_set")
        for kind in ("_parameters", "_buffers"):
            values = current.attributes.get(kind)
            for key, value in values.items() if isinstance(values, dict) else ():
                if isinstance(value, StoredTensor) and not (isinstance(dropped, list) and key in dropped):
                    found[f"{prefix}{key}"] = value
        if len(found) > _MAX_TENSORS:
            raise CheckpointError(f"{path}: the module in it holds more than {_MAX_TENSORS:,} tensors")
        modules = current.attributes.get("_modules")
        for key, value in modules.items() if isinstance(modules, dict) else ():
            if isinstance(value, StoredModule):
                visits[0] += 1
                if visits[0] > _MAX_TENSORS:
                    raise CheckpointError(f"{path}: the module in it holds more than {_MAX_TENSORS:,} modules")
                visit(value, f"{prefix}{key}.")
        open_modules.pop()

    visits = [0]
    visit(module, "")
    return found


def _weights_of(content: Any, path: Path, name: str, shape: NetworkShape) -> tuple[str, dict[str, StoredTensor]]:
    """The place and the tensors of the network `name` in a file.

    Raises:
        CheckpointError: the file has no weights, or the network twice.
        OtherNetworkError: its weights are of another network.
    """
    groups = list(_groups(content, path))
    found = [candidate for group in groups for candidate in _candidates(group, name, shape)]
    # The same tensors under two names are one network.
    distinct: dict[tuple[int, ...], tuple[str, dict[str, StoredTensor]]] = {}
    for place, tensors in found:
        distinct.setdefault(tuple(id(tensor) for tensor in tensors.values()), (place, tensors))
    found = list(distinct.values())
    if len(found) > 1:
        found = [candidate for candidate in found if any(word in candidate[0].lower() for word in _AVERAGED)] or found
    if len(found) > 1:
        places = " and at ".join(_shown(place or "its top") for place, _ in found[:5])
        raise CheckpointError(
            f"{path} holds this network {len(found)} times, at {places}; "
            "save the one that you mean: torch.save(network.state_dict(), FILE)"
        )
    if found:
        return found[0]
    if not groups:
        raise CheckpointError(f"{path} holds no weights of a network; train some with: fer-train --model {name}")
    raise _other_network(groups, path, name, shape)


def _candidates(group: _Group, name: str, shape: NetworkShape) -> list[tuple[str, dict[str, StoredTensor]]]:
    """Where in a group all weights of the network are: by prefix, with nothing else behind the same prefix."""
    wanted = state_shapes(name, shape)
    found = []
    for tensors in (group.tensors, _unwrapped(group.tensors)):
        for prefix, own in _behind_prefixes(tensors, wanted):
            if not _differences(own, wanted):
                found.append((_said_place(group.place, prefix), own))
    return found


def _behind_prefixes(
    tensors: Mapping[str, StoredTensor], wanted: Mapping[str, object]
) -> Iterator[tuple[str, dict[str, StoredTensor]]]:
    """What stands before the network's first weight wherever it occurs ("", "model.", "student.net."), and all tensors
    behind it.
    """
    first = next(iter(wanted))
    keys = sorted(
        tensors
    )  # those of one prefix are neighbours: a file may have the first weight in thousands of places
    for key in tensors:
        if key == first or key.endswith(f".{first}"):
            prefix = key.removesuffix(first)
            start = bisect_left(keys, prefix)
            end = bisect_left(keys, f"{prefix}\U0010ffff", start)
            yield prefix, {name.removeprefix(prefix): tensors[name] for name in keys[start:end]}


def _unwrapped(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Names without the segments of wrappers; names that would become equal stay as they are."""
    short = {key: ".".join(part for part in key.split(".") if part not in _WRAPPERS) for key in tensors}
    if len(set(short.values())) < len(short):
        return dict(tensors)
    return {short[key]: value for key, value in tensors.items()}


def _shown(name: str, limit: int = 100) -> str:
    """A name of the file for a message: of any length there, and with anything in it."""
    return printable(name, limit=limit)


def _said_place(place: str, prefix: str) -> str:
    return _shown(", ".join(part for part in (place, prefix and f"prefix {prefix}") if part), 200)


def _is_counter(key: str) -> bool:
    # BatchNorm's count of batches: older files lack it, and nothing that a trained network computes depends on it.
    return key.endswith(".num_batches_tracked")


def _differences(tensors: Mapping[str, StoredTensor], wanted: Mapping[str, tuple[int, ...]]) -> list[str]:
    # Other shapes first: a wrong number of classes is told apart from a wrong network by them.
    return [
        *(
            f"{_shown(key)} has shape {tensors[key].shape}, not {shape}"
            for key, shape in wanted.items()
            if key in tensors and not tensors[key].refusal and tensors[key].shape != shape
        ),
        *(f"{key} is missing" for key in wanted if key not in tensors and not _is_counter(key)),
        *(f"{_shown(key)} is unknown" for key in tensors if key not in wanted),
    ]


def _other_network(groups: Sequence[_Group], path: Path, name: str, shape: NetworkShape) -> OtherNetworkError:
    """The error that says in which names or shapes the most similar weights of the file differ from the network."""
    wanted = state_shapes(name, shape)
    best: tuple[int, dict[str, StoredTensor]] = (-1, {})
    for group in groups:
        tensors = _unwrapped(group.tensors)
        for _, own in (*_behind_prefixes(tensors, wanted), ("", dict(tensors))):
            best = max(best, (len(own.keys() & wanted.keys()), own), key=lambda candidate: candidate[0])
    differences = _differences(best[1], wanted)
    others = [
        other for other in ARCHITECTURES if other != name and any(_candidates(group, other, shape) for group in groups)
    ]
    if others:
        advice = f"it is a checkpoint of {others[0]}: use --model {others[0]}"
    elif all(" has shape " in difference for difference in differences):
        advice = (
            f"{name} has {shape.classes} classes here; if the file has others, name them in its order with --labels"
        )
    else:
        advice = "it is of another network"
    more = f" and {counted(len(differences) - 1, 'more difference')}" if len(differences) > 1 else ""
    return OtherNetworkError(f"{path} does not fit {name}: {differences[0]}{more}; {advice}")


def _with_counters(state: dict[str, Tensor], name: str, shape: NetworkShape) -> dict[str, Tensor]:
    """The state dict in the network's own order, with BatchNorm's counters at zero where the file has none."""
    return {
        key: state[key] if key in state else torch.zeros((), dtype=torch.int64) for key in state_shapes(name, shape)
    }


def _tensors_by_name(content: Any) -> dict[str, StoredTensor]:
    values = content.items() if isinstance(content, dict) else ()
    return {key: value for key, value in values if isinstance(key, str) and isinstance(value, StoredTensor)}


def _read_all(tensors: Mapping[str, StoredTensor], file: CheckpointFile, path: Path) -> dict[str, Tensor]:
    """The values of tensors of known names and shapes: float32, and int64 for BatchNorm's counters."""
    for key, tensor in tensors.items():
        kinds = (*INTEGERS, *FLOATS) if _is_counter(key) else FLOATS
        reason = tensor.refusal or ("" if tensor.dtype in kinds else f"{tensor.dtype}, and weights are real numbers")
        if reason:
            raise CheckpointError(f"{path}: {_shown(key)} is {reason}; save the network's weights as float32")
    state: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        try:
            values = file.read(tensor)
        except UnreadableError as error:
            raise CheckpointError(f"{path}: {_shown(key)} cannot be read: {error}; copy the file again") from error
        if _is_counter(key):
            state[key] = values.nan_to_num(0).to(torch.int64)
            continue
        state[key] = values.to(torch.float32)
        if broken := int((~torch.isfinite(state[key])).sum()):
            raise CheckpointError(
                f"{path}: {_shown(key)} holds {broken} values that are NaN or infinite; take the checkpoint of an "
                "earlier epoch"
            )
        if key.endswith(".running_var") and bool((state[key] < 0).any()):
            raise CheckpointError(
                f"{path}: {_shown(key)} holds a negative variance; copy the file again, or train again"
            )
    return state


# The states that a resumed run starts from.
_STATE_HEADER = b"fer-edge resume 1\n"


def pack_state(state: Mapping[str, Any]) -> bytes:
    """The bytes of a training's state: a header with the SHA-256 of what follows, then `torch.save`'s file."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    content = buffer.getvalue()
    return _STATE_HEADER + hashlib.sha256(content).hexdigest().encode() + b"\n" + content


def unpack_state(content: bytes, *, source: Path) -> dict[str, Any]:
    """The state that `pack_state` wrote; files of earlier versions, without a header, are checked by their CRC-32.

    Raises:
        CheckpointError: a byte of it has changed, or it is something else.
    """
    advice = "delete it and start again without --resume"
    length = len(_STATE_HEADER) + 65
    if content.startswith(_STATE_HEADER):
        stated, content = content[len(_STATE_HEADER) : length].strip(), content[length:]
        if hashlib.sha256(content).hexdigest().encode() != stated:
            raise CheckpointError(f"{source} is damaged: its checksum does not match; {advice}")
    else:
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                damaged = archive.testzip()
        except (zipfile.BadZipFile, OSError, RuntimeError, EOFError, ValueError) as error:
            raise CheckpointError(f"cannot read {source}: it is cut short or damaged; {advice}") from error
        if damaged is not None:
            raise CheckpointError(f"{source} is damaged at {damaged}; {advice}")
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises a dozen types for damaged files
        raise CheckpointError(f"cannot read {source}: it is damaged, or no state of a training; {advice}") from error
    if not isinstance(state, dict) or not isinstance(state.get("identity"), dict):
        raise CheckpointError(f"{source} is not a state of a training; {advice}")
    return state
