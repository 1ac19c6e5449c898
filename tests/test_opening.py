"""Opening what is no vault: the reason, in words."""

import os
from pathlib import Path

import pytest

from strongroom import vault
from strongroom.errors import FormatError
from strongroom.sealed import NO_FRESHNESS
from strongroom.vault.filesystem import SealedFileSystem
from strongroom.vault.transfer import pack, unpack

KEY = bytes(32)


def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "x.sealed").write_bytes(b"s")
    with pytest.raises(FormatError, match="is a file, not a vault") as caught:
        vault.open(tmp_path / "x.sealed", key=KEY, anchor=NO_FRESHNESS)
    assert caught.value.hint and "open_sealed" in caught.value.hint


@pytest.mark.parametrize("name", ["", "none"])
def test_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match="no vault is there"):
        vault.open(tmp_path / name, "r+", key=KEY, anchor=NO_FRESHNESS)
    with pytest.raises(FileNotFoundError, match="no vault is there"):
        SealedFileSystem(vault=str(tmp_path / name), key=KEY, anchor=NO_FRESHNESS).ls("")


def test_times_before_1970_are_kept(tmp_path: Path) -> None:
    source = tmp_path / "s"
    source.mkdir()
    (source / "old").write_bytes(b"1")
    os.utime(source / "old", ns=(-5_000_000_001, -5_000_000_001))
    with vault.open(tmp_path / "v", "x", key=KEY, anchor=NO_FRESHNESS) as made:
        pack(source, made)
    with vault.open(tmp_path / "v", key=KEY, anchor=NO_FRESHNESS) as made:
        unpack(made, tmp_path / "out")
    assert (tmp_path / "out" / "old").stat().st_mtime_ns == -5_000_000_001
