"""Signatures of model files, which show who made a file.

A signature is the file `NAME.onnx.sig` beside the model: the 64 bytes of Ed25519 (RFC 8032) over the model file's
bytes. It is beside the file, not inside, so that it is verified before anything of the file is read, and so that any
program can verify it: `openssl pkeyutl -verify -rawin -pubin -inkey KEY -in FILE -sigfile FILE.sig`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fer_runtime.errors import ModelFileError
from fer_runtime.files import write_atomically

_SIGNATURE_BYTES = 64
_MAX_KEY_BYTES = 65_536


def signature_path(path: Path) -> Path:
    """The path of a model file's signature, `model_0.onnx.sig`."""
    return path.with_name(f"{path.name}.sig")


def load_private_key(path: Path) -> Any:
    """The key that `fer-export --sign` takes: Ed25519 in PEM, without a password.

    Raises:
        ModelFileError: the file is missing or no such key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    advice = f"make one with: openssl genpkey -algorithm ed25519 -out {_free(path)}"
    try:
        key = load_pem_private_key(_read(path, advice), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ModelFileError(f"{path} is not an Ed25519 private key without a password; {advice}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ModelFileError(f"{path} holds a key of another kind than Ed25519; {advice}")
    return key


def _free(path: Path) -> Path | str:
    """The file for a command in an error: never one that is there, which openssl would overwrite."""
    return "NEW.pem" if os.path.lexists(path) else path


def sign_file(path: Path, key: Any) -> Path:
    """Write the signature of a model file beside it; where it is.

    Args:
        key: of `load_private_key`.
    """
    target = signature_path(path)
    write_atomically(target, key.sign(path.read_bytes()))
    return target


def is_signed_by(content: bytes, path: Path, trusted: Path) -> bool:
    """Whether the signature beside a model file is by the holder of a key, over these bytes.

    Args:
        content: the model file's bytes.
        path: where they are from; the signature is beside it.
        trusted: the public key, Ed25519 in PEM.

    Raises:
        ModelFileError: there is no signature, or `trusted` is no such key.
    """
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    advice = f"get it from the private key with: openssl pkey -in KEY -pubout -out {_free(trusted)}"
    try:
        key = load_pem_public_key(_read(trusted, advice))
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ModelFileError(f"{trusted} is not an Ed25519 public key; {advice}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ModelFileError(f"{trusted} holds a key of another kind than Ed25519; {advice}")
    signature = _read(signature_path(path), "ask whoever made the file for it, or sign the file: fer-export --sign KEY")
    if len(signature) != _SIGNATURE_BYTES:
        return False
    try:
        key.verify(signature, content)
    except InvalidSignature:
        return False
    return True


def _read(path: Path, advice: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_KEY_BYTES)
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror}; {advice}") from error
