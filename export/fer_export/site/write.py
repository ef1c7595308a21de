"""A static site that runs a model in the browser: page, npm package, model and onnxruntime-web in one folder."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from fer_runtime import __version__
from fer_runtime.detectors.yunet_file import ADVICE
from fer_runtime.errors import DownloadError, ModelFileError, OutputError
from fer_runtime.files import CACHE_VARIABLE, cache_folder, can_be_written, write_atomically
from fer_runtime.model.onnx_file import read_onnx_file
from fer_runtime.model.opening import read_model

ORT_WEB_VERSION = "1.30.0"
# The registry's checksum of the package onnxruntime-web at that version.
ORT_WEB_INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
# Modules end in .js in the site: many servers do not know .mjs, and browsers refuse a module of unknown type.
_ORT_FILES = {
    "ort.wasm.min.mjs": "ort/ort.wasm.min.js",
    "ort-wasm-simd-threaded.mjs": "ort/ort-wasm-simd-threaded.js",
    "ort-wasm-simd-threaded.wasm": "ort/ort-wasm-simd-threaded.wasm",
}
_BY_HAND = "unpack the package elsewhere and give its folder (fer-export: --ort-web DIR)"
# The npm package fer-edge, which the page is built from.
NPM_PACKAGE = Path(__file__).with_name("package")
_PAGE_FILES = ("style.css", "icon.svg", "app.js", "runtime.js")
# Title, and x, y and side of the frame that the page starts with where it has no detector: YuNet's crop.
_SAMPLES = {
    "eileen_collins.jpg": ("Eileen Collins", (166, 65, 114)),
    "grace_hopper.jpg": ("Grace Hopper", (162, 125, 213)),
    "group.jpg": ("A group", (124, 104, 145)),
}
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' blob:; "
    "media-src 'self' blob:; connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'"
)
# The licence must be part of every copy; the npm package has no file of it.
_NOTICE = """onnxruntime-web (folder ort): Copyright (c) Microsoft Corporation, MIT License.
The files are those of the npm package, two of them renamed from .mjs to .js.
https://www.npmjs.com/package/onnxruntime-web

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.

Photographs (folder samples): public domain, see samples/CREDITS.md.
"""
_NPM_SECONDS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A folder that any static server can serve."""

    path: Path
    model: Path  # what was copied
    site_bytes: int
    has_detector: bool


def write_site(
    folder: Path,
    *,
    model: Path,
    ort_web: Path | None = None,
    yunet: Path | None = None,
) -> Site:
    """Write the page, `model`, the samples and onnxruntime-web's files to `folder`.

    Args:
        model: an exported model.
        ort_web: the unpacked npm package onnxruntime-web; None takes the pinned version through npm.
        yunet: YuNet's file; without it the page reads the face inside a frame.

    Raises:
        ModelFileError: a model file is missing or not one of ours.
        DownloadError: onnxruntime-web is not there and cannot be fetched.
        OutputError: the folder holds something else, or cannot be written.
    """
    if (folder / "index.html").exists() and not (folder / "site.json").exists():
        raise OutputError(f"{folder} holds another site; choose a folder of its own, or an empty one")
    content = read_model(model).content  # browsers open it, and it may come from anybody
    entries: dict[str, bytes] = {"model.onnx": content, "LICENSES.txt": _NOTICE.encode()}
    if yunet is not None:
        facts, entries["face_detection_yunet.onnx"] = read_onnx_file(yunet, advice=ADVICE)
        if not {"cls_8", "bbox_32"} <= {output.name for output in facts.outputs}:
            raise ModelFileError(f"{yunet} is not a YuNet face detector; give face_detection_yunet_2023mar.onnx")
    entries |= _ort_files(ort_web)
    samples = files("fer_runtime") / "samples"
    for name in (*_SAMPLES, "CREDITS.md"):
        entries[f"samples/{name}"] = (samples / name).read_bytes()
    page = files("fer_export") / "site" / "web"
    entries |= {name: (page / name).read_bytes() for name in _PAGE_FILES}
    entries |= {f"fer-edge/{name}": content for name, content in package_modules().items()}
    settings = {
        "fer-edge": __version__,
        "onnxruntime-web": ORT_WEB_VERSION if ort_web is None else "given",
        "model": "model.onnx",
        "model_file": model.name,
        "model_bytes": len(content),
        "yunet": "face_detection_yunet.onnx" if yunet is not None else None,
        "samples": [
            {"file": f"samples/{name}", "title": title, "face": face} for name, (title, face) in _SAMPLES.items()
        ],
    }
    entries["site.json"] = (json.dumps(settings, indent=1) + "\n").encode()
    policy = html.escape(CONTENT_SECURITY_POLICY, quote=False)
    entries["index.html"] = (page / "index.html").read_text("utf-8").replace("@CSP@", policy).encode()
    entries["sw.js"] = _service_worker((page / "sw.js").read_text("utf-8"), entries)
    for name, data in entries.items():
        write_atomically(folder / name, data)
    if yunet is None:
        (folder / "face_detection_yunet.onnx").unlink(missing_ok=True)  # of an earlier export
    return Site(path=folder, model=model, site_bytes=sum(map(len, entries.values())), has_detector=yunet is not None)


def package_modules() -> dict[str, bytes]:
    """The modules of the npm package by their file names."""
    return {path.name: path.read_bytes() for path in sorted(NPM_PACKAGE.glob("*.js"))}


def _service_worker(source: str, entries: dict[str, bytes]) -> bytes:
    """The worker with its list of files; other contents give another version, so that browsers fetch them anew."""
    digest = hashlib.sha256()
    for name in sorted(entries):
        digest.update(name.encode() + b"\0" + hashlib.sha256(entries[name]).digest())
    kept = ["./", *sorted(name for name in entries if not name.endswith((".md", ".txt")))]
    return source.replace("@VERSION@", digest.hexdigest()[:16]).replace("@FILES@", json.dumps(kept, indent=2)).encode()


def _ort_files(ort_web: Path | None) -> dict[str, bytes]:
    if ort_web is not None:
        root = ort_web / "dist" if (ort_web / "dist").is_dir() else ort_web
        try:
            return {target: (root / name).read_bytes() for name, target in _ORT_FILES.items()}
        except OSError as error:
            raise DownloadError(
                f"{ort_web} is not the unpacked npm package onnxruntime-web: it has no {Path(error.filename).name}; "
                f"unpack what this fetches: npm pack onnxruntime-web@{ORT_WEB_VERSION}"
            ) from error
    package = fetch_npm_package("onnxruntime-web", ORT_WEB_VERSION, ORT_WEB_INTEGRITY)
    contents = read_npm_package(package, {f"package/dist/{name}" for name in _ORT_FILES})
    return {target: contents[f"package/dist/{name}"] for name, target in _ORT_FILES.items()}


def fetch_npm_package(name: str, version: str, integrity: str) -> Path:
    """The package's archive in the cache folder, fetched with the npm client unless it is there.

    Args:
        integrity: "sha512-..." as the registry gives it; only these bytes are kept.

    Raises:
        DownloadError: there is no npm, no network, or the bytes are not those of `integrity`.
        OutputError: the cache folder cannot be written.
    """
    if (kept := kept_npm_package(name, version, integrity)) is not None:
        return kept
    archive = _archive_name(name, version)
    path = cache_folder() / "npm" / archive
    npm = shutil.which("npm")
    if npm is None:
        raise DownloadError(
            f"{name} {version} comes through npm, which is not installed; install Node.js, or {_BY_HAND}"
        )
    if not can_be_written(path.parent):
        raise OutputError(
            f"cannot keep {name} {version} in {path.parent}: permission denied; set {CACHE_VARIABLE} to another folder"
        )
    # Not in the user's home, unless the user has said where.
    environment = {"npm_config_cache": str(cache_folder() / "npm" / "client")} | os.environ
    with tempfile.TemporaryDirectory(prefix="fer-edge-npm-") as folder:
        try:
            done = subprocess.run(
                [npm, "pack", f"{name}@{version}", "--loglevel", "error", "--pack-destination", folder],
                capture_output=True,
                text=True,
                timeout=_NPM_SECONDS,
                cwd=folder,
                env=environment,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DownloadError(f"npm could not fetch {name} {version}: {error}; try again, or {_BY_HAND}") from error
        fetched = Path(folder) / archive
        if done.returncode or not fetched.is_file():
            # The first line names the error; npm's advice and the place of its log follow.
            reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[0]
            reason = reason.removeprefix("npm error ").removeprefix("code ")
            raise DownloadError(f"npm could not fetch {name} {version}: {reason}; try again, or {_BY_HAND}")
        content = fetched.read_bytes()
    if _integrity(content) != integrity:
        raise DownloadError(f"npm gave other bytes of {name} {version} than expected; nothing was kept")
    write_atomically(path, content)
    return path


def kept_npm_package(name: str, version: str, integrity: str) -> Path | None:
    """The package's archive in the cache folder, if it has been fetched; nothing is asked of the network."""
    path = cache_folder() / "npm" / _archive_name(name, version)
    return path if path.is_file() and _integrity(path.read_bytes()) == integrity else None


def _archive_name(name: str, version: str) -> str:
    return f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"


def read_npm_package(path: Path, wanted: set[str]) -> dict[str, bytes]:
    """The named members of a package's archive.

    Raises:
        DownloadError: a member is missing.
    """
    found = {}
    with tarfile.open(path) as archive:
        for member in archive:
            if member.name in wanted and (stream := archive.extractfile(member)) is not None:
                found[member.name] = stream.read()
    if missing := sorted(wanted - found.keys()):
        raise DownloadError(f"{path} has no {missing[0]}")
    return found


def _integrity(content: bytes) -> str:
    return "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()
