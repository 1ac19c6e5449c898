"""`strongroom mount` and `strongroom unmount`, as a person uses them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.posix.conftest import fuse

__all__ = ["fuse"]


def strongroom(*arguments: object, status: int = 0) -> str:
    """Run it; what it says on standard error."""
    command = [sys.executable, "-m", "strongroom", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == status, done.stderr
    return done.stderr


@pytest.fixture
def place(fuse: None, tmp_path: Path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m2").mkdir()
    yield tmp_path
    for name in ("m", "m2"):
        subprocess.run(["fusermount3", "-u", "-z", tmp_path / name], check=False, capture_output=True)


def test_create_write_and_find_again(place: Path) -> None:
    said = strongroom("mount", "--create", place / "v.vault", place / "m")
    assert "key written to" in said and "sees the plaintext" in said
    (place / "m" / "d").mkdir()
    (place / "m" / "d" / "f").write_bytes(b"content")
    strongroom("unmount", place / "m")
    assert list((place / "m").iterdir()) == []
    strongroom("mount", "--read-only", place / "v.vault", place / "m")
    strongroom("mount", "--read-only", place / "v.vault", place / "m2")
    assert (place / "m2" / "d" / "f").read_bytes() == b"content"
    with pytest.raises(OSError, match="Read-only"):
        (place / "m" / "new").touch()
    strongroom("unmount", place / "m2")
    strongroom("unmount", place / "m")


def test_no_core_file_holds_the_key(place: Path) -> None:
    strongroom("mount", "--create", place / "v.vault", place / "m")
    mounted = next(line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(place / "m") in line)
    process = Path("/proc", mounted.rpartition("strongroom:")[2].split(" ")[0])
    limits = (process / "limits").read_text().splitlines()
    [core] = [line.split()[4:6] for line in limits if line.startswith("Max core file size")]
    assert core in (["0", "0"], ["1", "1"])  # neither leaves a file; 1 keeps the kernel from piping one, too
    strongroom("unmount", place / "m")


def test_one_writable_mount_at_a_time(place: Path) -> None:
    strongroom("mount", "--create", place / "v.vault", place / "m")
    assert "is mounted for writing already" in strongroom("mount", place / "v.vault", place / "m2", status=25)
    with (place / "m" / "f").open("wb") as file:
        file.write(b"1")
        assert "in use" in strongroom("unmount", place / "m", status=25)
    strongroom("unmount", place / "m")


def test_passphrases_open_it_too(place: Path) -> None:
    code = """
import sys
from strongroom import FileAnchor, vault
from strongroom.vault.keys import Passphrase
path = sys.argv[1]
with vault.open(path, "x", key=Passphrase("correct horse"), anchor=FileAnchor(path + ".anchor")) as made:
    made.write_bytes("f", b"content")
"""
    subprocess.run([sys.executable, "-c", code, place / "v.vault"], check=True)
    command = [sys.executable, "-m", "strongroom", "mount", "--passphrase-fd", "0", place / "v.vault", place / "m"]
    subprocess.run(command, input=b"correct horse\n", check=True, capture_output=True)
    assert (place / "m" / "f").read_bytes() == b"content"
    strongroom("unmount", place / "m")


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("mount", "none.vault", "m"), 2, "does not exist"),
        (("mount", "--create", "--read-only", "v.vault", "m"), 2, "exclude each other"),
        (("mount", "--create", "v.vault", "none"), 2, "is no directory"),
        (("unmount", "m"), 2, "no vault is mounted"),
    ],
)
def test_refusals(place: Path, monkeypatch, arguments: tuple[str, ...], status: int, said: str) -> None:
    monkeypatch.chdir(place)
    assert said in strongroom(*arguments, status=status)


def test_in_the_foreground_until_interrupted(place: Path) -> None:
    strongroom("mount", "--create", place / "v.vault", place / "m")
    strongroom("unmount", place / "m")
    command = [sys.executable, "-m", "strongroom", "mount", "--foreground", place / "v.vault", place / "m"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        for line in server.stderr:
            if "Ctrl-C commits" in line:
                break
        (place / "m" / "f").write_bytes(b"not synced")
        server.terminate()
        assert server.wait(60) == 0
    strongroom("mount", "--read-only", place / "v.vault", place / "m")
    assert (place / "m" / "f").read_bytes() == b"not synced"
    strongroom("unmount", place / "m")
