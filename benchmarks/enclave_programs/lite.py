"""Classify with TensorFlow, LiteRT or ONNX Runtime: the first argument names it, the second is the model's path.

Says when the runtime is imported; then for each line of standard input, ``load``: the milliseconds of loading and a
first answer; a number: the milliseconds of an image, over so many.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np


def tensorflow() -> Callable[[str], Callable[[Any], Any]]:
    import tensorflow as tf

    def load(path: str) -> Callable[[Any], Any]:
        loaded = tf.saved_model.load(path)
        signature = loaded.signatures["serving_default"]
        [name] = signature.structured_input_signature[1]

        def ask(image: Any) -> Any:
            [scores] = signature(**{name: tf.constant(image)}).values()
            assert loaded is not None  # which holds the variables
            return scores.numpy()

        return ask

    return load


def litert() -> Callable[[str], Callable[[Any], Any]]:
    from ai_edge_litert.interpreter import Interpreter  # type: ignore[import-untyped]

    def load(path: str) -> Callable[[Any], Any]:
        interpreter = Interpreter(model_path=path, num_threads=2)
        interpreter.allocate_tensors()
        [takes], [gives] = interpreter.get_input_details(), interpreter.get_output_details()

        def ask(image: Any) -> Any:
            interpreter.set_tensor(takes["index"], image)
            interpreter.invoke()
            return interpreter.get_tensor(gives["index"])

        return ask

    return load


def onnxruntime() -> Callable[[str], Callable[[Any], Any]]:
    from onnxruntime import InferenceSession, SessionOptions

    def load(path: str) -> Callable[[Any], Any]:
        options = SessionOptions()
        options.intra_op_num_threads = 2
        session = InferenceSession(path, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda image: session.run(None, {name: image})[0]

    return load


RUNTIMES = {"tensorflow": tensorflow, "litert": litert, "onnxruntime": onnxruntime}


def main() -> None:
    load = RUNTIMES[sys.argv[1]]()
    image = np.random.default_rng(0).random((1, 299, 299, 3), np.float32)
    print("ready", flush=True)
    ask: Callable[[Any], Any] | None = None
    for line in sys.stdin:
        began = time.perf_counter()
        if ask is None:
            ask = load(sys.argv[2])
        count = int(line) if line.strip() != "load" else 1
        for _ in range(count):
            scores = ask(image)
        print((time.perf_counter() - began) * 1000 / count, int(scores.argmax()), float(scores.max()), flush=True)


if __name__ == "__main__":
    main()
