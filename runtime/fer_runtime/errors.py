"""Errors that the user can fix: each names the thing, the fact and the next step.

`first_line` quotes an error of another library inside one of ours.
"""

from __future__ import annotations

NO_MEMORY = "needs more memory than there is"  # why an image has no answer


class FerError(Exception):
    """Base of all errors that a command shows as one `Error:` line."""


class ImageError(FerError):
    """An image cannot be read."""


class InputError(FerError):
    """The images of a run cannot be listed: standard input is no list, or an object store does not answer."""


class ModelFileError(FerError):
    """A model file is missing, damaged or not one of ours."""


class CheckpointError(FerError):
    """A checkpoint is missing, damaged, unsafe or of another network."""


class DataError(FerError):
    """A folder of labelled images is missing, incomplete or unreadable."""


class ParityError(FerError):
    """A model does not compute what the network computes."""


class OutputError(FerError):
    """A result cannot be written."""


class ProviderError(FerError):
    """An execution provider is not available here."""


class DownloadError(FerError):
    """A file cannot be fetched."""


class ExtraMissingError(FerError):
    """A package of an optional extra is not installed."""


class ClusterError(FerError):
    """A Ray cluster cannot be reached, or gave up."""


class ServeError(FerError):
    """A service cannot start."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or the name of its class where it has none.

    For messages that quote an error of another library: those of onnxruntime and PyTorch can fill a page.
    """
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
