"""Run an ONNX model on the inputs of an .npz file; for each line of standard input (how many seconds, how many calls at
once) the runs a second and the median milliseconds of one."""

import statistics
import sys
import threading
import time

import numpy as np
import onnxruntime


def main() -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(sys.argv[2])
    session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
    inputs = dict(np.load(sys.argv[3]))
    for _ in range(3):
        session.run(None, inputs)
    print("ready", flush=True)
    for line in sys.stdin:
        seconds, at_once = line.split()
        print(*hammer(session, inputs, float(seconds), int(at_once)), flush=True)


def hammer(session: object, inputs: object, seconds: float, at_once: int) -> tuple[float, float]:
    durations: list[float] = []
    began = time.perf_counter()

    def work() -> None:
        now = time.perf_counter()
        while now < began + seconds:
            session.run(None, inputs)  # type: ignore[attr-defined]
            after = time.perf_counter()
            durations.append(after - now)
            now = after

    threads = [threading.Thread(target=work) for _ in range(at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(durations) / (time.perf_counter() - began), 1000 * statistics.median(durations)


if __name__ == "__main__":
    main()
