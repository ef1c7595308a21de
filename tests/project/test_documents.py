"""README, docs and settings: links lead somewhere, versions agree, no path of somebody's machine."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest

from fer_runtime.expressions import EXPRESSIONS

CHECKOUT = Path(__file__).parents[2]


def tracked_files() -> list[Path]:
    """Every file under version control that is there."""
    if not (CHECKOUT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, check=True).stdout
    return [path for name in listed.decode().split("\0") if name and (path := CHECKOUT / name).is_file()]


def documents() -> list[Path]:
    return [path for path in tracked_files() if path.suffix == ".md"]


def anchors(document: Path) -> set[str]:
    """The names that headings get on GitHub."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_links_of_documents_lead_somewhere() -> None:
    broken = []
    for document in documents():
        text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text):
            link = "".join(target)
            if re.match(r"[a-z]+:", link):
                continue
            path, _, anchor = link.partition("#")
            file = (document.parent / path).resolve() if path else document
            if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
                broken.append(f"{document.relative_to(CHECKOUT)}: {link}")
    assert broken == []


def test_the_readme_shows_what_the_samples_give() -> None:
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"^\$ fer-infer --samples --format table\n(.*?)^```", readme, flags=re.MULTILINE | re.DOTALL)
    assert found
    shown = found[1]
    program = "from fer_runtime.cli import main; main(['--samples', '--format', 'table'])"
    printed = subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    expressions = rf"\b({'|'.join(EXPRESSIONS)})\b"
    assert re.findall(expressions, shown) == re.findall(expressions, printed.stdout)


def test_every_direct_dependency_is_pinned() -> None:
    names = {re.split(r"[^\w.-]", requirement)[0] for requirement in requires("fer-edge") or ()} - {"fer-edge"}
    constraints = (CHECKOUT / "constraints.txt").read_text(encoding="utf-8")
    pinned = set(re.findall(r"^([\w.-]+)==[\w.]+(?: ; .+)?$", constraints, flags=re.MULTILINE))
    assert names
    assert names - pinned == set()


def test_no_file_names_a_folder_of_somebodys_machine() -> None:
    """Exporters write the paths of source files into models, and reports those of their input."""
    folders = rb"/(?:home/\w+|Users/\w+|root|work)/\w"
    named = [
        str(path.relative_to(CHECKOUT))
        for path in tracked_files()
        if path.suffix not in (".jpg", ".png") and re.search(folders, path.read_bytes())
    ]
    assert named == []


def test_no_picture_of_the_dataset_is_tracked() -> None:
    names = [path.name for path in tracked_files()]
    assert [name for name in names if re.match(r"(Training|PublicTest|PrivateTest)_\d+", name)] == []
