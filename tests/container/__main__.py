"""`make container`: build examples/serve/Dockerfile with rootless podman, run the image and ask it for faces.

Prints one line per check and exits 1 if one fails, 3 if podman or a base image cannot be had. FER_EDGE_BASE_IMAGE names
another base image than the Dockerfile's. Where no registry can be reached, one is made of Debian's packages.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[2]
DOCKERFILE = CHECKOUT / "examples" / "serve" / "Dockerfile"
SAMPLE = CHECKOUT / "runtime" / "fer_runtime" / "samples" / "eileen_collins.jpg"
IMAGE = "localhost/fer-serve"

_DEBIAN = "bookworm"
_DEBIAN_IMAGE = f"localhost/fer-edge-{_DEBIAN}"
_DEBIAN_PACKAGES = "python3,python3-venv,ca-certificates"
# As in examples/serve/README.md; podman alone would put a tmpfs on /tmp and /run, which Docker does not.
_RESTRICTIONS = ("--read-only", "--read-only-tmpfs=false", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
_READY_SECONDS = 60.0
_LONG_REQUEST_IMAGES = 64  # seconds of work: SIGTERM comes in their midst

# What the served process may do, as its own user sees it.
_PROBE = """
import importlib.util, json, os
status = dict(line.split(":\\t", 1) for line in open("/proc/1/status").read().splitlines() if ":\\t" in line)
folders = [folder for folder, _, _ in os.walk("/") if not folder.startswith(("/proc", "/sys", "/dev"))]
print(json.dumps({
    "user": status["Uid"].split()[0],
    "group": status["Gid"].split()[0],
    "no new privileges": status["NoNewPrivs"],
    "capabilities": int(status["CapEff"], 16) | int(status["CapBnd"], 16),
    "writable": [folder for folder in folders if os.access(folder, os.W_OK)],
    "PyTorch": importlib.util.find_spec("torch") is not None,
}))
"""
_EXPECTED = {
    "user": "65534",
    "group": "65534",
    "no new privileges": "1",
    "capabilities": 0,
    "writable": [],  # /dev/shm and /dev/mqueue are left out: in memory, in every container
    "PyTorch": False,
}


class UnavailableError(Exception):
    """Something is not installed or cannot be downloaded here."""


def main() -> None:
    started = time.monotonic()
    failures = 0
    try:
        options = _run_options()
        base = _base_image()
    except UnavailableError as error:
        print(f"the image is not built and run here: {error}", file=sys.stderr)
        sys.exit(3)
    for fact, failure in _checks(base, options):
        print(f"{'FAIL' if failure else 'ok  '}  {fact}" + (f": {failure}" if failure else ""), flush=True)
        failures += bool(failure)
    print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)
    sys.exit(failures > 0)


def podman(*arguments: str, timeout: float = 120, check: bool = False, **environment: str) -> Any:
    """Run podman to its end."""
    return subprocess.run(
        ["podman", *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=check,
    )


def _run_options() -> list[str]:
    """What `podman run` needs on this machine.

    Raises:
        UnavailableError: podman is not installed, does not work, or would run as root.
    """
    if shutil.which("podman") is None:
        raise UnavailableError("needs podman: apt-get install podman crun uidmap slirp4netns")
    if os.geteuid() == 0:
        raise UnavailableError("needs a user other than root, who has a line in /etc/subuid and in /etc/subgid")
    done = podman("info", "--format", "json")
    if done.returncode:
        raise UnavailableError(f"podman info: {done.stderr.strip()[-300:]}")
    if json.loads(done.stdout)["host"]["cgroupVersion"] == "v2":
        return []
    # crun refuses control groups of both versions at once. A user can't hide them from the machine, but from podman's
    # own namespace; no limits are set without them.
    hide = "! test -e /sys/fs/cgroup/unified || mount -t tmpfs none /sys/fs/cgroup"
    done = podman("unshare", "sh", "-c", hide)
    if done.returncode:
        raise UnavailableError(f"podman unshare: {done.stderr.strip()[-300:]}")
    return ["--cgroups=disabled"]


def _base_image() -> str:
    """FER_EDGE_BASE_IMAGE or the Dockerfile's own, else Debian with Python, made here.

    Raises:
        UnavailableError: there is none, and none can be made.
    """
    named = os.environ.get("FER_EDGE_BASE_IMAGE")
    (usual,) = re.findall(r"^ARG IMAGE=(\S+)$", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    wanted = named or f"docker.io/library/{usual}"
    for name in (wanted, *([] if named else [_DEBIAN_IMAGE])):
        if podman("image", "exists", name).returncode == 0:
            return name
    print(f"pulling {wanted}", file=sys.stderr)
    done = podman("pull", "--quiet", wanted, timeout=1200)
    if done.returncode == 0:
        return wanted
    reason = done.stderr.strip()[-300:]
    if named:
        raise UnavailableError(f"there is no image {named}: {reason}")
    print(reason, file=sys.stderr)
    if shutil.which("mmdebstrap") is None:
        raise UnavailableError("no registry can be reached; to make a base image: apt-get install mmdebstrap")
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "base.tar"
        print(f"making {_DEBIAN_IMAGE} of Debian's packages", file=sys.stderr)
        settings = ("--quiet", "--mode=unshare", "--variant=minbase", f"--include={_DEBIAN_PACKAGES}")
        made = subprocess.run(
            ["mmdebstrap", *settings, _DEBIAN, str(archive)], capture_output=True, text=True, timeout=1800
        )
        if made.returncode:
            raise UnavailableError(f"mmdebstrap: {made.stderr.strip()[-500:]}")
        podman("import", "--quiet", str(archive), _DEBIAN_IMAGE, timeout=1200, check=True)
    return _DEBIAN_IMAGE


def _checks(base: str, options: list[str]) -> Iterator[tuple[str, str]]:
    """Facts about the image, each with what is wrong about it, "" if nothing is."""
    started = time.monotonic()
    failure = _build(base)
    seconds = time.monotonic() - started
    yield f"{DOCKERFILE.relative_to(CHECKOUT)} is built on {base} ({seconds:.0f} s with what podman kept)", failure
    if failure:
        return
    sizes = [
        int(podman("image", "inspect", "-f", "{{.Size}}", image, check=True).stdout) / 1e6 for image in (IMAGE, base)
    ]
    yield f"image: {sizes[0]:.0f} MB, of which its base: {sizes[1]:.0f} MB", ""
    done = podman("run", "--rm", *options, *_RESTRICTIONS, IMAGE)
    refused = done.returncode == 2 and "Error: " in done.stderr and "--token" in done.stderr
    yield "without a token it does not start", "" if refused else done.stdout + done.stderr
    token = secrets.token_hex(16)
    name = f"fer-serve-{os.getpid()}"
    command = ("run", "-d", "--name", name, *options, *_RESTRICTIONS, "-e", "FER_SERVE_TOKEN", "-p", "127.0.0.1::8000")
    try:
        started = time.monotonic()
        podman(*command, IMAGE, check=True, FER_SERVE_TOKEN=token)
        address = "http://" + podman("port", name, "8000", check=True).stdout.strip()
        ready = _wait_until_ready(address)
        yield f"/health/ready after {time.monotonic() - started:.1f} s", "" if ready else _log(name)
        if ready:
            yield from _facts(name, address, token)
    finally:
        podman("rm", "--force", name)


def _build(base: str) -> str:
    with tempfile.TemporaryDirectory() as name:
        # pip's index and certificate of this machine, for the RUN lines alone: no layer has them.
        settings = {"index-url": "PIP_INDEX_URL", "extra-index-url": "PIP_EXTRA_INDEX_URL"}
        lines = [f"{key} = {os.environ[name]}" for key, name in settings.items() if name in os.environ]
        volumes = []
        if certificate := os.environ.get("PIP_CERT"):
            volumes += ["--volume", f"{certificate}:/run/certificates.pem:ro"]
            lines.append("cert = /run/certificates.pem")
        if lines:
            path = Path(name) / "pip.conf"
            path.write_text("\n".join(["[global]", *lines, ""]), encoding="utf-8")
            volumes += ["--volume", f"{path}:/etc/pip.conf:ro"]
        # The format of OCI has no HEALTHCHECK.
        settings_of_build = ("--format", "docker", "--network", "host", "--build-arg", f"IMAGE={base}", "--tag", IMAGE)
        done = podman("build", *settings_of_build, *volumes, "--file", str(DOCKERFILE), str(CHECKOUT), timeout=3600)
    return (done.stdout + done.stderr)[-2000:] if done.returncode else ""


def _facts(name: str, address: str, token: str) -> Iterator[tuple[str, str]]:
    done = podman("healthcheck", "run", name)
    yield "its HEALTHCHECK passes", "" if done.returncode == 0 else done.stdout + done.stderr
    done = podman("exec", name, "python3", "-c", _PROBE)
    found = json.loads(done.stdout) if done.returncode == 0 else done.stderr
    yield (
        "user 65534, no capability, no new privileges, no folder to write to outside /dev, no PyTorch",
        ("" if found == _EXPECTED else str(found)),
    )
    done = podman("exec", name, "fer-infer", "--self-test")
    yield "fer-infer --self-test", "" if done.returncode == 0 else done.stdout + done.stderr
    status, _ = _post(address, 1, None)
    yield "POST /v1/images without the token: 401", "" if status == 401 else str(status)
    status, answer = _post(address, 1, token)
    done = podman("exec", name, "fer-infer", "--samples", "--format", "json")
    yield (
        "POST /v1/images: the faces that fer-infer finds in the same image",
        ("" if status == 200 and _same_faces(answer, done.stdout) else f"{status} {answer} {done.stdout}{done.stderr}"),
    )
    yield from _stopped(name, address, token)


def _same_faces(answer: Any, rows: str) -> bool:
    (image,) = answer["images"]
    (row,) = [row for row in json.loads(rows) if Path(row["path"]).name == SAMPLE.name]
    return bool(image["faces"]) and bool(image["faces"] == row["faces"])


def _stopped(name: str, address: str, token: str) -> Iterator[tuple[str, str]]:
    answers: list[tuple[int, Any]] = []
    request = threading.Thread(target=lambda: answers.append(_post(address, _LONG_REQUEST_IMAGES, token)))
    request.start()
    time.sleep(0.5)
    waited = request.is_alive()
    podman("kill", "--signal", "TERM", name, check=True)
    request.join()
    code = podman("wait", name).stdout.strip()
    complete = waited and answers[0][0] == 200 and len(answers[0][1]["images"]) == _LONG_REQUEST_IMAGES
    yield (
        f"SIGTERM in the midst of a request of {_LONG_REQUEST_IMAGES} images: it is answered, and the exit code is 0",
        (
            ""
            if complete and code == "0"
            else f"in progress {waited}, answer {answers[0][0]}, exit code {code}\n{_log(name)}"
        ),
    )


def _wait_until_ready(address: str) -> bool:
    until = time.monotonic() + _READY_SECONDS
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            if urllib.request.urlopen(f"{address}/health/ready", timeout=10).status == 200:
                return True
        time.sleep(0.05)
    return False


def _post(address: str, images: int, token: str | None) -> tuple[int, Any]:
    """Status and answer of one request with the sample image, `images` times."""
    part = b'--boundary\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n%b\r\n'
    body = part % SAMPLE.read_bytes() * images + b"--boundary--\r\n"
    headers: Mapping[str, str] = {
        "Content-Type": "multipart/form-data; boundary=boundary",
        **({"Authorization": f"Bearer {token}"} if token else {}),
    }
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"{address}/v1/images", body, headers), timeout=60
        ) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def _log(name: str) -> str:
    done = podman("logs", name)
    return str(done.stdout + done.stderr)[-2000:]


if __name__ == "__main__":
    main()
