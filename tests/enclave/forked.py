"""Runs a script as several processes at once, forked from one that has imported what each of them would.

Standard library only: `test_distributed.py` starts it. From standard input it reads JSON: `modules`, `script`, and
`processes`, each with `arguments` and `environment`. It prints the sources that were imported, as JSON, and ends with
the status of the first process that failed.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys
import tempfile
import traceback


def run(script: str, arguments: list[str], environment: dict[str, str]) -> int:
    """As Python would that is started with it."""
    os.environ.update(environment)
    tempfile.tempdir = None  # it may be another's by now
    sys.argv = [script, *arguments]
    sys.path[0] = os.path.dirname(script)  # noqa: PTH120
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main() -> int:
    told = json.load(sys.stdin)
    for module in told["modules"]:
        importlib.import_module(module)
    sources = sorted(str(getattr(each, "__file__", None) or "") for each in list(sys.modules.values()))
    print(json.dumps([name for name in sources if name.endswith(".py")]), flush=True)
    children = []
    for process in told["processes"]:
        if not (child := os.fork()):
            os.dup2(2, 1)
            status = run(told["script"], process["arguments"], process["environment"])
            sys.stdout.flush()
            os._exit(status)
        children.append(child)
    ended = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return next(filter(None, ended), 0)


if __name__ == "__main__":
    sys.exit(main())
