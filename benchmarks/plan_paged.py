"""A model in one process with little memory: ``python -m benchmarks.plan_paged DOOR MODEL``.

Loads ONNX Runtime, enters the control group behind DOOR, loads the model within it, and prints the nanoseconds of each
run: what the process held before is not charged to the group (`strongroom.serve.plan.paging_probe`).
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np

from strongroom.serve.runtime import onnxruntime
from strongroom.serve.stage import Stage
from strongroom.serve.tensors import DATATYPES

RUNS = 5


def main(door: Path, file: Path) -> None:
    """Run the model on zeros of batch 1."""
    onnxruntime()
    door.write_text(str(os.getpid()))
    stage = Stage.load(file.read_bytes(), name="paged", threads=1)
    inputs = {
        info.name: np.zeros([max(1, size) for size in info.shape], DATATYPES[info.datatype]) for info in stage.inputs
    }
    for _ in range(RUNS):
        start = time.perf_counter_ns()
        stage.infer(inputs)
        print(time.perf_counter_ns() - start, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
