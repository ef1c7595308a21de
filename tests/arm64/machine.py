"""An arm64 Linux in a folder: QEMU's user-mode emulator, Debian's Python and the wheels of fer-edge for aarch64.

Nothing is installed on this machine, and no root is needed.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import lzma
import os
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]

_MIRROR = os.environ.get("DEBIAN_MIRROR", "https://deb.debian.org/debian")
_RELEASE = "trixie"  # bookworm's QEMU 7.2 crashes on importing onnxruntime 1.32
_PYTHON = "3.13"
# What Debian's Python and the wheels' libraries link to.
_PACKAGES = (
    *("libc6", "libgcc-s1", "libstdc++6", "zlib1g", "libexpat1", "libssl3t64", "libffi8", "libbz2-1.0", "liblzma5"),
    *("libuuid1", "libzstd1", "libsqlite3-0"),
    *(f"python{_PYTHON}-minimal", f"libpython{_PYTHON}-minimal", f"libpython{_PYTHON}-stdlib"),
)
_TIMEOUT_SECONDS = 30.0  # without an answer
_QUICK_SECONDS = 3.0  # for 150 kB


class UnavailableError(Exception):
    """Something cannot be downloaded here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The emulated machine."""

    emulator: Path
    root: Path  # Debian's files
    site: Path  # the installed wheels

    def command(self, cpu: str, *arguments: str) -> list[str]:
        """A command line that runs Python on `cpu`, such as "cortex-a72"."""
        python = self.root / "usr" / "bin" / f"python{_PYTHON}"
        return [str(self.emulator), "-L", str(self.root), "-cpu", cpu, str(python), *arguments]

    def environment(self, **extra: str) -> dict[str, str]:
        """Without this machine's Python settings, and with one thread: emulated threads slow each other."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FER_EDGE"))}
        return {**kept, "PYTHONPATH": str(self.site), "OMP_NUM_THREADS": "1", **extra}

    def run(
        self, cpu: str, *arguments: str, timeout: float = 1800, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run Python to its end."""
        return subprocess.run(
            self.command(cpu, *arguments),
            env=self.environment(**environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )


def check_mirror() -> None:
    """Stop where the mirror does not answer quickly, before a short run begins to download from it.

    Raises:
        UnavailableError: it does not.
    """
    started = time.monotonic()
    _fetch(f"{_MIRROR}/dists/{_RELEASE}/Release", timeout=_QUICK_SECONDS)
    if (seconds := time.monotonic() - started) > _QUICK_SECONDS:
        raise UnavailableError(f"{_MIRROR} is slow: {seconds:.1f} s for a small file")


def prepare(folder: Path, *, extras: str = "", packages: Sequence[str] = ()) -> Machine:
    """Download and unpack what is not in `folder` yet, and install this checkout's wheel anew.

    Args:
        folder: keeps what was downloaded.
        extras: of fer-edge, as "[serve]".
        packages: installed beside fer-edge.

    Raises:
        UnavailableError: something cannot be downloaded.
    """
    machine = Machine(
        emulator=folder / "qemu" / "usr" / "bin" / "qemu-aarch64", root=folder / "root", site=folder / "site"
    )
    try:
        _unpack_debian(folder, machine)
    except (OSError, ValueError, KeyError, lzma.LZMAError, tarfile.TarError) as error:
        raise UnavailableError(f"Debian's packages cannot be unpacked: {error!r}") from error
    _install(folder, machine.site, extras, packages)
    if (done := machine.run("cortex-a72", "-c", "pass")).returncode:
        raise UnavailableError(f"the emulator does not run Python: {done.stderr[-300:]}")
    return machine


def _unpack_debian(folder: Path, machine: Machine) -> None:
    """The emulator and Debian's Python, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    if not machine.emulator.is_file():
        if (host := {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine)) is None:
            raise UnavailableError(f"there is no emulator for {os.uname().machine}")
        for content in _debian_packages(["qemu-user"], host):
            _unpack(content, folder / "qemu", only="./usr/bin/qemu-aarch64")
    if not (machine.root / "complete").is_file():
        for content in _debian_packages(_PACKAGES, "arm64"):
            _unpack(content, machine.root)
        if not (machine.root / "lib").exists():  # in Debian a link since bookworm, which belongs to no package
            (machine.root / "lib").symlink_to("usr/lib")
        (machine.root / "complete").touch()


def _install(folder: Path, site: Path, extras: str, packages: Sequence[str]) -> None:
    wheels = folder / "wheels"
    _pip("wheel", "--no-deps", "--wheel-dir", str(wheels), str(CHECKOUT))
    (wheel,) = wheels.glob("fer_edge-*.whl")
    platforms = [
        item
        for level in ("manylinux_2_28", "manylinux_2_17", "manylinux2014")
        for item in ("--platform", f"{level}_aarch64")
    ]
    settings = ["--implementation", "cp", "--python-version", _PYTHON, "--only-binary", ":all:"]
    constraints = ["--constraint", str(CHECKOUT / "constraints.txt"), "--target", str(site), "--upgrade"]
    _pip("install", *platforms, *settings, *constraints, f"{wheel}{extras}", *packages)


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"pip {arguments[0]} takes more than {error.timeout:.0f} s") from error
    if done.returncode:
        raise UnavailableError(f"pip {arguments[0]} failed: {done.stderr.strip()[-500:]}")


def _debian_packages(names: Sequence[str], architecture: str) -> Iterator[bytes]:
    """The .deb files of `names`, each compared with the SHA-256 that Debian's index states."""
    index = lzma.decompress(_fetch(f"{_MIRROR}/dists/{_RELEASE}/main/binary-{architecture}/Packages.xz"))
    found = {fields["Package"]: fields for fields in _stanzas(index.decode()) if fields.get("Package") in names}
    if missing := [name for name in names if name not in found]:
        raise UnavailableError(f"Debian {_RELEASE} has no {', '.join(missing)} for {architecture}")
    for name in names:
        content = _fetch(f"{_MIRROR}/{found[name]['Filename']}")
        if hashlib.sha256(content).hexdigest() != found[name]["SHA256"]:
            raise UnavailableError(f"{found[name]['Filename']} is damaged")
        yield content


def _stanzas(index: str) -> Iterator[Mapping[str, str]]:
    for stanza in index.split("\n\n"):
        yield dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line and not line.startswith(" "))


def _fetch(address: str, *, timeout: float = _TIMEOUT_SECONDS) -> bytes:
    print(f"downloading {address}", file=sys.stderr)
    try:
        with urllib.request.urlopen(address, timeout=timeout) as answer:
            content: bytes = answer.read()
            return content
    except (http.client.HTTPException, OSError) as error:
        raise UnavailableError(f"cannot download {address}: {error}") from error


def _unpack(deb: bytes, folder: Path, *, only: str | None = None) -> None:
    """Unpack the files of a .deb, which is an ar archive with a data.tar inside."""
    place = 8  # behind "!<arch>\n"
    while place < len(deb):
        header = deb[place : place + 60]
        name, size = header[:16].decode().strip().rstrip("/"), int(header[48:58])
        start = place + 60
        if name.startswith("data.tar"):
            with tarfile.open(fileobj=io.BytesIO(deb[start : start + size])) as archive:
                members = [member for member in archive.getmembers() if only is None or member.name == only]
                # Pythons before 3.11.4, such as Debian 12's, have no filters.
                archive.extraction_filter = getattr(tarfile, "tar_filter", lambda member, _: member)
                archive.extractall(folder, members=members)
            return
        place = start + size + size % 2
    raise UnavailableError("a .deb file without data")
