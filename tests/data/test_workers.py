"""PyTorch's DataLoader with and without workers, forked and spawned, and forks while threads read."""

import os
import threading

import numpy as np
import pytest

from strongroom.data import SealedDataset, collate, seal_arrays
from strongroom.errors import RollbackError
from strongroom.sealed import NO_FRESHNESS, open_sealed
from tests.data import world

torch = pytest.importorskip("torch")
DataLoader = torch.utils.data.DataLoader

VALUES = world.arrays()
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


@pytest.fixture
def path(tmp_path):
    seal_arrays(tmp_path / "d", VALUES, key=world.KEY, anchor=NO_FRESHNESS, block_size=world.BLOCK)
    return tmp_path / "d"


def opened(path, **options) -> SealedDataset:
    return SealedDataset(path, key=world.KEY, anchor=NO_FRESHNESS, **options)


def check(loader) -> None:
    """Every record comes once, whole."""
    batches = list(loader)
    x, y = torch.cat([x for x, _ in batches]).numpy(), torch.cat([y for _, y in batches]).numpy()
    numbers = {row.tobytes(): number for number, row in enumerate(VALUES["x"])}
    found = [numbers[row.tobytes()] for row in x]
    assert sorted(found) == list(range(300))
    assert np.array_equal(y, VALUES["y"][found])


@pytest.mark.parametrize("collate_fn", [collate, None], ids=["ours", "default"])
@pytest.mark.parametrize("cache", [0, 50_000, 1 << 20])
def test_loader_in_this_process(path, collate_fn, cache):
    with opened(path, cache=cache) as dataset:
        check(DataLoader(dataset, batch_size=32, shuffle=True, collate_fn=collate_fn))


def test_tensors_are_not_copied(path):
    with opened(path) as dataset:
        batch = dataset.__getitems__([1, 2, 3])
        x, y = collate(batch)
        assert x.data_ptr() == batch.arrays[0].ctypes.data
        assert (x.dtype, y.dtype, x.shape) == (torch.float32, torch.int64, (3, 5, 17))
    with opened(path, fields=["y"]) as labels:
        assert torch.equal(collate(labels.__getitems__([5])), torch.tensor(VALUES["y"][[5]]))


@needs_fork
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("cache", [50_000, 1 << 20])
def test_forked_workers(path, persistent, cache):
    with opened(path, cache=cache) as dataset:
        loader = DataLoader(
            dataset,
            batch_size=32,
            shuffle=True,
            collate_fn=collate,
            num_workers=2,
            persistent_workers=persistent,
            multiprocessing_context="fork",
        )
        check(loader)
        check(loader)
        if cache > 100_000:  # what the workers have decrypted is here too
            assert dataset.cached > 100_000
        assert dataset.cached <= cache
        del loader


def test_spawned_worker_opens_the_file_itself(path):
    with opened(path, transform=_negated) as dataset:
        sampler = dataset.batch_sampler(64, seed=4)
        loader = DataLoader(dataset, batch_sampler=sampler, num_workers=1, multiprocessing_context="spawn")
        found = torch.cat([y for _, y in loader])
        assert torch.equal(found, torch.tensor([-VALUES["y"][i] for i in np.concatenate(list(sampler))]))


def _negated(sample):
    return sample[0], -sample[1]


def test_state_for_a_spawned_worker_pins_the_version(path, monkeypatch):
    monkeypatch.setattr("multiprocessing.context.get_spawning_popen", lambda: object())
    dataset = opened(path)
    state = dataset.__getstate__()
    dataset.close()
    again = SealedDataset.__new__(SealedDataset)
    again.__setstate__(dict(state))
    assert again[7][1] == VALUES["y"][7]
    again.close()
    with open_sealed(path, "w", key=world.KEY, anchor=NO_FRESHNESS) as file:
        seal_arrays(file, world.arrays(count=4))
    with pytest.raises(RollbackError):
        SealedDataset.__new__(SealedDataset).__setstate__(dict(state))
    with (
        open_sealed(path, "r", key=world.KEY, anchor=NO_FRESHNESS) as file,
        pytest.raises(TypeError, match="an open file, which a spawned worker cannot get"),
    ):
        SealedDataset(file).__getstate__()


def test_order_of_a_loader_is_that_of_batches(path):
    with opened(path) as dataset:
        sampler = dataset.batch_sampler(64, seed=9, window=100, start=2)
        loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate)
        wanted = dataset.batches(64, seed=9, window=100, start=2)
        for (_, y), (_, y_wanted) in zip(loader, wanted, strict=True):
            assert np.array_equal(y.numpy(), y_wanted)


@needs_fork
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("kind", ["seal_arrays", "npz compressed", "parquet"])
def test_fork_while_threads_read(kind):
    dataset = SealedDataset(world.sealed(world.encode(kind, VALUES)), fields=["x", "y"], cache=200_000)
    stop = threading.Event()

    def read() -> None:
        order = np.random.default_rng(threading.get_ident())
        while not stop.is_set():
            chosen = order.integers(0, 300, 8)
            assert np.array_equal(dataset.__getitems__(chosen).arrays[1], VALUES["y"][chosen])

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            child = os.fork()
            if child == 0:
                good = all(np.array_equal(dataset[i][0], VALUES["x"][i]) for i in range(0, 300, 20))
                os._exit(0 if good else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_threads_read_together(path):
    failures = []
    with opened(path, cache=60_000) as dataset:

        def read(seed: int) -> None:
            for epoch in range(3):
                for x, y in dataset.batches(16, seed=seed, epoch=epoch):
                    rows = [np.flatnonzero((VALUES["x"] == row).all(axis=(1, 2)))[0] for row in x[:2]]
                    if not np.array_equal(VALUES["y"][rows], y[:2]):
                        failures.append(rows)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
