"""Classify with a LiteRT model, loaded from a plain path; for each line of standard input (how many images, how many
threads) the milliseconds of loading, and of each image."""

import sys
import time

import numpy as np
from ai_edge_litert.interpreter import Interpreter  # type: ignore[import-untyped]


def main() -> None:
    print("ready", flush=True)
    random = np.random.default_rng(0)
    for line in sys.stdin:
        count, threads = map(int, line.split())
        began = time.perf_counter()
        interpreter = Interpreter(model_path=sys.argv[1], num_threads=threads)
        interpreter.allocate_tensors()
        [takes], [gives] = interpreter.get_input_details(), interpreter.get_output_details()
        loaded = time.perf_counter()
        images = [random.random(takes["shape"], np.float32) for _ in range(4)]
        for number in range(count + 1):
            if number == 1:  # the first one prepares
                first = time.perf_counter()
            interpreter.set_tensor(takes["index"], images[number % 4])
            interpreter.invoke()
            interpreter.get_tensor(gives["index"])
        ended = time.perf_counter()
        print((loaded - began) * 1000, (ended - first) * 1000 / count, flush=True)


if __name__ == "__main__":
    main()
