"""Unmodified programs and libraries on a writable mount."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.posix.server import Server, served


@pytest.fixture
def program(point: Path) -> Callable[..., str]:
    """Runs Python code in a process of its own, in the mount, with the arguments given; what it prints."""

    def run(code: str, *arguments: object) -> str:
        command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
        done = subprocess.run(command, cwd=point, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


def ran(*command: object, **options: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


@pytest.mark.parametrize("journal", ["delete", "truncate", "persist", "wal", "memory"])
def test_sqlite(places: tuple[Path, Path], journal: str) -> None:
    with served(*places) as server:
        path = server.point / "data.db"
        one = sqlite3.connect(path, isolation_level=None)
        assert one.execute(f"pragma journal_mode={journal}").fetchone() == (journal,)
        one.execute("create table t (a integer primary key, b blob)")
        two = sqlite3.connect(path, isolation_level=None, timeout=10)
        for number in range(50):
            (one, two)[number % 2].execute("insert into t (b) values (?)", (os.urandom(number * 100),))
        one.execute("begin immediate")
        one.execute("delete from t")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            sqlite3.connect(path, isolation_level=None, timeout=0).execute("insert into t (b) values (1)")
        one.execute("rollback")
        one.execute("vacuum") if journal != "wal" else None
        assert two.execute("select count(*), sum(length(b)) from t").fetchone() == (50, 122_500)
        one.close()
        two.close()
    with served(*places) as server:
        one = sqlite3.connect(server.point / "data.db")
        assert one.execute("pragma integrity_check").fetchone() == ("ok",)
        assert one.execute("select count(*), sum(length(b)) from t").fetchone() == (50, 122_500)
        one.close()


def test_hdf5(program: Callable[..., str]) -> None:
    pytest.importorskip("h5py")
    program("""
        import h5py, numpy
        with h5py.File("data.h5", "w") as file:
            options = {"chunks": (10, 100), "compression": "gzip", "maxshape": (None, 1000)}
            made = file.create_dataset("a", (100, 1000), dtype="i8", **options)
            made[:] = numpy.arange(100_000).reshape(100, 1000)
        with h5py.File("data.h5", "r+") as file:
            file["a"].resize((200, 1000))
            file["a"][150] = 7
            file["a"].attrs["unit"] = "m"
            file.flush()
    """)
    code = """
        import h5py
        with h5py.File("data.h5") as file:
            print(int(file["a"][:100].sum()), int(file["a"][150].sum()), file["a"].attrs["unit"])
    """
    assert program(code) == "4999950000 7000 m"


def test_git(places: tuple[Path, Path]) -> None:
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    settings = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "PATH": os.environ["PATH"]}
    settings |= {f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    with served(*places) as server:
        one, two = server.point / "one", server.point / "two"
        ran("git", "init", "-q", "-b", "main", one, env=settings)
        for number in range(60):
            folder = one / f"d{number % 7}"
            folder.mkdir(exist_ok=True)
            (folder / f"{number}.txt").write_text(f"{number}\n" * number)
        (one / "link").symlink_to("d1/1.txt")
        (one / "run.sh").write_text("#!/bin/sh\necho ran\n")
        (one / "run.sh").chmod(0o755)
        ran("git", "add", "-A", cwd=one, env=settings)
        ran("git", "commit", "-q", "-m", "first", cwd=one, env=settings)
        ran("git", "mv", "d1", "moved", cwd=one, env=settings)
        ran("git", "commit", "-q", "-m", "second", cwd=one, env=settings)
        ran("git", "gc", "-q", cwd=one, env=settings)
        ran("git", "clone", "-q", one, two, env=settings)
        assert ran("git", "status", "--porcelain", cwd=two, env=settings) == ""
    with served(*places) as server:
        two = server.point / "two"
        ran("git", "fsck", "--strict", cwd=two, env=settings)
        assert ran("git", "status", "--porcelain", cwd=two, env=settings) == ""
        assert ran("git", "log", "--format=%s", cwd=two, env=settings).split() == ["second", "first"]
        assert ran(two / "run.sh") == "ran\n"
        assert (two / "link").readlink() == Path("d1/1.txt")


def test_pip_installs_into_it(point: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as made:
        made.writestr("tiny/__init__.py", "def answer():\n    return 42\n")
        made.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        made.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        made.writestr("tiny-1.0.dist-info/RECORD", "tiny/__init__.py,,\n")
    target = point / "packages"
    ran(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", target, wheel)
    code = "import tiny; print(tiny.answer(), tiny.__file__)"
    said = ran(sys.executable, "-c", code, env={"PYTHONPATH": str(target)})
    assert said.split() == ["42", str(target / "tiny" / "__init__.py")]
    assert any((target / "tiny").rglob("*.pyc"))


def test_torch(program: Callable[..., str]) -> None:
    pytest.importorskip("torch")
    said = program("""
        import torch, torch.distributed.checkpoint as dcp
        state = {"w": torch.arange(500_000, dtype=torch.float32), "step": torch.tensor(7)}
        torch.save(state, "plain.pt")
        loaded = torch.load("plain.pt", mmap=True)
        assert torch.equal(loaded["w"], state["w"])
        for attempt in range(2):
            dcp.save(state, checkpoint_id="sharded", no_dist=True)
        empty = {"w": torch.zeros(500_000), "step": torch.tensor(0)}
        dcp.load(empty, checkpoint_id="sharded", no_dist=True)
        assert torch.equal(empty["w"], state["w"])
        print(int(empty["step"]))
    """)
    assert said.splitlines()[-1] == "7"


def test_maps_are_shared_and_written_back(program: Callable[..., str], server: Server) -> None:
    said = program("""
        import mmap, os
        fd = os.open("f", os.O_RDWR | os.O_CREAT)
        os.ftruncate(fd, 1 << 20)
        one, two = mmap.mmap(fd, 0), mmap.mmap(fd, 0)
        one[70_000:70_005] = b"hello"
        assert two[70_000:70_005] == b"hello"
        assert os.pread(fd, 5, 70_000) == b"hello"
        os.pwrite(fd, b"J", 70_000)
        assert one[70_000:70_005] == b"Jello"
        private = mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE)
        private[70_000:70_001] = b"X"
        assert two[70_000:70_005] == b"Jello"
        os.close(fd)
        one[0:3] = b"end"  # nobody syncs this
        print("done")
    """)
    assert said == "done"
    content = (server.point / "f").read_bytes()
    assert (content[:3], content[70_000:70_005], len(content)) == (b"end", b"Jello", 1 << 20)


def test_replacing_by_rename_is_what_editors_and_checkpoints_do(program: Callable[..., str]) -> None:
    said = program("""
        import os
        for number in range(50):
            with open("state.tmp", "wb") as file:
                file.write(bytes([number]) * 100_000)
                file.flush()
                os.fsync(file.fileno())
            os.replace("state.tmp", "state")
            assert open("state", "rb").read() == bytes([number]) * 100_000
        print(os.listdir())
    """)
    assert said == "['state']"
