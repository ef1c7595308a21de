"""Files that are whole or absent, on disks that lack what others have."""

from __future__ import annotations

from pathlib import Path

import pytest

from fer_runtime.files import check_writable, replaced_atomically, write_atomically


def test_a_disk_without_permissions_of_its_own_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")  # as a FAT stick answers all but the one who mounted it

    monkeypatch.setattr(Path, "chmod", refuse)
    write_atomically(tmp_path / "page.png", b"content")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("page.png", b"content")]


@pytest.fixture
def link(tmp_path: Path) -> Path:
    """A link to a link to a file in another folder."""
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "file").write_text("old")
    (tmp_path / "second").symlink_to(tmp_path / "store" / "file")
    (tmp_path / "first").symlink_to("second")
    return tmp_path / "first"


def test_a_link_to_a_file_is_written_through(link: Path) -> None:
    target = link.parent / "store" / "file"
    with replaced_atomically(link) as partial:
        partial.write_text("new")
        assert partial.parent.samefile(target.parent)  # of its own disk: only there a file can be renamed over it
        assert target.read_text() == "old"
    assert (link.is_symlink(), target.read_text()) == (True, "new")
    assert sorted(path.name for path in link.parent.rglob("*")) == ["file", "first", "second", "store"]
    # Left as they are: what a link leads to is not known, or must stay inside a folder.
    write_atomically(link, "copy", through_link=False)
    assert (link.is_symlink(), link.read_text(), target.read_text()) == (False, "copy", "new")
    nowhere = link.parent / "nowhere"
    nowhere.symlink_to(link.parent / "missing")
    write_atomically(nowhere, "new")
    assert (nowhere.is_symlink(), (link.parent / "missing").exists()) == (False, False)


def test_a_check_leaves_no_folder(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "deep" / "rows.csv")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "there").mkdir()
    check_writable(tmp_path / "there" / "rows.csv")
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]
