"""Classify a directory of images with a LiteRT model (a ``.tflite`` file).

An ordinary script: it reads ``MODEL`` and ``DATA/test/<label>/*.png``, and writes the scores as ``OUT/scores.npy`` and
``OUT/classes.csv``: the file and its class.
"""

import argparse
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    interpreter = Interpreter(model_path=str(args.model), num_threads=args.threads)
    interpreter.allocate_tensors()
    [takes], [gives] = interpreter.get_input_details(), interpreter.get_output_details()
    paths = sorted((args.data / "test").glob("*/*.png"))
    scores = []
    for path in paths:
        with Image.open(path) as image:
            pixels = np.array(image, np.float32) / 255
        interpreter.set_tensor(takes["index"], pixels.reshape(takes["shape"]))
        interpreter.invoke()
        scores.append(interpreter.get_tensor(gives["index"])[0])
    np.save(args.out / "scores.npy", np.stack(scores))
    classes = [int(score.argmax()) for score in scores]
    lines = [f"{path.relative_to(args.data)},{found}\n" for path, found in zip(paths, classes, strict=True)]
    (args.out / "classes.csv").write_text("".join(lines))
    right = sum(found == int(path.parent.name) for path, found in zip(paths, classes, strict=True))
    print(f"right: {right / len(paths):.1%} of {len(paths)}")


if __name__ == "__main__":
    main()
