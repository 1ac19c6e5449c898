"""Tensors of a GPU on their way into a mirror: copied to pinned memory, and the training's stream does not stop.

- The copies run on a stream of their own, which begins when the training's stream has done what it was given before.
  What the training's stream is given after them waits for them, on the GPU: nothing of a later step is in a copy.
- Whoever reads the copies waits for them first, and for nothing else.
- Pinned memory is slow to get, so it is used again: a hold of it belongs to one commit until that is decided. As one
  commit at most is under way, there are two holds at most.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from strongroom.mirror.commit import Commit

Wait = Callable[[], None]


class Lane(Protocol):
    """A way from a device into host memory."""

    def takes(self, tensor: torch.Tensor) -> bool:
        """Whether it is this way that a tensor goes."""

    def memory(self, size: int) -> torch.Tensor:
        """So many bytes of host memory."""

    def copy(self, tensor: torch.Tensor, target: torch.Tensor) -> None:
        """Begin to copy a tensor's bytes in C order, as the work that was given out before the first copy leaves it."""

    def finish(self) -> Wait:
        """Have all work that is given out from now on wait for the copies; what returns once they are made."""


class CudaLane:
    """The way from CUDA devices: one more stream on each."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._begun: set[torch.device] = set()

    def takes(self, tensor: torch.Tensor) -> bool:
        return tensor.is_cuda

    def memory(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def copy(self, tensor: torch.Tensor, target: torch.Tensor) -> None:
        device = tensor.device
        stream = self._streams.get(device)
        if stream is None:
            stream = self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call,unused-ignore]
        if device not in self._begun:
            stream.wait_stream(torch.cuda.current_stream(device))
            self._begun.add(device)
        with torch.cuda.stream(stream):  # what has to be rearranged first is so there too
            flat = tensor.resolve_conj().resolve_neg().contiguous().reshape(-1)
            target.copy_(flat.view(torch.uint8), non_blocking=True)
        tensor.record_stream(stream)  # its memory is given to nobody before

    def finish(self) -> Wait:
        events = []
        for device in self._begun:
            event = self._streams[device].record_event()
            torch.cuda.current_stream(device).wait_event(event)
            events.append(event)
        self._begun.clear()

        def wait() -> None:
            for event in events:
                event.synchronize()

        return wait


def _nothing() -> None:
    """There was nothing to copy."""


class Hold:
    """Host memory for the tensors of one commit, in the order in which they are taken.

    Attributes:
        takes: says whether a tensor is one to be staged.
    """

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self.takes = lane.takes
        self._memory: list[torch.Tensor] = []
        self._taken = 0
        self._commit: Commit | None = None
        self._wait: Wait = _nothing

    @property
    def free(self) -> bool:
        """Whether no commit may still read it."""
        return self._commit is None or self._commit.done

    def take(self, tensor: torch.Tensor) -> memoryview:
        """Where a tensor's bytes will be."""
        size = tensor.numel() * tensor.element_size()
        if self._taken == len(self._memory):
            self._memory.append(self._lane.memory(size))
        elif self._memory[self._taken].numel() != size:
            self._memory[self._taken] = self._lane.memory(size)
        target = self._memory[self._taken]
        self._taken += 1
        self._lane.copy(tensor, target)
        return target.numpy().data

    def finish(self) -> None:
        """No more of them come: the training may go on."""
        del self._memory[self._taken :]
        self._taken = 0
        self._wait = self._lane.finish()

    def wait(self) -> None:
        """Return once the bytes are there."""
        self._wait()

    def keep(self, commit: Commit) -> None:
        """What was taken is read until that commit is decided."""
        self._commit = commit


class Staging:
    """The holds of one training.

    Args:
        lane: by default that from CUDA devices.
    """

    def __init__(self, lane: Lane | None = None) -> None:
        self._lane = lane or CudaLane()
        self._holds: list[Hold] = []

    def hold(self) -> Hold:
        """One that is free."""
        found = next((one for one in self._holds if one.free), None)
        if found is None:
            found = Hold(self._lane)
            self._holds.append(found)
        return found
