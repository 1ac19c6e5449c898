"""Files in persistent memory: what is flushed, in which order, and what a power cut leaves; with libpmem itself too."""

import contextlib
import ctypes
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="DAX file systems are Linux's")

from strongroom import mirror  # noqa: E402
from strongroom.mirror import region  # noqa: E402
from strongroom.sealed import NO_FRESHNESS, open_sealed  # noqa: E402
from strongroom.storage import MemoryDirectory  # noqa: E402
from strongroom.storage.pmem import PmemStorage, find_libpmem  # noqa: E402

ROOT = Path(__file__).parent.parent.parent
KEY = bytes(range(32))
LINE = 64  # bytes of a line of the processor's caches


class Caches:
    """Persistent memory behind a processor's caches: lines that were flushed are durable after the next drain."""

    def __init__(self, *, pmem: bool = True) -> None:
        self.pmem = pmem
        self.said: list[str] = []
        self.flushed: list[tuple[int, bytes]] = []  # address, content as it was then
        self.mapped = (0, 0)
        self.durable: dict[int, bytes] = {}  # by offset
        self.drains = 0
        self.looking: Callable[[], None] = lambda: None  # before each flush and drain

    def is_pmem(self, address: int, size: int) -> bool:
        self.mapped = address, size
        return self.pmem

    def flush(self, address: int, size: int) -> None:
        self.looking()
        base, length = self.mapped
        assert base <= address and address + size <= base + length
        first = (address - base) // LINE * LINE
        for at in range(first, address - base + size, LINE):
            self.flushed.append((at, ctypes.string_at(base + at, min(LINE, length - at))))
        self.said.append(f"flush {address - base} {size}")

    def drain(self) -> None:
        self.looking()
        self.durable.update(self.flushed)
        self.flushed.clear()
        self.drains += 1
        self.said.append("drain")


def test_what_was_written_is_flushed_and_then_drained(tmp_path, monkeypatch):
    caches = Caches()
    file = PmemStorage(tmp_path / "f", "x", flusher=caches)
    monkeypatch.setattr(file._file, "sync", lambda: caches.said.append("fdatasync"))
    with contextlib.closing(file):
        assert file.means == "libpmem" and file.size() == 0
        file.write_at(0, bytes(20000))
        file.sync()
        assert caches.said == ["flush 0 20000", "drain", "fdatasync"]  # it grew
        caches.said.clear()
        for at in (8192, 4096, 100, 200, 12288):
            file.write_at(at, b"x" * (4096 if at >= 4096 else 100))
        caches.said.append("sync")
        file.sync()
        assert caches.said == ["sync", "flush 100 200", "flush 4096 12288", "drain"]
        caches.said.clear()
        file.sync()
        assert caches.said == ["drain"]
        file.write_at(19990, b"y" * 10)
        file.resize(15000)  # what lay behind is gone
        file.write_at(14990, b"z" * 20)
        caches.said.clear()
        file.sync()
        assert caches.said == ["flush 14990 20", "drain", "fdatasync"]
    assert (tmp_path / "f").read_bytes()[-20:] == b"z" * 20


@pytest.mark.parametrize("flusher", [None, Caches(pmem=False)], ids=["without libpmem", "on a disk"])
def test_what_is_no_persistent_memory_is_written_back(tmp_path, flusher):
    with contextlib.closing(PmemStorage(tmp_path / "f", "x", flusher=flusher)) as file:
        assert file.means == "msync"
        file.write_at(0, b"some")
        file.sync()
    assert (tmp_path / "f").read_bytes() == b"some"
    if flusher is not None:
        assert flusher.said == []
    with contextlib.closing(PmemStorage(tmp_path / "f", "r", flusher=flusher)) as reader:
        with pytest.raises(TypeError):
            reader.write_at(0, b"no")
        buffer = bytearray(4)
        assert reader.read_into(0, buffer) == 4 and buffer == b"some"


def _after_power_cut(caches: Caches, path: Path, rng: random.Random) -> bytes:
    """The file with what was durable, and any lines of what came since: caches write back what they like."""
    now = path.read_bytes()
    left = bytearray(len(now))
    for at in range(0, len(now), LINE):
        line = caches.durable.get(at, bytes(LINE)) if rng.random() < 0.5 else now[at : at + LINE]
        left[at : at + LINE] = line[: len(now) - at]
    return bytes(left)


def test_a_power_cut_leaves_a_whole_commit(tmp_path, monkeypatch):
    caches, rng = Caches(), random.Random(5)  # noqa: S311  # not for secrets
    monkeypatch.setattr(region, "look", lambda path, durability: region.Region("dax", durability, "msync"))
    monkeypatch.setattr(region, "find_libpmem", lambda: caches)
    path, copy = tmp_path / "m", tmp_path / "copy"
    steps: list[int] = []

    def power_cut() -> None:
        for _ in range(4):
            copy.write_bytes(_after_power_cut(caches, path, rng))
            with mirror.read(copy, key=KEY, anchor=NO_FRESHNESS) as found:
                assert found["weights"] == bytes([found.step]) * 70000
                found.verify()
                steps.append(found.step)

    with mirror.open(path, key=KEY, anchor=NO_FRESHNESS, block_size=4096) as made:
        assert made.region.kind == "dax" and made.region.means == "libpmem"
        made.commit(1, {"weights": b"\1" * 70000})
        caches.looking = power_cut
        for step in range(2, 6):
            caches.drains = 0
            steps.clear()
            made.commit(step, {"weights": bytes([step]) * 70000})
            assert caches.drains == 2  # the blocks, then the slot
            assert len(steps) >= 16 and set(steps) <= {step - 1, step}
            power_cut()
            assert set(steps[-4:]) == {step}


PROGRAM = """
import pathlib, sys
from strongroom import mirror
from strongroom.mirror import region
from strongroom.sealed import NO_FRESHNESS

region._kind = lambda path: "dax"
path = pathlib.Path(sys.argv[1])
with mirror.open(path, key=bytes(32), anchor=NO_FRESHNESS) as made:
    restored = made.restore()
    assert (restored["text"] if restored else "") == "x" * 100000 * (made.step or 0)
    made.commit((made.step or 0) + 1, {"text": "x" * 100000 * ((made.step or 0) + 1)})
    print(made.region.means)
"""


@pytest.mark.skipif(find_libpmem() is None, reason="libpmem is not installed (apt-get install libpmem1)")
@pytest.mark.parametrize("forced", ["1", "0"])
def test_libpmem_itself(tmp_path, forced):
    """On an ordinary file: no machine here has persistent memory. Forced, libpmem takes it for such and flushes."""
    home = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else tmp_path
    path = home / f"strongroom-test-{os.getpid()}-{forced}"
    try:
        for _ in range(2):
            command = [sys.executable, "-c", PROGRAM, str(path)]
            environment = {**os.environ, "PMEM_IS_PMEM_FORCE": forced}
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr
            assert done.stdout.split() == ["libpmem" if forced == "1" else "msync"]
        with open_sealed(path, "r", key=bytes(32), anchor=NO_FRESHNESS) as file:
            file.verify()
    finally:
        path.unlink(missing_ok=True)


def test_other_directories_are_what_they_were(tmp_path):
    with mirror.open(MemoryDirectory(), key=KEY, anchor=NO_FRESHNESS) as made:
        assert made.region.means == "the storage's own"
    with mirror.open(tmp_path / "m", key=KEY, anchor=NO_FRESHNESS, durability="process") as made:
        assert made.region.means == "none"
