"""The example that trains networks of Darknet's ``.cfg`` files: what it reads, and that a kill changes nothing."""

from __future__ import annotations

import gzip
import importlib.util
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

torch = pytest.importorskip("torch")

SCRIPT = Path(__file__).parent.parent.parent / "examples" / "train_plinius.py"
NET = """
[net]
# training
batch=16
height=12
width=12
channels=1
hue=.1

learning_rate=0.05
policy=poly
power = 2
max_batches=14
momentum=0.9
decay=0.0005
"""
LAYERS = """
[convolutional]
batch_normalize=1
filters=4
size=3
stride=1
pad=1
activation=leaky

[maxpool]
size=2
stride=2

[dropout]
probability=.2

[convolutional]
filters=10
size=1
activation=linear

[avgpool]

[softmax]
groups=1
"""


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_plinius", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load()


def write_idx(path: Path, array: np.ndarray) -> None:
    data = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Images that a bright row tells apart; some of the files compressed."""
    folder = tmp_path / "digits"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for which, size, end in (("train", 80, ""), ("t10k", 40, ".gz")):
        labels = rng.integers(0, 10, size).astype(np.uint8)
        images = rng.integers(0, 60, (size, 12, 12)).astype(np.uint8)
        images[np.arange(size), labels + 1] += 150
        write_idx(folder / f"{which}-images-idx3-ubyte{end}", images)
        write_idx(folder / f"{which}-labels-idx1-ubyte{end}", labels)
    return folder


@pytest.fixture
def cfg(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.cfg"
    path.write_text(NET + LAYERS)
    return path


def command(cfg: object, data: object, mirror: object, *more: object) -> list[str]:
    return [sys.executable, *map(str, (SCRIPT, cfg, "--data", data, "--mirror", mirror, *more))]


@pytest.fixture
def run(example, monkeypatch, capsys) -> Iterator[Callable[..., list[str]]]:
    """The script in this process, which has imported what takes long; the lines that it prints."""
    threads, generator = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)

    def run(*arguments: object) -> list[str]:
        monkeypatch.setattr(sys, "argv", command(*arguments)[1:])
        example.main()
        return capsys.readouterr().out.splitlines()

    yield run
    torch.set_num_threads(threads)
    torch.set_rng_state(generator)


def test_a_training_that_is_killed_prints_what_one_that_is_not_does(tmp_path, cfg, data, run):
    curve = run(cfg, data, tmp_path / "alone")
    assert [line.split()[1] for line in curve[:-1]] == [str(number) for number in range(1, 15)]
    assert curve[-1].startswith("accuracy ") and curve[-1].endswith(" % of 40 test images")

    killed = command(cfg, data, tmp_path / "killed")
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(killed, env=one_thread, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        first = [process.stdout.readline().rstrip() for _ in range(6)]  # the second epoch has begun
        os.kill(process.pid, signal.SIGKILL)
        first += process.stdout.read().splitlines()
    assert process.returncode == -signal.SIGKILL
    resumed, *rest = run(cfg, data, tmp_path / "killed")
    step = int(resumed.removeprefix("resumed after step "))
    assert 4 <= step <= len(first)
    assert first == curve[: len(first)]
    assert rest == curve[step:]

    assert run(cfg, data, tmp_path / "killed") == ["resumed after step 14", curve[-1]]


def test_neither_the_network_nor_the_images_lie_on_the_disk_in_clear(tmp_path, example, cfg, data, run):
    run(cfg, data, tmp_path / "run", "--steps", "2")
    assert {path.name for path in tmp_path.glob("run*")} >= {"run", "run.key", "run.anchor", "run.data"}
    stored = (tmp_path / "run").read_bytes()
    assert b"optimizer" not in stored and b"momentum" not in stored
    images, sealed = example.read_images(data, "train")["image"], (tmp_path / "run.data").read_bytes()
    assert len(sealed) < images.size + (1 << 20)
    assert not any(image.tobytes() in sealed for image in images)


def test_a_later_start_does_not_need_the_data_that_the_first_one_sealed(tmp_path, cfg, data, run):
    curve = run(cfg, data, tmp_path / "alone")
    run(cfg, data, tmp_path / "run", "--steps", "14")
    assert run(cfg, data, tmp_path / "run")[-1] == curve[-1]
    for path in data.glob("train*"):
        path.unlink()
    assert run(cfg, data, tmp_path / "run") == ["resumed after step 14", curve[-1]]


def test_what_the_layers_become(example, tmp_path):
    path = tmp_path / "all.cfg"
    path.write_text(NET + LAYERS.replace("[softmax]", "[connected]\noutput=7\nactivation=relu\n\n[softmax]"))
    model = example.network(example.read_cfg(path))
    kinds = [type(module).__name__ for module in model]
    assert kinds == [
        "Fit", "Conv2d", "BatchNorm2d", "LeakyReLU", "ConstantPad2d", "MaxPool2d", "Dropout", "Conv2d", "Identity",
        "AdaptiveAvgPool2d", "Flatten", "Linear", "ReLU",
    ]  # fmt: skip
    assert model.training
    assert model[1].bias is None and model[7].bias is not None
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 7)  # images of another size are made to fit


@pytest.mark.parametrize(
    ("side", "size", "stride", "wanted"), [(28, 2, 2, 14), (7, 2, 2, 4), (7, 3, 2, 4), (6, 3, 1, 6)]
)
def test_pooling_is_as_large_as_darknet_makes_it(example, side, size, stride, wanted):
    # Darknet: (side + padding - size) / stride + 1, where padding is size - 1.
    pool = torch.nn.Sequential(*example.layer("maxpool", {"size": str(size), "stride": str(stride)}, (1, side, side)))
    assert pool(torch.zeros(1, 1, side, side)).shape[-1] == wanted == (side + size - 1 - size) // stride + 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[convolutional]\nfilters=1\n", "begins with no [net]"),
        (NET + "[convolutional]\nfilters\n", "line 17: 'filters', wanted [section] or name=value"),
        (NET + "[shortcut]\nfrom=-3\n", "[shortcut]: a layer that is not known"),
        (NET + "[convolutional]\nactivation=mish\n", "activation=mish, wanted one of linear, leaky"),
        (NET + "[convolutional]\nfilters=2\nactivation=linear\n", "the network ends in (2, 12, 12), wanted numbers"),
        (NET + "[avgpool]\n[maxpool]\nsize=2\n", "[maxpool]: after a layer without height and width"),
        (NET.replace("poly", "sgdr") + LAYERS, "policy=sgdr, wanted constant or poly"),
        (NET.replace("batch=16", "batch=100") + LAYERS, "fewer images than the 100 of a batch"),
        (NET.replace("channels=1\n", "") + LAYERS, "[net]: no channels"),
    ],
)
def test_what_it_does_not_know_it_says(example, tmp_path, data, capsys, monkeypatch, text, message):
    path = tmp_path / "odd.cfg"
    path.write_text(text)
    monkeypatch.setattr(sys, "argv", command(path, data, tmp_path / "odd")[1:])
    with pytest.raises(SystemExit) as stopped:
        example.main()
    assert stopped.value.code == 1
    assert message in capsys.readouterr().err


def test_data_that_are_missing_or_no_idx_files(example, tmp_path, data):
    with pytest.raises(FileNotFoundError, match="no such file, nor one"):
        example.read_images(tmp_path, "train")
    (data / "train-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\x50" + bytes(79))
    with pytest.raises(ValueError, match="wanted an idx file of bytes"):
        example.read_images(data, "train")
