"""Scripts under `strongroom.mirror.hook`, killed over and over, or one after another. Run as a module, it reports.

``python -m tests.mirror.kills_hook kill --directory D --kills N --seed S "SCRIPT ARGUMENTS" ...`` prints what `lives`
says of each script, as JSON; a script's last argument is the log that it writes. ``... after --directory D "SCRIPT
SCRIPT" ...`` runs the scripts of each group one after another under one mirror, and prints what was told of each.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch._dynamo  # noqa: F401  # which an optimizer imports, and takes seconds

from strongroom import mirror
from strongroom.errors import LockedError, StrongroomError
from strongroom.mirror import hook
from strongroom.sealed import FileAnchor
from tests.mirror.kills import KEY
from tests.mirror.lives import Lives, Trace, child


def opened(directory: Path) -> mirror.Mirror:
    anchor = FileAnchor(directory / "anchor")
    while True:
        try:
            return mirror.open(directory / "mirror", key=KEY, anchor=anchor, durability="process", delta=True)
        except LockedError:  # a worker that was killed while it was forked is not gone yet
            os.sched_yield()


def train(words: list[str]) -> Callable[[Path, Path, Path], None]:
    def life(directory: Path, log: Path, trace: Path) -> None:
        marks = Trace(trace)
        with opened(directory) as made:
            marks.watch(made)

            def tell(what: str, detail: dict[str, Any]) -> None:
                marks.enter("restore" if what == "resumes" else "step")

            hook.Run([*words, str(log)], made, every=1, told=tell).run()

    return life


def report(directory: Path, script: str, told: Path) -> None:
    warnings.simplefilter("ignore")
    said: list[Any] = []
    try:
        with opened(directory) as made:
            run = hook.Run([script], made, every=1, told=lambda what, detail: said.append([what, detail]))
            run.run()
            said.append(["ended", {"commits": run.hook.commits, "step": made.step}])
    except StrongroomError as error:
        said.append(["failed", {"message": error.message}])
    told.write_text(json.dumps(said))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["kill", "after"])
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("words", nargs="+")
    args = parser.parse_args()
    said: list[Any] = []
    for number, words in enumerate(args.words):
        directory = args.directory / str(number)
        directory.mkdir()
        if args.what == "kill":
            said.append(Lives(directory, train(words.split())).run(args.kills, args.seed))
            continue
        for script in words.split():
            told = directory / "told"
            sys.stdout.flush()
            os.waitpid(child(report, directory, script, told), 0)
            said.append(json.loads(told.read_text()))
    print(json.dumps(said))


if __name__ == "__main__":
    main()
