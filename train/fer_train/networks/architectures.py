"""The registry of network architectures. This module imports no PyTorch, so that `--help` can list them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points

from fer_runtime.registry import Registry
from fer_train.recipes import BEST, FIRST, RECIPES, Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A network that can be trained."""

    name: str  # as --model takes it
    help: str  # for --help
    # "module:function" that makes the network. It is called with those of `classes`, `size`, `color` and `dropout` that
    # it accepts, and returns a torch.nn.Module that takes float32 (batch, 3, size, size), 0 to 1, and returns logits,
    # float32 (batch, classes). Its first layer with weights is a convolution over the three channels. Grayscale faces
    # have three equal channels, which fer-export folds into one.
    build: str
    is_foreign: bool = False  # somebody else's network: any first layer, and its own mean and std
    arguments: Mapping[str, object] = field(default_factory=dict)  # more keyword arguments of that function
    weights: str = "none"  # what training starts from by default; "imagenet" only where such weights can be fetched
    recipes: dict[str, Recipe] = field(default_factory=dict)  # where they differ from those of recipes.RECIPES

    def recipe(self, name: str) -> Recipe:
        """The recipe of that name, one of recipes.RECIPES."""
        return self.recipes.get(name, RECIPES[name])


ARCHITECTURES = Registry[Architecture](
    "architecture",
    Architecture(
        name="v0",
        help="a small CNN",
        build="fer_train.networks.cnn:FaceExpressionCNN",
        recipes={
            "best": replace(
                BEST,
                epochs=60,
                dropout=0.0,  # it cannot learn its images by heart
                balance=0.0,
                logit_adjustment=0.25,
                label_smoothing=0.0,  # the votes are soft already
                drop=("duplicates",),  # equal images under two labels have equal votes
                teacher_weight=0.5,
            )
        },
    ),
    Architecture(
        name="v1",
        help="torchvision's ResNet18",
        build="fer_train.networks.resnet18:resnet18",
        weights="imagenet",
        recipes={
            "first": replace(FIRST, epochs=10, lr=1e-4),
            "best": replace(
                BEST,
                epochs=52,
                lr=2e-3,
                weight_decay=0.05,
                augmentation="faces",
                mixup=0.2,
                balance=0.0,
                ema_decay=0.998,
                small_until=0.4,
                small_size=36,
            ),
        },
    ),
    Architecture(
        name="v2",
        help="a narrow ResNet for small faces, which does not ship",
        build="fer_train.networks.face_resnet:FaceResNet",
        recipes={"best": replace(BEST, augmentation="faces", weight_decay=0.05)},
    ),
    Architecture(
        name="v3",
        help="a ResNet for small faces, v2 at twice the width",
        build="fer_train.networks.face_resnet:FaceResNet",
        arguments={"width": 2},
        recipes={
            "best": replace(
                BEST,
                epochs=40,
                weight_decay=0.05,
                mixup=0.2,
                logit_adjustment=-0.4,
                label_smoothing=0.0,  # the votes are soft already
                drop=("duplicates",),  # equal images under two labels have equal votes
            )
        },
    ),
)

ENTRY_POINTS = "fer_edge.networks"  # of installed packages: a name, and the function that makes the network
_TIMM = "timm:"


def find_architecture(name: str) -> Architecture:
    """Return the network of that name: a registered one, "timm:NAME", "package.module:function", or an entry point.

    The last three run code of others, so `name` must come from the user, never from a file.

    Raises:
        ValueError: there is none.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    if name.startswith(_TIMM):
        build, arguments = "fer_train.networks.foreign:timm_network", {"name": name.removeprefix(_TIMM)}
        return Architecture(name=name, help="of timm", build=build, arguments=arguments, is_foreign=True)
    if name.partition(":")[0] and name.partition(":")[2]:
        return Architecture(name=name, help="a function of your own", build=name, is_foreign=True)
    for entry in entry_points(group=ENTRY_POINTS, name=name):
        return Architecture(name=name, help=f"of {entry.module}", build=entry.value, is_foreign=True)
    raise ValueError(
        f"no network named {name!r}; one of: {', '.join(ARCHITECTURES)}, timm:NAME, package.module:function, or an "
        f"entry point of the group {ENTRY_POINTS}"
    )


def is_timm(name: str) -> bool:
    """Whether the network is one of timm's."""
    return name.startswith(_TIMM)


def may_be_named_by_file(name: str) -> bool:
    """Whether a checkpoint may say that it is of this network: no code but ours and timm's runs for it."""
    return name in ARCHITECTURES or (is_timm(name) and "/" not in name)
