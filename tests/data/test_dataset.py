"""Random access through a bounded cache, batches, faces, and what happens when the disk lies."""

import pickle
import sys

import numpy as np
import pytest

from strongroom import vault
from strongroom.data import Batch, SealedDataset, collate, seal_arrays
from strongroom.data.buffers import Buffers
from strongroom.errors import (
    FormatError,
    IntegrityError,
    MissingDependencyError,
    RollbackError,
    TamperedError,
    UsageError,
    WrongKeyError,
)
from strongroom.sealed import NO_FRESHNESS, FileAnchor, PinnedAnchor, Root, open_sealed
from tests.data import world

BLOCK = world.BLOCK


class Counting:
    """A sealed file that counts what is read of it."""

    def __init__(self, content: bytes, block_size: int = BLOCK) -> None:
        self._file = world.sealed(content, block_size)
        self.length, self.block_size, self.name = self._file.length, block_size, "counted"
        self.reads: list[tuple[int, int]] = []

    def read_at(self, offset, buffer):
        self.reads.append((offset, memoryview(buffer).nbytes))
        return self._file.read_at(offset, buffer)


# Records that are smaller than a block, straddle blocks, are a block, and are larger; offsets that are not aligned.
@pytest.mark.parametrize("row", [1, 7, 784, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 100])
@pytest.mark.parametrize("cache", [0, 3 * BLOCK, 20 * BLOCK, 100 * BLOCK, 1 << 30])
@pytest.mark.parametrize("kind", ["npy", "seal_arrays"])
def test_random_access_equals_numpy(row, cache, kind):
    generator = np.random.default_rng(row)
    count = max(20, 60 * BLOCK // row) if row > 1 else 200_000
    value = generator.integers(0, 256, (count, row), np.uint8)
    with SealedDataset(world.sealed(world.encode(kind, {"x": value})), cache=cache) as dataset:
        for _ in range(30):
            chosen = generator.integers(0, count, 17)
            assert np.array_equal(dataset.__getitems__(chosen).arrays[0], value[chosen])
            assert dataset.cached <= cache
        for start in (0, count // 3):  # neighbours are read together
            chosen = range(start, min(count, start + 40))
            assert np.array_equal(dataset.__getitems__(chosen).arrays[0], value[start : start + 40])
        assert np.array_equal(np.concatenate(list(dataset.batches(13, shuffle=False))), value)
        assert dataset.cached <= cache
        dataset.preload()
        assert dataset.cached <= cache
        assert np.array_equal(dataset.__getitems__(range(count)).arrays[0], value)


def test_each_block_is_decrypted_once_if_all_fit():
    value = np.arange(100 * BLOCK, dtype=np.uint8).reshape(-1, 128)
    file = Counting(world.encode("seal_arrays", {"x": value}))
    dataset = SealedDataset(file)
    file.reads.clear()
    for epoch in range(3):
        for _ in dataset.batches(50, epoch=epoch):
            pass
    assert sum(size for _, size in file.reads) == 100 * BLOCK
    assert all(offset % BLOCK == 0 for offset, _ in file.reads)
    assert dataset.cached == 100 * BLOCK


def test_labels_stay_in_the_cache():
    values = {"x": np.zeros((1000, BLOCK), np.uint8), "y": np.arange(1000, dtype=np.uint8)}
    file = Counting(world.encode("seal_arrays", values))
    dataset = SealedDataset(file, cache=20 * BLOCK)
    for _ in dataset.batches(10):
        pass
    labels_at = file.length - 1000
    assert sum(offset + size > labels_at for offset, size in file.reads) <= 2  # and the header's, if they meet


def test_held_blocks_are_hit_as_often_as_they_are_part_of_the_file():
    value = np.zeros((400, BLOCK), np.uint8)
    file = Counting(world.encode("seal_arrays", {"x": value}))
    dataset = SealedDataset(file, cache=200 * BLOCK)
    dataset.preload()
    for epoch in range(4):
        file.reads.clear()
        for _ in dataset.batches(20, epoch=epoch):
            pass
        assert sum(size for _, size in file.reads) == 250 * BLOCK  # three quarters of 200 are held


def test_windowed_epoch_reads_each_block_about_once():
    value = np.zeros((50_000, 64), np.uint8)  # 64 records in a block, 1024 in a chunk
    file = Counting(world.encode("seal_arrays", {"x": value}))
    dataset = SealedDataset(file, cache=400 * BLOCK)
    file.reads.clear()
    for _ in dataset.batches(32, window=100 * 64):
        pass
    windowed = sum(size for _, size in file.reads)
    assert value.nbytes <= windowed <= 1.1 * value.nbytes
    file.reads.clear()
    for _ in dataset.batches(32):
        pass
    assert sum(size for _, size in file.reads) > 3 * windowed


def test_numpy_face():
    values = world.arrays()
    dataset = SealedDataset(world.sealed(world.encode("seal_arrays", values)))
    first = list(dataset.batches(64, seed=5, epoch=1))
    assert [len(y) for _, y in first] == [64, 64, 64, 64, 44]
    assert sorted(np.concatenate([y for _, y in first])) == sorted(values["y"])
    again = list(dataset.batches(64, seed=5, epoch=1, start=2))
    assert all(np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1]) for a, b in zip(first[2:], again, strict=True))
    assert [len(y) for _, y in dataset.batches(64, drop_last=True)] == [64] * 4
    assert not np.array_equal(first[0][1], next(dataset.batches(64, seed=5, epoch=2))[1])
    assert np.array_equal(next(dataset.batches(7, shuffle=False))[0], values["x"][:7])
    assert np.array_equal(np.stack([x for x, _ in dataset]), values["x"])


def test_transform_is_called_with_each_sample():
    values = world.arrays(count=10)
    file = world.sealed(world.encode("seal_arrays", values))
    dataset = SealedDataset(file, transform=lambda sample: (sample[0].sum(), sample[1] * 2))
    assert dataset[3][1] == values["y"][3] * 2
    assert [sample[1] for sample in dataset.__getitems__([4, 5])] == (values["y"][4:6] * 2).tolist()
    (sums, doubled) = next(dataset.batches(10, shuffle=False))
    assert np.array_equal(doubled, values["y"] * 2) and sums.shape == (10,)


def test_indices():
    dataset = SealedDataset(world.sealed(world.encode("seal_arrays", world.arrays(count=10))))
    for index in (10, -11):
        with pytest.raises(IndexError, match="wanted 0 to 9"):
            dataset[index]
    with pytest.raises(TypeError, match="wanted a list of integers"):
        dataset.__getitems__([1.5])
    assert len(dataset.__getitems__([])) == 0
    assert len(dataset.__getitems__(np.array([1, 2], np.uint8))) == 2
    assert dataset.__getitems__(iter([1, 2]))[1][1] == dataset[2][1]


def test_a_batch_is_a_sequence_of_samples():
    batch = Batch((np.arange(6).reshape(3, 2), np.arange(3)), single=False)
    assert len(batch) == 3 and [sample[1] for sample in batch] == [0, 1, 2]
    assert batch[1][0].tolist() == [2, 3] and batch[-1][1] == 2
    assert [sample[1] for sample in batch[1:]] == [1, 2]
    assert list(Batch((np.arange(3),), single=True)) == [0, 1, 2]


def test_collate_without_torch(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    arrays = (np.zeros((3, 2)), np.arange(3))
    assert collate(Batch(arrays, single=False)) == arrays
    assert collate([(1, 2.0), (3, 4.0)])[1].tolist() == [2.0, 4.0]
    assert collate([1, 2]).tolist() == [1, 2]


def test_memory_of_a_batch_is_used_again_only_when_nobody_holds_it():
    buffers = Buffers()
    first = buffers.take(1 << 20)
    address = first.ctypes.data
    view = first[5:].view(np.uint8)[3:]
    del first
    assert buffers.take(1 << 20).ctypes.data != address
    del view
    assert buffers.take(1 << 20).ctypes.data == address
    held = [buffers.take(1 << 20) for _ in range(6)]
    assert len({array.ctypes.data for array in held}) == 6


def test_a_batch_that_is_kept_never_changes():
    value = np.random.default_rng(1).integers(0, 256, (64, 100_000), np.uint8)
    dataset = SealedDataset(world.sealed(world.encode("seal_arrays", {"x": value}), 1 << 16))
    kept = [(batch, batch.copy()) for batch in dataset.batches(8)]
    assert all(np.array_equal(batch, copy) for batch, copy in kept)


def test_tf_face_needs_tensorflow(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    content = world.encode("seal_arrays", world.arrays())
    with pytest.raises(MissingDependencyError, match="needs TensorFlow"):
        SealedDataset(world.sealed(content)).to_tf(10)
    with pytest.raises(UsageError, match="of a data set with a transform"):
        SealedDataset(world.sealed(content), transform=len).to_tf(10)


def test_tf_face():
    pytest.importorskip("tensorflow")
    values = world.arrays()
    dataset = SealedDataset(world.sealed(world.encode("seal_arrays", values)))
    face = dataset.to_tf(64, seed=3)
    for epoch in range(2):
        wanted = list(dataset.batches(64, seed=3, epoch=epoch))
        for (x, y), (x_wanted, y_wanted) in zip(face, wanted, strict=True):
            assert np.array_equal(x.numpy(), x_wanted) and np.array_equal(y.numpy(), y_wanted)
    assert int(face.cardinality()) == len(wanted) == 5
    single = SealedDataset(world.sealed(world.encode("seal_arrays", values)), fields=["y"]).to_tf(70, drop_last=True)
    assert single.element_spec.shape == (70,)
    assert int(single.cardinality()) == len(list(single)) == 4


def test_keras_has_its_fill_in_each_epoch():
    keras = pytest.importorskip("tensorflow").keras
    dataset = SealedDataset(world.sealed(world.encode("seal_arrays", world.arrays())))
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(dataset.to_tf(64), epochs=3, verbose=0, shuffle=False)  # a warning is an error
    assert int(model.optimizer.iterations) == 15


# Keys, anchors, and a disk that lies.


def test_a_file_of_a_vault_and_the_vault_itself(tmp_path):
    place, content = tmp_path / "a.vault", world.encode("npy", {"x": np.arange(10)})
    how = {"key": world.KEY, "anchor": NO_FRESHNESS}
    with vault.open(place, "x", **how) as made, made.open("x.npy", "wb") as file:
        file.write(content)
    for given in (how, {}):
        with pytest.raises(UsageError, match=r"a\.vault: a directory, wanted the path of a sealed file") as refused:
            SealedDataset(place, **given)
        assert "vault.open(directory, ...).open(name)" in str(refused.value.hint)
    with vault.open(place, "r", **how) as opened, opened.open("x.npy") as file:
        assert list(SealedDataset(file)) == list(range(10))


def test_arguments():
    with pytest.raises(UsageError, match="a path without key or anchor"):
        SealedDataset("nowhere", key=world.KEY)
    with pytest.raises(UsageError, match="source: BytesIO, wanted a path"):
        import io

        SealedDataset(io.BytesIO())
    with pytest.raises(UsageError, match="key: a str, wanted 32 bytes") as refused:
        SealedDataset("nowhere", key="data.key", anchor=NO_FRESHNESS)
    assert "load_key" in str(refused.value.hint)
    with pytest.raises(UsageError, match="anchor: a str, wanted an anchor") as refused:
        SealedDataset("nowhere", key=world.KEY, anchor="data.anchor")
    assert "FileAnchor" in str(refused.value.hint)
    with pytest.raises(UsageError, match="one for several files"):
        SealedDataset({"a": "a"}, key=world.KEY, anchor=PinnedAnchor(Root(1, bytes(32))))
    with pytest.raises(UsageError, match="names no file"):
        SealedDataset({})
    with pytest.raises(UsageError, match="cache: -1"):
        SealedDataset(world.sealed(world.encode("npy", {"x": np.zeros(3)})), cache=-1)
    dataset = SealedDataset(world.sealed(world.encode("npy", {"x": np.zeros(3)})))
    for wrong in ({"size": 0}, {"size": 1, "start": -1}, {"size": 1, "epoch": -1}, {"size": 1, "window": 0}):
        with pytest.raises(UsageError):
            dataset.batches(**wrong)


def test_wrong_key_and_old_version(tmp_path):
    anchor = FileAnchor(tmp_path / "anchor")
    path = tmp_path / "d"
    seal_arrays(path, world.arrays(), key=world.KEY, anchor=anchor)
    old = path.read_bytes()
    with open_sealed(path, "w", key=world.KEY, anchor=anchor) as file:
        seal_arrays(file, world.arrays())
    with SealedDataset(path, key=world.KEY, anchor=anchor) as dataset:
        assert len(dataset) == 300
    with pytest.raises(WrongKeyError, match=str(path)):
        SealedDataset(path, key=bytes(32), anchor=anchor)
    path.write_bytes(old)
    with pytest.raises(RollbackError, match=str(path)):
        SealedDataset(path, key=world.KEY, anchor=anchor)
    with pytest.raises(RollbackError, match=str(path)):
        SealedDataset({"d": path}, key=world.KEY, anchor={"d": anchor})


@pytest.mark.parametrize("cache", [0, 30 * BLOCK, 1 << 30])
def test_a_tampered_block_is_refused_and_the_file_named(tmp_path, cache):
    value = np.random.default_rng(1).integers(0, 256, (1000, 256), np.uint8)
    path = tmp_path / "d"
    seal_arrays(path, {"x": value}, key=world.KEY, anchor=NO_FRESHNESS, block_size=BLOCK)
    raw = bytearray(path.read_bytes())
    raw[30 * BLOCK + 5] ^= 1
    path.write_bytes(raw)
    refused = 0
    with SealedDataset(path, key=world.KEY, anchor=NO_FRESHNESS, cache=cache) as dataset:
        for _ in range(2):  # nothing of a refused block is kept
            for record in range(1000):
                try:
                    assert np.array_equal(dataset[record], value[record])
                except TamperedError as error:
                    assert str(path) in error.message
                    refused += 1
    assert refused == 2 * BLOCK // 256


def test_a_file_that_ends_too_early_is_refused():
    file = Counting(world.encode("npy", {"x": np.arange(10_000)}))
    dataset = SealedDataset(file)
    file.read_at = lambda offset, buffer: 3
    with pytest.raises(FormatError, match="counted: 3 bytes at offset 0, wanted"):
        dataset[0]


def test_pickling_would_write_the_key_down(tmp_path):
    path = world.sealed_at(tmp_path / "d", world.encode("npy", {"x": np.arange(10)}))
    with SealedDataset(path, key=world.KEY, anchor=NO_FRESHNESS) as dataset:
        with pytest.raises(TypeError, match="would write its key down"):
            pickle.dumps(dataset)
        assert "key" not in repr(dataset)


def test_closes_what_it_opened_and_nothing_else(tmp_path):
    content = world.encode("npy", {"x": np.arange(10)})
    path = world.sealed_at(tmp_path / "d", content)
    file = world.sealed(content)
    SealedDataset(file).close()
    assert not file.closed
    dataset = SealedDataset({"a": path, "b": file}, key=world.KEY, anchor=NO_FRESHNESS)
    dataset.close()
    dataset.close()
    assert not file.closed
    with open_sealed(path, "r+", key=world.KEY, anchor=NO_FRESHNESS):
        pass  # no lock is left, after a failed opening neither
    bad = world.sealed_at(tmp_path / "bad", b"nothing")
    with pytest.raises(FormatError):
        SealedDataset({"a": path, "bad": bad}, key=world.KEY, anchor=NO_FRESHNESS)
    for each in (path, bad):
        with open_sealed(each, "r+", key=world.KEY, anchor=NO_FRESHNESS):
            pass
    assert issubclass(TamperedError, IntegrityError)
