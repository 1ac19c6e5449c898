"""What the parties of `benchmarks.mpc_models` run: P1 owns the model, P0 gives the input and is given the answer."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.mpc_models_given import MODELS
from benchmarks.mpc_models_llama import BOS, Llama, load, read_shape
from benchmarks.mpc_models_parties import Arrays, Meter
from benchmarks.mpc_models_resnet import RESNETS, SIDE, random_image, with_random_weights
from strongroom import mpc

M = TypeVar("M", bound=nn.Module)


def owned(weights: Callable[[], nn.Module], like: M) -> M:
    """P1's model."""
    return mpc.own(weights, source=mpc.P1, like=like)


def answer(
    model: nn.Module, images: Callable[[], NDArray[Any]], shape: tuple[int, ...], output: int = 0
) -> NDArray[Any] | None:
    """At P0 what a model says of images that P0 alone looks at, or one of its outputs; elsewhere nothing."""
    said = model(mpc.share(lambda: torch.from_numpy(images()), source=mpc.P0, shape=shape))
    got = mpc.reveal(said[output] if isinstance(said, tuple) else said, to=mpc.P0)
    return got.numpy() if isinstance(got, torch.Tensor) else None


def classify(meter: Meter, name: str, file: str, shape: list[int]) -> Arrays | None:
    """What one of `MODELS` says of its first test images, of that shape all together, a batch at a time."""
    given, (count, *one) = MODELS[name], shape
    model = owned(lambda: mpc.load_model(file), mpc.load_architecture(file))
    asked = cache(lambda: given.asked(count)[0])
    said = []
    for at in range(0, count, given.batch):
        size = min(given.batch, count - at)
        with meter.run("batch"):
            said.append(answer(model, lambda: asked()[at : at + size], (size, *one), given.output))  # noqa: B023
    found = [each for each in said if each is not None]
    return {"output": np.concatenate(found)} if found else None


def resnet(meter: Meter, name: str, rounds: int) -> Arrays | None:
    """One image through a ResNet of random weights, some times."""
    make = RESNETS[name]
    model = owned(lambda: with_random_weights(make), make().eval())
    for _ in range(rounds + 1):
        with meter.run("image"):
            said = answer(model, random_image, (1, 3, SIDE, SIDE))
    return None if said is None else {"output": said}


def story(meter: Meter, path: str, steps: int) -> Arrays | None:
    """Tokens said greedily after BOS. P0 is told each; it goes on as the secret that it is."""
    file = Path(path)
    shape = read_shape(file)
    model = owned(lambda: load(file), Llama(shape).eval())
    caches, said = model.caches(), []
    token = mpc.share(
        lambda: torch.tensor([BOS]), source=mpc.P0, shape=(1,), dtype=torch.int64, classes=shape.vocabulary
    )
    for position in range(steps):
        with meter.run("token"):
            token = model(model.embedding(token), position, caches).argmax(-1)
            assert isinstance(token, mpc.SharedTensor)  # as all that is computed of a secret is
            told = mpc.reveal(token, to=mpc.P0)
        if isinstance(told, torch.Tensor):
            said.append(int(told))
    return {"tokens": np.array(said)} if said else None


def prompt(meter: Meter, file: str, tokens: list[int], classes: int) -> Arrays | None:
    """The logits after each of P0's secret tokens, from a language model in an ONNX file."""
    model = owned(lambda: mpc.load_model(file), mpc.load_architecture(file))
    for _ in range(2):
        with meter.run("prompt"):
            given = mpc.share(
                lambda: torch.tensor([tokens]),
                source=mpc.P0,
                shape=(1, len(tokens)),
                dtype=torch.int64,
                classes=classes,
            )
            logits = mpc.reveal(model(given), to=mpc.P0)
    return {"output": logits.numpy()} if isinstance(logits, torch.Tensor) else None
