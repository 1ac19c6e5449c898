"""The act of the demo in which a training is killed: what it would have become is what it becomes.

`examples/train_mirrored.py` runs twice at the same time, from the same seed: left alone, and killed with SIGKILL in the
middle and started again. Every loss and the last weights have to be the same, or the demo fails.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

from strongroom.cli.examples import example
from strongroom.cli.show import Show, refusal
from strongroom.errors import IntegrityError, RollbackError, StrongroomError
from strongroom.mirror.restored import Restored, read
from strongroom.mirror.spot import curves
from strongroom.mirror.spot.host import LocalHost
from strongroom.mirror.spot.losses import Losses
from strongroom.sealed import FileAnchor, load_key

SCRIPT: Final = "train_mirrored.py"
_EPOCHS, _STEPS = 5, 145
_KILL_AFTER: Final = 73  # in the middle of the third epoch
_TURN: Final = 0.02  # seconds that one of the two is listened to
_LOOKED_FOR: Final = 32  # bytes of an array


def killed_training(show: Show, letter: str, work: Path) -> None:
    """Play the act in a directory.

    Raises:
        StrongroomError: a run failed, or the two are not one.
        IntegrityError: the weights lie on the disk in clear, or an old state was taken for the newest.
    """
    with show.act(letter, f"{SCRIPT} is killed in the middle, and goes on under its mirror") as act:
        alone, killed = _Run(work / "alone.mirror"), _Run(work / "killed.mirror")
        at, old = _race(show, alone, killed)
        show.fact(
            f"SIGKILL after step {at} of {_STEPS}, in the middle of an epoch; {_twice(killed.losses)} when it was "
            "started again"
        )
        one, other = alone.losses.curve(), killed.losses.curve()
        if killed.losses.differing or one != other or len(one) != _STEPS:
            apart = [step for step in one if one[step] != other.get(step)] or sorted(killed.losses.differing)
            raise StrongroomError(f"demo: the losses of the two runs differ from step {min(apart, default=0)} on")
        show.draw(
            curves.text(
                {"alone": curves.numbers(alone.losses), "killed": curves.numbers(killed.losses)},
                kills=[at], again={loss.step for loss in killed.losses.printed if loss.again},
                width=max(40, min(80, show.width - 6)), height=9,
            )
        )  # fmt: skip
        show.fact(f"the two curves are one: {len(one)} losses of each run, equal digit for digit")
        with alone.state() as left, killed.state() as resumed:
            arrays, size = _same(left, resumed)
            show.fact(f"weights and optimizer in the end: {arrays} arrays, {size:,} bytes, equal to the bit")
            _search(resumed, killed.mirror)
        show.fact("searched the mirror's file for the weights: none is there in clear")
        killed.mirror.write_bytes(old)
        try:
            killed.state().close()
        except RollbackError as error:
            show.refused(f"the mirror as it was at the kill, put back in its place: {refusal(error)}")
        else:
            raise IntegrityError("demo: an old mirror was taken for the newest")
        act.outcome = "killed and started again, the training became what it becomes when left alone, bit for bit"
        act.protected = (
            "the state on the disk, from whoever reads, changes or replaces it; the work, from a kill "
            "(not the memory: this ran outside an enclave)"
        )


class _Run:
    """One training, which may be started again."""

    def __init__(self, mirror: Path) -> None:
        self.mirror, self.losses = mirror, Losses()
        self.starts, self.step, self.said = 0, 0, ""
        self.host = LocalHost(
            [sys.executable, str(example(SCRIPT)), "--mirror", str(mirror), "--epochs", str(_EPOCHS)],
            # PyTorch leaves a directory of its compiler's among the temporary files: it goes with the rest.
            environment=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(mirror.parent)},
        )

    def start(self) -> None:
        self.starts += 1
        self.host.start()

    def listen(self) -> int | None:
        """Take in what it says next; its exit status once it has ended."""
        heard = self.host.listen(self.host.now() + _TURN)
        if not isinstance(heard, str):
            return heard
        self.said = heard
        if loss := self.losses.read(heard, start=self.starts, time=0.0):
            self.step = loss.step
        return None

    def state(self) -> Restored:
        """Its newest commit, read with its key and held against its anchor."""
        key, anchor = (self.mirror.with_name(self.mirror.name + end) for end in (".key", ".anchor"))
        return read(self.mirror, key=load_key(key), anchor=FileAnchor(anchor))


def _race(show: Show, alone: _Run, killed: _Run) -> tuple[int, bytes]:
    """Run both to their ends, one of them through a kill; after which step that was, and the mirror as it was then."""
    at, old, left = 0, b"", [alone, killed]
    try:
        for run in left:
            run.start()
        while left:
            for run in list(left):
                status = run.listen()
                if run is killed and not at and run.step >= _KILL_AFTER:
                    run.host.kill()
                    at = run.step
                elif status is not None and run is killed and at and not old:
                    at, old = run.step, run.mirror.read_bytes()
                    run.start()
                elif status is not None:
                    if status:
                        raise StrongroomError(f"{SCRIPT}: ended with status {status}: {run.said[:300]}")
                    left.remove(run)
            what = "killed, and started again" if at else "training twice, alone"
            show.doing(
                f"{what}: step {alone.step} and step {killed.step}", done=(alone.step + killed.step) / 2 / _STEPS
            )
    finally:
        for run in left:
            run.host.kill()
    return at, old


def _twice(losses: Losses) -> str:
    count = losses.repeated
    return "no step was lost" if not count else f"{count} step{'' if count == 1 else 's'} computed a second time"


def _same(one: Restored, other: Restored) -> tuple[int, int]:
    """How many arrays the parts of both states have, and bytes. Raises StrongroomError if they are not the same."""
    names = [name for name in one.arrays if name.startswith("parts/")]
    if not names or names != [name for name in other.arrays if name.startswith("parts/")]:
        raise StrongroomError("demo: the two trainings ended with other arrays")
    size = 0
    for name in names:
        left, right = one.array(name), other.array(name)
        if left.dtype != right.dtype or left.shape != right.shape or left.tobytes() != right.tobytes():
            raise StrongroomError(f"demo: {name} differs between the two trainings")
        size += left.nbytes
    return len(names), size


def _search(state: Restored, mirror: Path) -> None:
    """Raises IntegrityError if the beginning of an array lies in the mirror's file as it is in memory."""
    stored = mirror.read_bytes()
    for name in state.arrays:
        begins = state.array(name).tobytes()[:_LOOKED_FOR]
        if len(set(begins)) > 8 and begins in stored:  # zeros prove nothing
            raise IntegrityError(f"mirror: {name} lies on the disk in clear")
