"""What system calls return on an ordinary directory they must return on a mount: all scripts of that.

Run as a program, ``python -m tests.posix.cases DIRECTORY UID``, it runs every script in a new directory below
DIRECTORY, as that user, and prints what came of it as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tests.posix import cases_files, cases_names
from tests.posix.script import CASES, Script

__all__ = ["CASES", "cases_files", "cases_names"]


def main(directory: str, uid: int) -> None:
    """Run every script, and print the logs."""
    if uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    results = {}
    for name, run in CASES.items():
        os.umask(0o022)
        own = f"{directory}/{name}"
        Path(own).mkdir()
        os.chdir(own)
        script = Script(uid)
        try:
            run(script)
        except OSError as error:
            script.note("ended", repr(error))
        results[name] = script.log
    os.chdir("/")
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
