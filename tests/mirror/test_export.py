"""Export to safetensors: read back by the safetensors package, and whole or not at all."""

import json
import os
import stat
import struct

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from strongroom import mirror
from strongroom.errors import TamperedError, UsageError
from strongroom.mirror import Array, export
from strongroom.mirror.export import TYPES, arrays_of, type_of
from strongroom.sealed import MemoryAnchor
from strongroom.sealed.layout import SLOTS_SIZE
from strongroom.storage import MemoryDirectory

KEY = bytes(range(32))
BLOCK = 4096
PLAIN = [dtype for dtype in TYPES if dtype[0] in "<|"]


def committed(state):
    """A mirror that holds one commit, open."""
    opened = mirror.open(MemoryDirectory(), key=KEY, anchor=MemoryAnchor(), block_size=BLOCK, clock=lambda: 0)
    opened.commit(7, state)
    return opened


def exported(state, path, **options):
    with committed(state) as opened:
        restored = opened.restore()
        return export.export(restored, path, **options), restored


def header_of(path):
    data = path.read_bytes()
    (size,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + size]), data[8 + size :]


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.safetensors"


def test_every_type_of_numpy(out):
    rng = np.random.default_rng(1)
    state = {
        dtype: (rng.integers(0, 2, 999 * np.dtype(dtype).itemsize, np.uint8)).view(dtype).reshape(37, 27)
        for dtype in PLAIN
    }
    done, _ = exported({"all": state}, out)
    found = load_file(out)
    assert {name.removeprefix("all/") for name in found} == set(PLAIN)
    for dtype, array in state.items():
        assert found[f"all/{dtype}"].dtype == array.dtype
        assert found[f"all/{dtype}"].tobytes() == array.tobytes()
        assert found[f"all/{dtype}"].shape == (37, 27)
    assert done.size == out.stat().st_size
    assert done.names == {name: name for name in found}
    assert not done.left_out


def test_types_that_numpy_lacks(out):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file as load_tensors

    from strongroom.mirror.torch import to_array

    names = ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
    state = {name: torch.linspace(-3, 3, 5000).to(getattr(torch, name)).reshape(50, 100) for name in names}
    exported({"model": {name: to_array(tensor) for name, tensor in state.items()}}, out, part="model")
    found = load_tensors(out)
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8))


def test_shapes_and_orders(out):
    base = np.arange(6000, dtype=np.float32).reshape(60, 100)
    state = {
        "scalar": np.array(2.5),
        "number": np.float32(1.5),
        "empty": np.empty((0, 3), np.int64),
        "fortran": np.asfortranarray(base),
        "strided": base[::2, ::3],
        "big": base.astype(">f4"),
        "complex": (base + 2j * base).astype(">c8"),
        "one byte": np.array([True, False, True]),
    }
    exported(state, out)
    found = load_file(out)
    for name, array in state.items():
        assert np.array_equal(found[name], array), name
        assert found[name].shape == array.shape
    # Each tensor lies where its elements are aligned, so that readers can map it.
    header, _ = header_of(out)
    del header["__metadata__"]
    for name, one in header.items():
        assert one["data_offsets"][0] % np.asarray(state[name]).dtype.itemsize == 0
    assert (out.stat().st_size - sum(np.asarray(a).nbytes for a in state.values())) % 8 == 0


def test_the_metadata_name_the_commit(out):
    _, restored = exported({"w": np.ones(3)}, out)
    with safe_open(out, "numpy") as file:
        assert file.metadata() == {"step": "7", "root": str(restored.root)}


def test_parts(out):
    state = {
        "model": {"encoder": {"w": np.zeros(1)}, "encoder2": {"w": np.ones(1)}},
        "parts": {"net": {"w": np.full(1, 2.0)}, "model": {"w": np.full(1, 3.0)}},
        "step": 3,
    }
    with committed(state) as opened:
        restored = opened.restore()
        assert list(arrays_of(restored)) == [
            "model/encoder/w", "model/encoder2/w", "parts/net/w", "parts/model/w"
        ]  # fmt: skip
        assert list(arrays_of(restored, "model")) == ["encoder/w", "encoder2/w"]
        assert list(arrays_of(restored, "model/encoder/")) == ["w"]
        assert [entry.name for entry in arrays_of(restored, "net").values()] == ["parts/net/w"]
        assert list(arrays_of(restored, "model/encoder/w")) == ["w"]
        for part in ("step", "mod", "nothing"):
            with pytest.raises(UsageError, match=f"part: {part} has no arrays") as caught:
                export.export(restored, out, part=part)
            assert caught.value.hint == "there are: model, net"
    with committed({"step": 3}) as opened, pytest.raises(UsageError, match="the state has no arrays"):
        export.export(opened.restore(), out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.ones(2, np.complex128), "<c16"),
        (np.array(["a"]), "<U1"),
        (np.array([b"a"]), r"\|S1"),
        (np.array([0], "M8[s]"), r"<M8\[s\]"),
        (np.array([0], "m8[s]"), r"<m8\[s\]"),
    ],
)
def test_what_safetensors_lacks_is_refused_by_name_or_left_out(out, array, dtype):
    state = {"a": np.ones(1), "part": {"odd": array}}
    with pytest.raises(UsageError, match=f"array part/odd: of type {dtype}, which safetensors lacks"):
        exported(state, out)
    assert not list(out.parent.iterdir())
    done, _ = exported(state, out, skip=True)
    assert list(done.left_out) == ["part/odd"]
    assert list(load_file(out)) == ["a"]
    with pytest.raises(UsageError, match="none of its 1 arrays"):
        exported(state, out, part="part", skip=True, overwrite=True)
    assert list(load_file(out)) == ["a"]


def test_names_that_safetensors_lacks(out):
    state = {"a": np.ones(1), "__metadata__": np.ones(1), "x\ud800": np.ones(1), 'größe/"\\\n': np.ones(1)}
    done, _ = exported(state, out, skip=True)
    assert set(done.left_out) == {"__metadata__", "x\ud800"}
    assert set(load_file(out)) == {"a", 'größe/"\\\n'}


def test_a_header_that_is_too_long(out, monkeypatch):
    monkeypatch.setattr(export, "MAX_HEADER", 100)
    with pytest.raises(UsageError, match=r"header: [0-9]+ bytes for 9 arrays, wanted at most 100"):
        exported({f"{i}": np.ones(1) for i in range(9)}, out)
    assert not list(out.parent.iterdir())


def test_only_its_owner_can_read_it(out):
    before = os.umask(0)
    try:
        exported({"w": np.ones(3)}, out)
    finally:
        os.umask(before)
    assert stat.S_IMODE(out.stat().st_mode) == 0o600


def test_a_file_that_is_there_stays_unless_one_says_so(out, tmp_path):
    out.write_text("mine")
    with pytest.raises(FileExistsError):
        exported({"w": np.ones(3)}, out)
    assert out.read_text() == "mine"
    exported({"w": np.ones(3)}, out, overwrite=True)
    assert list(load_file(out)) == ["w"]
    out.unlink()
    out.symlink_to(tmp_path / "elsewhere")  # a link that leads nowhere is there too
    with pytest.raises(FileExistsError):
        exported({"w": np.ones(3)}, out)
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_that_comes_up_meanwhile_stays(out, monkeypatch):
    real = export._content

    def slow(restored, entry):
        out.write_text("mine")
        return real(restored, entry)

    monkeypatch.setattr(export, "_content", slow)
    with pytest.raises(FileExistsError):
        exported({"w": np.ones(3)}, out)
    assert out.read_text() == "mine"
    assert list(out.parent.iterdir()) == [out]


def test_without_hard_links(out, monkeypatch):
    def refuse(*names):
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    exported({"w": np.ones(3)}, out)
    assert list(load_file(out)) == ["w"]
    assert list(out.parent.iterdir()) == [out]


def test_nothing_is_left_after_a_failure(out, monkeypatch):
    def fail(descriptor):
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        exported({"w": np.ones(3)}, out)
    assert not list(out.parent.iterdir())


def test_a_damaged_block_is_no_file(out, tmp_path):
    anchor = MemoryAnchor()
    directory = MemoryDirectory()
    with mirror.open(directory, key=KEY, anchor=anchor, block_size=BLOCK) as opened:
        opened.commit(1, {"a": np.ones(10), "b": np.ones(5000)})
    directory.files["mirror"].data[SLOTS_SIZE + BLOCK + 5] ^= 1
    with mirror.open(directory, key=KEY, anchor=anchor) as opened, pytest.raises(TamperedError):
        export.export(opened.restore(), out)
    assert not list(out.parent.iterdir())


def test_types_by_name():
    assert (type_of(">f4"), type_of("<f4"), type_of("|b1")) == ("F32", "F32", "BOOL")
    assert type_of("<f16") is None
    assert Array("x", "bfloat16", (1,), b"ab").dtype in TYPES
