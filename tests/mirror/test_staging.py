"""Tensors of a GPU on their way into a mirror: nothing of a later step is in a commit, and memory is used again.

The GPU is a queue of work here, which does everything as late as it may; the last test needs a real one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")

from strongroom import mirror  # noqa: E402  # skipped without it
from strongroom.errors import UsageError  # noqa: E402
from strongroom.mirror.staging import Staging  # noqa: E402
from strongroom.mirror.torch import CONVERT, Training, commit_staged  # noqa: E402
from strongroom.sealed import NO_FRESHNESS  # noqa: E402
from strongroom.storage import MemoryDirectory  # noqa: E402

KEY = bytes(range(32))


class LazyGpu:
    """Tensors of more than one element lie on it. It copies them only when somebody waits for a copy.

    Its training's stream is one that `launch` gives work to.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._copies: list[Callable[[], None]] = []
        self._ordered = 0  # copies that the training's stream waits for
        self.memories = 0
        self.copied = 0

    def takes(self, tensor: torch.Tensor) -> bool:
        return tensor.numel() > 1

    def memory(self, size: int) -> torch.Tensor:
        self.memories += 1
        return torch.full((size,), 255, dtype=torch.uint8)

    def copy(self, tensor: torch.Tensor, target: torch.Tensor) -> None:
        def make() -> None:
            target.copy_(tensor.resolve_conj().contiguous().reshape(-1).view(torch.uint8))
            self.copied += 1

        self._copies.append(make)

    def finish(self) -> Callable[[], None]:
        self._ordered = last = len(self._copies)
        return lambda: self._make(last)

    def launch(self, work: Callable[[], object]) -> None:
        """What the training's stream does next: after the copies that it was told to wait for, but no others."""
        self._make(self._ordered)
        work()

    def _make(self, last: int) -> None:
        with self._lock:
            for at in range(last):
                self._copies[at]()
                self._copies[at] = lambda: None


def opened(directory: MemoryDirectory, **options: object) -> mirror.Mirror:
    return mirror.open(directory, key=KEY, anchor=NO_FRESHNESS, block_size=4096, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["synchronous", "overlapped"])
def test_nothing_of_a_later_step_is_in_a_commit(mode):
    gpu = LazyGpu()
    staging = Staging(gpu)
    state = {
        "big": torch.zeros(50, 70),
        "turned": torch.zeros(70, 50).t(),
        "small": torch.zeros(3),
        "half": torch.zeros(9, dtype=torch.bfloat16),
        "complex": torch.zeros(2000, dtype=torch.complex64).conj(),
        "here": torch.zeros(1),
        "empty": torch.zeros(0, 2),
    }
    with opened(MemoryDirectory(), mode=mode) as made:
        for step in range(1, 6):
            commit = commit_staged(made, step, {"state": state}, staging)
            for tensor in state.values():
                gpu.launch(lambda tensor=tensor: tensor.add_(1))
            commit.durable()
            restored = made.restore()
            assert restored is not None and restored.step == step
            found = restored.part("state", CONVERT)
            for name, tensor in state.items():
                assert torch.equal(found[name], (tensor - 1).resolve_conj()), name
    assert gpu.copied == 5 * 5


def test_memory_is_used_again_when_its_commit_is_decided(monkeypatch):
    gpu = LazyGpu()
    staging = Staging(gpu)
    state = {"state": [torch.zeros(5000), torch.zeros(2)]}
    with opened(MemoryDirectory()) as made:
        for step in range(1, 5):
            commit_staged(made, step, state, staging)
        assert gpu.memories == 2
        state["state"][1] = torch.zeros(4)
        commit_staged(made, 5, state, staging)
        assert gpu.memories == 3  # for what has another size
        del state["state"][1]
        commit_staged(made, 6, state, staging)
    gpu = LazyGpu()
    staging = Staging(gpu)
    may_seal = threading.Event()
    with opened(MemoryDirectory(), mode="overlapped") as made:
        seal = made._seal
        monkeypatch.setattr(made, "_seal", lambda *arguments: (may_seal.wait(), seal(*arguments))[1])
        first = commit_staged(made, 1, state, staging)
        held = staging.hold()
        assert not first.done and held is not staging._holds[0]
        may_seal.set()
        for step in range(2, 6):
            commit_staged(made, step, state, staging).durable()
        assert gpu.memories <= 2


def test_what_is_refused_leaves_the_training_and_the_memory_as_they_were():
    gpu = LazyGpu()
    staging = Staging(gpu)
    weights = torch.ones(100)
    with opened(MemoryDirectory()) as made:
        with pytest.raises(UsageError, match="state/sparse: a tensor of"):
            commit_staged(made, 1, {"state": {"w": weights, "sparse": torch.eye(3).to_sparse()}}, staging)
        gpu.launch(lambda: weights.add_(1))
        assert made.step is None
        commit_staged(made, 1, {"state": {"w": weights}}, staging)
        gpu.launch(lambda: weights.add_(1))
        restored = made.restore()
        assert restored is not None
        assert restored.part("state", CONVERT)["w"].tolist() == [2.0] * 100
    assert gpu.memories == 1


def test_the_program_does_not_wait_for_the_copies(monkeypatch):
    gpu = LazyGpu()
    staging = Staging(gpu)
    may_copy = threading.Event()
    make = gpu._make
    monkeypatch.setattr(gpu, "_make", lambda last: (may_copy.wait(60), make(last))[1])
    weights = torch.ones(5000)
    with opened(MemoryDirectory(), mode="overlapped") as made:
        commit = commit_staged(made, 1, {"state": {"w": weights}}, staging)
        assert gpu.copied == 0 and not commit.done
        may_copy.set()
        gpu.launch(lambda: weights.add_(1))
        commit.durable()
        restored = made.restore()
        assert restored is not None
        assert torch.equal(restored.part("state", CONVERT)["w"], weights - 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("mode", ["synchronous", "overlapped"])
def test_on_a_gpu(mode):
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.Linear(512, 3)).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    with opened(MemoryDirectory(), mode=mode) as made:
        training = Training(made, model=model, optimizer=optimizer)
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.randn(64, 512, device="cuda")).square().mean().backward()
            optimizer.step()
            expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            torch.cuda._sleep(50_000_000)
            commit = training.commit()
            if mode == "overlapped":
                assert not torch.cuda.current_stream().query()  # it is still at work
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(1000)
            assert commit is not None
            commit.durable()
            training.restore()
            for name, tensor in model.state_dict().items():
                assert torch.equal(tensor, expected[name]), name
