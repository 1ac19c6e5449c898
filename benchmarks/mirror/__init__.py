"""The mirror of a training: how fast a state is sealed and restored, and what training pays for it.

- A state is a model of 16 tensors of mixed sizes and its AdamW state after a step: 64 tensors with the step counts. All
  of it is written each time. A save ends when it is durable, under its final name: the peers write a new file or
  directory, sync it and rename it, we commit with an anchor file beside the mirror. A restore begins with what lies in
  the file system, whose pages are in the kernel's cache, and ends with tensors in memory.
- "encrypted torch.save" is `torch.save` into memory, AES-256-GCM over its bytes with `cryptography`, and one write;
  back, `torch.load` with `weights_only`. Ours besides keeps the state before, and refuses an older one.
- "raw write" overwrites as many bytes in an existing file with one call, and syncs it.
- "memory copy" copies the same tensors into memory that was touched before, by PyTorch or by NumPy, whichever is faster
  at the moment. What is compared with it is how long an overlapped commit holds up a training, none being under way.
- Overheads: the same training twice, in turns of some steps, once with a mirror on the disk that survives power cuts.
  Its commits overlap the next step; a turn ends when its last one is durable.
- Iterations: the network of 12 convolutions on shuffled batches of 60,000 images, from a mapped sealed file on the disk
  each of which is decrypted as it is drawn (a cache of 1 MiB, 2 % of the file), and from arrays in memory.

Besides the goals it prints what every way to save takes, and the swaps per second of transactions on a persistent array
(the test that Plinius took from Romulus). With ``STRONGROOM_BENCH_DETAILS=FILE`` these are written as JSON, with
``--plots`` drawn beside what Plinius published. A run with ``--only`` leaves them out, unless they are to be drawn.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.harness import Bench, Goal
from benchmarks.mirror import published, states, tables, trainings
from benchmarks.mirror.swaps import Swaps, swaps
from benchmarks.mirror.ways import Row

GOALS: Sequence[Goal] = (*states.GOALS, *trainings.GOALS)


def measure(bench: Bench) -> None:
    """Measure every goal that `bench` wants, and print what every way takes."""
    rows: list[Row] = []
    swapped: list[Swaps] = []
    try:
        with _places() as places:
            for row in states.states(bench, places):
                rows.append(row)
            trainings.overheads(bench, places["disk"])
            trainings.iterations(bench, places["disk"])
            if bench.complete:
                for one in swaps(places):
                    swapped.append(one)
                    bench.say(f"{one.each} swaps a commit, {one.place}, {one.durability}: {one.rate:,.0f} /s")
    finally:
        tables.show(rows, swapped, published.bars())
        if path := os.environ.get("STRONGROOM_BENCH_DETAILS"):
            details = {"states": [asdict(row) for row in rows], "swaps": [asdict(one) for one in swapped]}
            Path(path).write_text(json.dumps(details, indent=2))
        if bench.plots:
            from benchmarks.mirror import plots

            plots.draw(bench.plots, rows, swapped, bench.results(), published.bars())


@contextlib.contextmanager
def _places() -> Iterator[dict[str, Path]]:
    """A directory in memory and one on a disk, where the machine has them."""
    from strongroom.mirror.region import look

    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108
    disks = [Path(tempfile.gettempdir()), Path.cwd()]
    disk = next((path for path in disks if look(path, "power").kind != "memory"), disks[0])
    with tempfile.TemporaryDirectory(dir=memory) as one, tempfile.TemporaryDirectory(dir=disk) as other:
        yield {"tmpfs": Path(one), "disk": Path(other)}
