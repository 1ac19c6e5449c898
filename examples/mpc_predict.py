"""Predict digits on secrets: P1 has the trained model, P0 the images, and neither sees what the other has.

The network of train_digits.py, unmodified. All three parties run this file::

    strongroom mpc run mpc_predict.py --side 28 --count 100 --model model.vault --images test.npz --out answers.npz

``--model`` is a vault that holds ``model.onnx``, or such a file; P1 alone opens it. ``--images`` holds ``image``,
float32, N x 1 x side x side; P0 alone opens it, and P0 alone learns the answers. On three hosts each names only what
it has.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from train_digits import network

from strongroom import FileAnchor, mpc, vault
from strongroom.sealed import load_key


def weights(path: Path) -> dict[str, torch.Tensor]:
    """The weights of an ONNX file, by the names that PyTorch gave them; a vault is unsealed into memory only."""
    import onnx

    if path.is_dir():
        key, anchor = load_key(path.with_name(f"{path.name}.key")), FileAnchor(path.with_name(f"{path.name}.anchor"))
        with vault.open(path, "r", key=key, anchor=anchor) as opened:
            content = opened.read_bytes("model.onnx")
    else:
        content = path.read_bytes()
    model = onnx.load_model_from_string(content)
    arrays = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items() if array.dtype == np.float32}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="P1's")
    parser.add_argument("--images", type=Path, help="P0's")
    parser.add_argument("--out", type=Path, help="P0's: answers.npz")
    parser.add_argument("--side", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--batch", type=int, default=100)
    args = parser.parse_args()

    model = mpc.own(lambda: weights(args.model), source=mpc.P1, like=network(args.side).eval())

    def predict(start: int, stop: int) -> object:
        shape = (stop - start, 1, args.side, args.side)
        images = mpc.share(lambda: np.load(args.images)["image"][start:stop], source=mpc.P0, shape=shape)
        return mpc.reveal(model(images), to=mpc.P0)

    predict(0, 1)  # the first time, the weights are masked for P0
    started = time.perf_counter()
    predict(0, 1)
    alone = time.perf_counter() - started
    started = time.perf_counter()
    answers = [predict(at, min(at + args.batch, args.count)) for at in range(0, args.count, args.batch)]
    together = time.perf_counter() - started

    found = [
        each.numpy() for each in answers if isinstance(each, torch.Tensor)
    ]  # at P0; elsewhere they were not revealed
    if found:
        np.savez(args.out, logits=np.concatenate(found), alone=alone, together=together)
        print(f"{args.count} images in {together:.2f} s; one alone in {1000 * alone:.1f} ms")


if __name__ == "__main__":
    main()
