"""Training recipes: every setting that shapes the weights, in one readable place."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from fer_train.data.augmentations import AUGMENTATIONS

_Range = tuple[str, Callable[[float], bool]]
_COUNT: _Range = ("1 or more", lambda value: value >= 1)
# PyTorch's optimizers fail on numbers that float32 cannot hold.
_MOST = 1000
_ABOVE_ZERO: _Range = (f"above 0, at most {_MOST}", lambda value: 0 < value <= _MOST)
_NOT_NEGATIVE: _Range = (f"from 0 to {_MOST}", lambda value: 0 <= value <= _MOST)
_ANY_COUNT: _Range = ("0 or more", lambda value: value >= 0)
_SHARE: _Range = ("from 0 to 1", lambda value: 0 <= value <= 1)
_BELOW_ONE: _Range = ("at least 0 and below 1", lambda value: 0 <= value < 1)
# NaN is in none of them.
_RANGES = {
    "epochs": _COUNT,
    "batch_size": _COUNT,
    "lr": _ABOVE_ZERO,
    "repeat_images": _ANY_COUNT,
    "warmup": _SHARE,
    "weight_decay": _NOT_NEGATIVE,
    "mixup": _NOT_NEGATIVE,
    "cutmix": _NOT_NEGATIVE,
    "mix_until": _SHARE,
    "balance": _SHARE,
    "logit_adjustment": ("from -1 to 1", lambda value: -1 <= value <= 1),
    "least_votes": _NOT_NEGATIVE,
    "label_share": _SHARE,
    "dropout": _BELOW_ONE,
    "label_smoothing": _BELOW_ONE,
    "ema_decay": _BELOW_ONE,
    "small_until": _SHARE,
    "small_size": _COUNT,
    "teacher_weight": _SHARE,
    "teacher_temperature": _ABOVE_ZERO,
}
_DROPS = ("duplicates", "conflicts", "near")
_CHOICES: dict[str, Collection[str]] = {
    "optimizer": ("adam", "adamw", "sgd"),
    "schedule": ("constant", "one-cycle"),
    "augmentation": AUGMENTATIONS,
    "teacher_views": ("faces", "images"),
    "last_layer": ("kept", "probe"),
    "vote_target": ("distribution", "majority"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Settings of one training."""

    epochs: int
    batch_size: int
    optimizer: str  # "adam", "adamw", or "sgd" with Nesterov momentum 0.9
    lr: float  # peak learning rate
    schedule: str = "constant"  # or "one-cycle": linear rise over `warmup`, cosine to zero
    warmup: float = 0.15  # fraction of all steps
    weight_decay: float = 0.0  # on weights, not on biases and BatchNorm
    augmentation: str = "autoaugment"  # one of fer_train.data.augmentations.AUGMENTATIONS
    mixup: float = 0.0  # a of the Beta(a, a) that blends of two faces are drawn from; 0: none (fer_train.data.mixup)
    cutmix: float = 0.0  # the same for rectangles pasted from another face
    mix_until: float = 1.0  # fraction of the epochs with mixed faces; the rest see whole faces
    balance: float = 0.5  # power of the classes' inverse frequencies in the loss; 0: none
    # Added to that power after training: the last biases are shifted by it times the logarithms of the inverse
    # frequencies (Menon et al., arXiv 2007.07314). Below 0, the network names rare classes less often.
    logit_adjustment: float = 0.0
    vote_target: str = "distribution"  # of the raters' votes, or "majority": the class with most votes
    least_votes: float = 2.0  # a class with fewer votes gets none
    label_share: float = 0.0  # of the folder's label in the target, beside the votes
    dropout: float = 0.25  # of the hidden layer; a network too small to memorize its images needs none
    label_smoothing: float = 0.0
    ema_decay: float = 0.0  # of the exponential moving average of the weights; 0: none
    drop: tuple[str, ...] = ()  # images left out of training: "duplicates", "conflicts", "near"
    small_until: float = 0.0  # fraction of the epochs trained on `small_size` pixels, which is cheaper
    small_size: int = 32  # v1 needs 36: at 32 its last stage sees one pixel, and 8 of 9 taps learn nothing
    teacher_weight: float = 0.7  # share of the distillation loss where teachers are given
    teacher_temperature: float = 2.0  # of the distilled softmax (Hinton et al., arXiv 1503.02531)
    # Of a fine-tuning: the last layer of the start is "kept", or replaced by a linear "probe" if that is better.
    last_layer: str = "kept"
    # What teachers are asked about: "faces", once, or the augmented "images", in every step.
    teacher_views: str = "faces"
    # Epochs after which the same augmented images come again, so that teachers have answered them; 0: never.
    repeat_images: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The settings as results files hold them."""
        settings = {**asdict(self), "drop": list(self.drop)}
        if self.last_layer == "kept":
            del settings["last_layer"]  # as before that setting existed: equal trainings give equal files
        if not self.repeat_images:
            del settings["repeat_images"]  # likewise
        return settings

    def overridden(self, **settings: Any) -> Recipe:
        """This recipe with those of `settings` that are not None."""
        return replace(self, **{key: value for key, value in settings.items() if value is not None})

    def with_settings(self, *texts: str) -> Recipe:
        """This recipe with settings given as text, such as "ema_decay=0" or "drop=duplicates,conflicts".

        Raises:
            ValueError: there is no such setting, or the value is not of its type or does not fit the others.
        """
        # Replaced at once: what one of them needs, another may give.
        return replace(self, **dict(map(self._parsed, texts)))

    def _parsed(self, text: str) -> tuple[str, Any]:
        name, equals, value = text.partition("=")
        types = {field.name: str(field.type) for field in fields(self)}
        if name not in types:
            raise ValueError(f"unknown setting {name!r}; expected NAME=VALUE with NAME one of: {', '.join(types)}")
        if not equals:
            raise ValueError(f"setting {name} has no value; expected {name}=VALUE")
        try:
            if types[name].startswith("tuple"):
                return name, tuple(part for part in value.split(",") if part not in ("", "none"))
            return name, {"int": int, "float": float, "str": str}[types[name]](value)
        except ValueError:
            raise ValueError(
                f"{name} must be of type {types[name]}, such as {getattr(self, name)}, not {value}"
            ) from None

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value}")
        for name, (text, holds) in _RANGES.items():
            if not holds(value := getattr(self, name)):
                raise ValueError(f"{name} must be {text}, not {value}")
        if unknown := [kind for kind in self.drop if kind not in _DROPS]:
            raise ValueError(f"drop must be one of {', '.join(_DROPS)}, not {', '.join(unknown)}")
        if self.teacher_views == "images" and self.small_until:
            raise ValueError("teacher_views=images needs images of the teachers' size: set small_until=0")


# Settings that are of no use without another one: what they need, and whether a recipe has it.
NEEDS: dict[str, tuple[str, Callable[[Recipe], bool]]] = {
    "warmup": ("schedule=one-cycle", lambda recipe: recipe.schedule == "one-cycle"),
    "mix_until": ("mixup or cutmix above 0", lambda recipe: bool(recipe.mixup or recipe.cutmix)),
    "small_size": ("small_until above 0", lambda recipe: recipe.small_until > 0),
    "repeat_images": ("teacher_views=images", lambda recipe: recipe.teacher_views == "images"),
}

# The first version's settings: what its published results were made with.
FIRST = Recipe(epochs=5, batch_size=32, optimizer="adam", lr=1e-3)

# What trains the shipped files; benchmarks/studies/votes_log.md and training_log.md have the experiments behind it.
BEST = Recipe(
    epochs=60,
    batch_size=128,
    optimizer="adamw",
    lr=3e-3,
    schedule="one-cycle",
    weight_decay=0.02,
    augmentation="light",
    label_smoothing=0.05,
    ema_decay=0.999,
    drop=("duplicates", "conflicts"),
)

# For labels of your own, from the weights of a model that knows faces; docs/your-own.md measures what it gains.
FINETUNE = Recipe(
    epochs=20,
    batch_size=32,
    optimizer="adamw",
    lr=3e-4,
    schedule="one-cycle",
    weight_decay=0.05,
    augmentation="light",
    label_smoothing=0.05,
    dropout=0.25,
    last_layer="probe",
)

# By the names of --recipe; fer_train.networks.architectures says where a network's own differ.
RECIPES = {"first": FIRST, "best": BEST, "finetune": FINETUNE}

# For `--pretrain DIR`: any folder of class folders, no face among them.
PRETRAIN = Recipe(
    epochs=7,
    batch_size=128,
    optimizer="adamw",
    lr=1e-3,
    schedule="one-cycle",
    weight_decay=0.05,
    augmentation="light",
    small_until=0.5,
    small_size=36,
)
