"""A model in one process with little memory: ``python -m benchmarks.plan_paged DOOR MODEL``.

Loads ONNX Runtime, enters the control group behind DOOR, loads the model within it, says ``loaded`` and waits for a
line: the group's limit is then set, since the kernel ends who pages fast while it loads. It prints the nanoseconds of
each run, of the processor: pages come from compressed memory then, so that this is what they take
(`strongroom.serve.plan.swap`). What the process held before is not charged to the group. It stays on one processor, as
what measures a page's cost (`strongroom.serve.plan.paging_probe`).
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np

from strongroom.serve.memory import give_back
from strongroom.serve.runtime import onnxruntime
from strongroom.serve.stage import Stage
from strongroom.serve.tensors import DATATYPES

RUNS = 10


def main(door: Path, file: Path) -> None:
    """Run the model on random numbers, of batch 1, with one thread."""
    onnxruntime()
    model = file.read_bytes()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    door.write_text(str(os.getpid()))
    stage = Stage.load(model, name="paged", threads=1, part=True)
    del model
    give_back()
    rng = np.random.default_rng(0)
    inputs = {
        info.name: rng.standard_normal([max(1, size) for size in info.shape]).astype(DATATYPES[info.datatype])
        for info in stage.inputs
    }
    stage.infer(inputs)
    print("loaded", flush=True)
    sys.stdin.readline()
    for _ in range(RUNS):
        start = time.process_time_ns()
        stage.infer(inputs)
        print(time.process_time_ns() - start, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
