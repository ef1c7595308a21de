"""Files that are whole or absent, on disks that lack what others have."""

from __future__ import annotations

from pathlib import Path

import pytest

from fer_runtime.files import write_atomically


def test_a_disk_without_permissions_of_its_own_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")  # as a FAT stick answers all but the one who mounted it

    monkeypatch.setattr(Path, "chmod", refuse)
    write_atomically(tmp_path / "page.png", b"content")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("page.png", b"content")]
