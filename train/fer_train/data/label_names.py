"""Map the labels of other data sets to our names. Every renaming is reported; numbers are never guessed."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fer_runtime.errors import DataError
from fer_runtime.text import printable

# Words of data sets and papers for one expression, compared without regard to capitals.
_SYNONYMS = {
    "angry": ("anger",),
    "contempt": ("contemptuous",),
    "disgust": ("disgusted",),
    "fear": ("fearful", "afraid", "scared"),
    "happy": ("happiness", "joy"),
    "neutral": (),
    "sad": ("sadness",),
    "surprise": ("surprised", "suprise"),
}
_NAME_OF = {word: name for name, words in _SYNONYMS.items() for word in (name, *words)}

# Numbers that data sets use for labels. They contradict each other, so none is taken unless the set is known.
NUMBERINGS: Mapping[str, Mapping[str, str]] = {
    "fer2013": dict(zip("0123456", ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"), strict=True)),
    "rafdb": dict(zip("1234567", ("surprise", "fear", "disgust", "happy", "sad", "angry", "neutral"), strict=True)),
    "affectnet": {
        **dict(
            zip(
                "01234567",
                ("neutral", "happy", "sad", "surprise", "fear", "disgust", "angry", "contempt"),
                strict=True,
            )
        ),
        # "None", "uncertain" and "no face".
        **dict.fromkeys(("8", "9", "10"), ""),
    },
}
_LONGEST_NAME = 100
_NOT_IN_NAMES = frozenset('/\\<>:"|?*')


@dataclass(slots=True)
class LabelNames:
    """Gives the labels of a data set their names here, and remembers what was changed.

    Args:
        renamed: the user's own names, by the label that the data set has; an empty one leaves its images out.
        numbering: the data set whose numbers these are, one of NUMBERINGS.
    """

    renamed: Mapping[str, str] = field(default_factory=dict)
    numbering: str | None = None
    _given: dict[str, str] = field(default_factory=dict)  # every label that came, and its name

    def prepare(self, labels: Iterable[str]) -> None:
        """Check all labels of a data set before anything is written.

        Raises:
            DataError: a label is a number that nothing explains, or has no name that a folder can have; or a name is
                given to a label that is not there.
        """
        distinct = sorted(set(labels))
        if unknown := sorted(set(self.renamed) - {_composed(label) for label in distinct}):
            shown = ", ".join(printable(label, limit=40) for label in distinct[:20])
            raise DataError(f"there is no label {unknown[0]!r} to rename; the labels are: {shown}")
        for label in distinct:
            self.name(label)

    def name(self, label: str) -> str:
        """The name of a label; "" where its images are left out.

        Raises:
            DataError: as for `prepare`.
        """
        if label in self._given:
            return self._given[label]
        text = _composed(label)
        numbers = {} if self.numbering is None else NUMBERINGS[self.numbering]
        if text in self.renamed:
            name = self.renamed[text]
        elif text in numbers:
            name = numbers[text]
        elif text.lstrip("+-").replace(".", "", 1).isdigit():
            raise DataError(_unknown_number(text, self.numbering))
        else:
            name = name_of(text)
        if name:
            _check_name(name, label)
        self._given[label] = name
        return name

    def changes(self) -> list[str]:
        """What was changed, a line for each name: "happy: was Happiness, 4"."""
        found: dict[str, list[str]] = {}
        for label, name in self._given.items():
            if name != unicodedata.normalize("NFC", label):
                found.setdefault(name, []).append(printable(label, limit=40))
        return [
            f"{name or 'left out'}: {'label' if not name else 'was'} {', '.join(sorted(labels))}"
            for name, labels in sorted(found.items())
        ]


def name_of(word: str) -> str:
    """The expression that a word stands for in any data set, "Happiness" for happy; any other word as it is."""
    return _NAME_OF.get(word.strip().casefold(), word)


def parse_renames(texts: Iterable[str]) -> dict[str, str]:
    """Names as the option takes them, "happiness=happy".

    Raises:
        ValueError: a text has no "=", or a label is named twice.
    """
    renamed: dict[str, str] = {}
    for text in texts:
        label, separator, name = text.partition("=")
        if not separator or not label.strip():
            raise ValueError(f"{text!r} is not OLD=NEW, such as happiness=happy")
        if _composed(label) in renamed:
            raise ValueError(f"the label {label.strip()!r} is renamed twice")
        renamed[_composed(label)] = _composed(name)
    return renamed


def _composed(text: str) -> str:
    """`text` without blanks around it, and with accents as parts of their letters: Macs store the two apart."""
    return unicodedata.normalize("NFC", text.strip())


def _check_name(name: str, label: str) -> None:
    """Stop where `name` cannot be a folder's: it may come from anybody's csv.

    Raises:
        DataError: it cannot.
    """
    fault = None
    if len(name) > _LONGEST_NAME:
        fault = f"has {len(name)} characters, more than {_LONGEST_NAME}"
    elif name.startswith(".") or not _NOT_IN_NAMES.isdisjoint(name) or printable(name) != name or name != name.strip():
        fault = "cannot be the name of a folder on every system"
    if fault:
        shown = printable(label, limit=60)
        given = f"the name {printable(name, limit=60)!r} of the label" if name != label else "the label"
        raise DataError(f"{given} {shown!r} {fault}; give it another name: --rename '{shown}=NAME'")


def _unknown_number(text: str, numbering: str | None) -> str:
    if numbering is not None:
        known = ", ".join(NUMBERINGS[numbering])
        return f"{numbering} has no label {text} (it has {known}); name it: --rename {text}=NAME"
    meanings = ", ".join(
        f"{numbers[text] or 'no label'} in {name}" for name, numbers in NUMBERINGS.items() if text in numbers
    )
    return (
        f"the label {text} is a number, and data sets number differently"
        + (f" ({text} is {meanings})" if meanings else "")
        + f"; say which set it is: --numbers {'|'.join(NUMBERINGS)}, or name each one: --rename {text}=NAME"
    )
