"""What `strongroom mount` and `unmount` say when something is in the way: nothing is lost in silence."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from strongroom.cli import output
from strongroom.cli.mount.log import ServerLog
from strongroom.cli.unmount import _source
from tests.cli.test_mount import place, strongroom
from tests.posix.conftest import fuse

__all__ = ["fuse", "place"]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    path = tmp_path / "small"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", path]
    if subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("only root can mount a small disk")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


@pytest.fixture
def full(place: Path, small: Path) -> Path:
    """A mounted vault with a file that is not committed, and a disk that has no room for that any more."""
    strongroom("mount", "--create", small / "v.vault", place / "m")
    (place / "m" / "first").write_bytes(b"1")
    strongroom("unmount", place / "m")
    strongroom("mount", small / "v.vault", place / "m")
    with (small / "fill").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))
    with (place / "m" / "second").open("wb", buffering=0) as file:
        file.write(b"2" * 5000)
        with pytest.raises(OSError) as caught:
            os.fsync(file.fileno())
    assert caught.value.errno == errno.ENOSPC
    return small


def test_what_cannot_be_committed_keeps_the_mount_and_can_be_committed_later(place: Path, full: Path) -> None:
    said = strongroom("unmount", place / "m", status=1)
    assert "cannot be committed" in said and "No space left" in said and "still mounted" in said
    assert (place / "m" / "second").read_bytes() == b"2" * 5000
    (full / "fill").unlink()
    said = strongroom("unmount", place / "m")
    assert "something failed while it was mounted" in said
    strongroom("mount", "--read-only", full / "v.vault", place / "m")
    assert (place / "m" / "second").read_bytes() == b"2" * 5000
    strongroom("unmount", place / "m")


def test_by_force_it_ends_and_says_what_is_lost(place: Path, full: Path) -> None:
    said = strongroom("unmount", "--force", place / "m", status=1)
    assert "the last commit failed" in said and "No space left" in said and "is kept" in said
    assert list((place / "m").iterdir()) == []
    (full / "fill").unlink()
    strongroom("mount", "--read-only", full / "v.vault", place / "m")
    assert [path.name for path in (place / "m").iterdir()] == ["first"]
    strongroom("unmount", place / "m")


def test_a_server_that_is_killed_has_lost_something(place: Path) -> None:
    strongroom("mount", "--create", place / "v.vault", place / "m")
    source = _source(place / "m")
    assert source is not None
    process = int(source.partition(":")[2])
    log = ServerLog(str(process))
    assert log.known and log.lines() == []
    os.kill(process, 9)
    assert log.lost() == "the process that served it was killed"
    log.close()


@pytest.mark.parametrize("point", [".", "d", "d/v.vault", "link"])
@pytest.mark.parametrize("option", ["--create", "--read-only"])
def test_nothing_is_mounted_over_the_vault_itself(place: Path, monkeypatch, point: str, option: str) -> None:
    monkeypatch.chdir(place)
    Path("d").mkdir()
    Path("link").symlink_to("d")
    if option == "--read-only":
        strongroom("mount", "--create", "d/v.vault", "m")
        strongroom("unmount", "m")
    assert "would be hidden" in strongroom("mount", option, "d/v.vault", point, status=2)
    assert Path("d/v.vault").exists() == (option == "--read-only")


def test_nor_over_its_anchor_or_its_key(place: Path, monkeypatch) -> None:
    monkeypatch.chdir(place)
    strongroom("mount", "--create", "v.vault", "m")
    strongroom("unmount", "m")
    Path("d").mkdir()
    Path("v.vault.key").rename("d/k")
    assert "holds" in strongroom("mount", "--key", "d/k", "v.vault", "d", status=2)
    Path("d/k").rename("v.vault.key")
    Path("v.vault.anchor").rename("d/a")
    assert "holds" in strongroom("mount", "--anchor", "d/a", "v.vault", "d", status=2)


def test_it_says_how_it_ends_and_who_uses_it(place: Path, monkeypatch) -> None:
    monkeypatch.chdir(place)
    assert "commits and ends it" in strongroom("mount", "--create", "v.vault", "m")
    with (place / "m" / "f").open("wb"):
        assert f"fuser -vm {place / 'm'}" in strongroom("unmount", "m", status=25)
    assert strongroom("unmount", "m") == ""
    said = strongroom("mount", "--read-only", "v.vault", "m")
    assert "ends it" in said and "commits" not in said
    strongroom("unmount", "m")


def test_names_that_are_no_utf8_come_in_and_out_through_a_mount(place: Path, monkeypatch) -> None:
    monkeypatch.chdir(place)
    Path("s").mkdir()
    name = os.fsdecode(b"bad\xff")
    Path("s", name).write_bytes(b"content")
    said = strongroom("seal", "s", "v.vault", status=2)
    assert r"'bad\xff', wanted UTF-8" in said and "through a mount" in said
    strongroom("mount", "--create", "v.vault", "m")
    Path("m", name).write_bytes(b"content")
    strongroom("unmount", "m")
    strongroom("unseal", "v.vault", "out")
    assert Path("out", name).read_bytes() == b"content"
    strongroom("vault", "cp", f"v.vault:{name}", "copy")
    assert Path("copy").read_bytes() == b"content"


def test_a_damaged_block_is_explained(place: Path, monkeypatch) -> None:
    monkeypatch.chdir(place)
    Path("s").mkdir()
    Path("s/big").write_bytes(os.urandom(500_000))
    strongroom("seal", "s", "v.vault")
    data = max(Path("v.vault").iterdir(), key=lambda path: path.stat().st_size)
    with data.open("r+b") as file:
        file.seek(200_000)
        file.write(b"damaged")
    said = strongroom("vault", "verify", "v.vault", status=23)
    assert said.count("big") == 1 and "damaged: 1 path;" in said
    strongroom("mount", "v.vault", "m")
    with pytest.raises(OSError) as caught:
        Path("m/big").read_bytes()
    assert caught.value.errno == errno.EIO
    said = strongroom("unmount", "m")
    assert "something failed while it was mounted" in said and "block" in said


def test_what_the_library_logs_has_the_prefix(capsys) -> None:
    output.show_log()
    output.show_log()
    logging.getLogger("strongroom.vault").warning("%s: was mended", "v")
    assert capsys.readouterr().err == "strongroom: v: was mended\n"
