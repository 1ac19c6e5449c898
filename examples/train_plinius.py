"""Train the network of a Darknet ``.cfg`` file on MNIST under a mirror: kill it when you like, and start it again.

::

    python train_plinius.py mnist.cfg --data mnist --mirror run.mirror

What it prints of each step is the same, digit for digit, however often it was killed. The first start seals the
training images beside the mirror, a byte for each pixel; later starts find them there, and each batch is decrypted and
normalised as it is drawn. Both are sealed with the key in ``run.mirror.key``, which the first start makes.

Of the ``.cfg`` file it takes the layers (convolutional, connected, maxpool, avgpool, dropout, softmax, cost), the size
of a batch, the number of steps and what SGD needs to know; what the file says of images that are larger (crop, hue,
exposure and the like) does not apply. Images are made as large as the network wants them.
"""

import argparse
import gzip
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from strongroom import mirror
from strongroom.data import Normalise, SealedDataset, collate, seal_once
from strongroom.errors import StrongroomError
from strongroom.mirror.torch import Training
from strongroom.sealed import FileAnchor
from strongroom.sealed.keyfile import create_key, load_key

Section = tuple[str, dict[str, str]]


class CfgError(ValueError):
    """The ``.cfg`` file asks for something that this script does not know."""


# The network.


def read_cfg(path: Path) -> list[Section]:
    """The sections of a ``.cfg`` file, in order; the first is ``net``."""
    sections: list[Section] = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        line = line.partition("#")[0].strip()
        if line.startswith("[") and line.endswith("]"):
            sections.append((line[1:-1].strip(), {}))
        elif line:
            name, equals, value = line.partition("=")
            if not equals or not sections:
                raise CfgError(f"{path}, line {number}: {line[:40]!r}, wanted [section] or name=value")
            sections[-1][1][name.strip()] = value.strip()
    if not sections or sections[0][0] not in ("net", "network"):
        raise CfgError(f"{path}: begins with no [net]")
    return sections


def activation(options: Mapping[str, str], default: str) -> nn.Module:
    """What follows a layer; Darknet's leaky slope is 0.1."""
    known = {"linear": nn.Identity(), "leaky": nn.LeakyReLU(0.1), "relu": nn.ReLU(), "logistic": nn.Sigmoid()}
    name = options.get("activation", default)
    if name not in known:
        raise CfgError(f"activation={name}, wanted one of {', '.join(known)}")
    return known[name]


def layer(kind: str, options: Mapping[str, str], shape: tuple[int, ...]) -> Iterator[nn.Module]:
    """The modules of a section, for inputs of `shape` (channels, height, width, or features)."""
    normalised = options.get("batch_normalize", "0") == "1"
    if kind in ("convolutional", "maxpool", "avgpool") and len(shape) != 3:
        raise CfgError(f"[{kind}]: after a layer without height and width")
    if kind == "convolutional":
        filters, size, stride = (int(options.get(name, "1")) for name in ("filters", "size", "stride"))
        padding = size // 2 if options.get("pad") == "1" else int(options.get("padding", "0"))
        yield nn.Conv2d(shape[0], filters, size, stride, padding, bias=not normalised)
        yield from [nn.BatchNorm2d(filters)] if normalised else []
        yield activation(options, "logistic")
    elif kind == "connected":
        outputs = int(options.get("output", "1"))
        yield from [nn.Flatten()] if len(shape) > 1 else []
        yield nn.Linear(math.prod(shape), outputs, bias=not normalised)
        yield from [nn.BatchNorm1d(outputs)] if normalised else []
        yield activation(options, "logistic")
    elif kind == "maxpool":
        stride = int(options.get("stride", "1"))
        size = int(options.get("size", stride))
        padding = int(options.get("padding", size - 1))  # of both sides together
        before, after = padding // 2, padding - padding // 2
        yield nn.ConstantPad2d((before, after, before, after), -math.inf)
        yield nn.MaxPool2d(size, stride)
    elif kind == "avgpool":
        yield from (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    elif kind == "dropout":
        yield nn.Dropout(float(options.get("probability", "0.5")))
    elif kind not in ("softmax", "cost"):  # the loss has them
        raise CfgError(f"[{kind}]: a layer that is not known")


def network(sections: list[Section]) -> nn.Sequential:
    """The network that maps images to logits."""
    net = dict(sections[0][1])
    missing = [name for name in ("channels", "height", "width") if name not in net]
    if missing:
        raise CfgError(f"[net]: no {', '.join(missing)}")
    shape: tuple[int, ...] = int(net["channels"]), int(net["height"]), int(net["width"])
    image, modules = shape, []
    for kind, options in sections[1:]:
        for module in layer(kind, options, shape):
            modules.append(module)
            shape = tuple(module.eval()(torch.zeros(1, *shape)).shape[1:])
    if len(shape) != 1:
        raise CfgError(f"the network ends in {shape}, wanted numbers: [avgpool] or [connected] before its end")
    # With the channels last in memory, convolutions on a processor take an eighth less time.
    return nn.Sequential(Fit(image), *modules).to(memory_format=torch.channels_last).train()


class Fit(nn.Module):
    """Makes grey images as large as the network wants them, with as many channels."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.shape[2:] != self.shape[1:]:
            images = nn.functional.interpolate(images, self.shape[1:], mode="bilinear")
        return images.expand(-1, self.shape[0], -1, -1)


# The data.


def read_idx(directory: Path, name: str) -> np.ndarray:
    """An idx file of bytes, compressed or not (https://github.com/cvdfoundation/mnist#file-format)."""
    path = next((path for path in (directory / name, directory / f"{name}.gz") if path.exists()), None)
    if path is None:
        raise FileNotFoundError(2, "no such file, nor one with .gz", str(directory / name))
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    shape = np.frombuffer(data, ">u4", data[3], 4).tolist() if data[:3] == b"\0\0\x08" else []
    if not shape or len(data) != 4 + 4 * len(shape) + math.prod(shape):
        raise ValueError(f"{path}: wanted an idx file of bytes")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def read_images(directory: Path, which: str) -> dict[str, np.ndarray]:
    """Images (uint8, N x 1 x H x W) and labels."""
    images, labels = (read_idx(directory, f"{which}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
    return {"image": images[:, np.newaxis], "label": labels}


def sealed_images(args: argparse.Namespace, key: bytes) -> SealedDataset:
    """The training images, sealed beside the mirror by the first start, mapped and decrypted on access by all."""
    path, anchor = beside(args.mirror, ".data"), FileAnchor(beside(args.mirror, ".data.anchor"))
    seal_once(
        path,
        lambda: read_images(args.data, "train"),
        key=key,
        anchor=anchor,
        normalise={"image": Normalise(std=255)},
    )
    return SealedDataset(path, key=key, anchor=anchor, mapped=True)


# The training.


def share(options: Mapping[str, str], steps: int) -> Callable[[int], float]:
    """What is left of the learning rate at a step."""
    policy, power = options.get("policy", "constant"), float(options.get("power", "4"))
    if policy not in ("constant", "poly"):
        raise CfgError(f"policy={policy}, wanted constant or poly")
    return lambda step: (1 - step / steps) ** power if policy == "poly" else 1.0


def train(
    model: nn.Module,
    options: Mapping[str, str],
    data: SealedDataset,
    args: argparse.Namespace,
    opened: mirror.Mirror,
) -> None:
    """Train from wherever the mirror is to the last step."""
    steps = args.steps or int(options.get("max_batches", "500"))
    base, momentum, decay = (
        float(options.get(name, default))
        for name, default in (("learning_rate", "0.001"), ("momentum", "0.9"), ("decay", "0.0001"))
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=base, momentum=momentum, weight_decay=decay)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, share(options, steps))
    batch = int(options.get("batch", "1"))
    loader = DataLoader(data, batch, shuffle=True, drop_last=True, collate_fn=collate)
    if not len(loader):
        raise ValueError(f"{args.data}: fewer images than the {batch} of a batch")
    training = Training(opened, model=model, optimizer=optimizer, scheduler=scheduler, loader=loader)
    if training.restore():
        print(f"resumed after step {training.step}", flush=True)
    for _, batches in training.epochs(math.ceil(steps / len(loader))):
        for images, labels in batches:
            if training.step == steps:
                return
            loss = nn.functional.cross_entropy(model(images), labels.long())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            scheduler.step()
            print(f"step {training.step + 1} loss {loss.item():.9g}", flush=True)
            training.commit()


def test(model: nn.Module, images: torch.Tensor, labels: np.ndarray) -> float:
    """The percentage of images that the network gets right."""
    model.eval()
    with torch.no_grad():
        found = torch.cat([model(some).argmax(1) for some in images.split(500)])
    return 100 * float((found.numpy() == labels).mean())


def beside(path: Path, end: str) -> Path:
    """The file of that name and ending."""
    return path.with_name(path.name + end)


def main() -> None:
    """Train, test, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cfg", type=Path, help="Darknet's description of a network")
    data = os.environ.get("STRONGROOM_DATA")
    parser.add_argument("--data", type=Path, default=Path(data, "mnist") if data else None, help="directory of MNIST")
    parser.add_argument("--mirror", type=Path, default=Path("run.mirror"), help="where the training is mirrored")
    parser.add_argument("--steps", type=int, help="instead of max_batches in the file")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--onnx", type=Path, metavar="FILE", help="write the trained network, as logits of an image")
    args = parser.parse_args()
    if args.data is None:
        parser.error("no data: give --data, or name the directory above it in STRONGROOM_DATA")
    torch.manual_seed(args.seed)
    key, anchor = beside(args.mirror, ".key"), FileAnchor(beside(args.mirror, ".anchor"))
    try:
        sections = read_cfg(args.cfg)
        model = network(sections)
        secret = load_key(key) if key.exists() else create_key(key)
        with (
            sealed_images(args, secret) as data,
            mirror.open(args.mirror, key=secret, anchor=anchor, mode="overlapped") as opened,
        ):
            train(model, sections[0][1], data, args, opened)
        found = read_images(args.data, "t10k")
        images, labels = torch.from_numpy(found["image"] / np.float32(255)), found["label"]
        print(f"accuracy {test(model, images, labels):.2f} % of {len(labels)} test images", flush=True)
    except (OSError, ValueError, StrongroomError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    if args.onnx:
        torch.onnx.export(
            model,
            (images[:2],),
            args.onnx,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=({0: "batch"},),
            external_data=False,
        )


if __name__ == "__main__":
    main()
