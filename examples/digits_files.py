"""Write scikit-learn's handwritten digits as the plain files that other examples read.

::

    python digits_files.py digits

makes ``digits/train/3/0007.png`` and so on, a directory for each class, ``digits/test`` likewise, and the same as
``train.csv`` and ``test.csv``: the label, then 64 brightnesses from 0 to 16.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, default=1400, help="images to train on")
    parser.add_argument("--test", type=int, default=397, help="images to test with")
    args = parser.parse_args()

    digits = load_digits()
    # They come sorted by writer; a fixed shuffle gives both parts all of them.
    order = np.random.default_rng(0).permutation(len(digits.target))
    parts = {"train": order[: args.train], "test": order[args.train : args.train + args.test]}
    for part, chosen in parts.items():
        for number, index in enumerate(chosen):
            folder = args.out / part / str(digits.target[index])
            folder.mkdir(parents=True, exist_ok=True)
            pixels = (digits.images[index] * 255 / 16).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:04}.png")
        rows = np.column_stack([digits.target[chosen], digits.data[chosen]])
        np.savetxt(args.out / f"{part}.csv", rows, fmt="%d", delimiter=",")
        print(f"{args.out / part}: {len(chosen)} images")


if __name__ == "__main__":
    main()
