"""The demo, whole: on its own data, and on files of MNIST's form."""

import gzip
import json
import struct

import numpy as np
import pytest

from strongroom.cli.digits import load_digits
from strongroom.cli.main import main
from strongroom.cli.remembered import load_digests
from strongroom.cli.workspace import Home
from strongroom.enclave import sandbox
from strongroom.errors import FormatError, UsageError

pytest.importorskip("torch", reason="the demo needs PyTorch: it is not tested")


def idx(array):
    head = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(np.uint8).tobytes()


@pytest.fixture
def mnist(tmp_path):
    """Scikit-learn's digits, enlarged and cut to MNIST's form."""
    digits = load_digits(None)
    directory = tmp_path / "mnist"
    directory.mkdir()
    for part, images, labels in (
        ("train", digits.train_images[:600], digits.train_labels[:600]),
        ("t10k", digits.test_images[:200], digits.test_labels[:200]),
    ):
        large = np.pad(images.repeat(3, 1).repeat(3, 2) * 15, ((0, 0), (2, 2), (2, 2)))
        (directory / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(large)))
        (directory / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    return directory


def run_demo(capfd, *arguments):
    assert main(["demo", "--json", *arguments]) == 0
    captured = capfd.readouterr()
    return json.loads(captured.out), captured.err


def check(result):
    assert [act["act"] for act in result["acts"]] == list("abcdefgh")
    facts = {act["act"]: " ".join(act["facts"]) for act in result["acts"]}
    assert "none is there" in facts["b"]
    assert "the script with one byte changed: measurement: got" in facts["c"]
    assert "the CAS released the keys of: data, out" in facts["c"]
    assert "the two curves are one: 145 losses of each run" in facts["d"]
    assert "equal to the bit" in facts["d"]
    assert "put back in its place" in facts["d"] and "(exit status 24)" in facts["d"]
    assert "appraised the service" in facts["e"]
    assert "equal to the bit" in facts["e"]
    assert "planned for enclaves in which it may take 9 MiB" in facts["f"]
    assert "SIGKILL to part-1" in facts["f"]
    assert "every answer is the whole model's" in facts["f"]
    assert "every decision is the same" in facts["g"]
    assert "one trust domain here" in facts["g"]
    assert "to P0, by mpc_predict.py:" in facts["g"]
    assert "authentication failed" in facts["h"]
    assert result["accuracy"]["served"] == result["accuracy"]["plain"]
    assert result["parts"]["parts"] > 1 and result["parts"]["accuracy"] > 0.9
    assert result["shares"]["images"] > 40
    assert result["shares"]["received"]["D"] < 1000


def test_the_story_on_the_bundled_digits(capfd, tmp_path, warm_home):
    load_digests(Home.open(warm_home))  # which other tests have read
    result, shown = run_demo(capfd, "--keep", str(tmp_path / "kept"))
    check(result)
    assert result["accuracy"]["served"] > 0.95
    assert "protects nothing against the owner" in shown
    assert {"digits.vault", "model.vault", "wide.vault", "plan.svg"} <= {
        path.name for path in (tmp_path / "kept").iterdir()
    }


@pytest.mark.slow  # the other one takes a minute already
def test_the_story_on_mnist_without_a_sandbox(capfd, mnist, monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(sandbox, "bubblewrap", lambda: None)
    result, shown = run_demo(capfd, "--data", str(mnist))
    check(result)
    assert "no working bubblewrap" in shown
    assert "no sandbox" in result["acts"][2]["protected"]
    # ONNX Runtime leaves the time and the name of a session of its own, as soon as it is imported.
    assert [path for path in tmp_path.iterdir() if path not in (mnist, tmp_path / ".ses")] == []


def test_data_that_is_not_mnist(tmp_path):
    with pytest.raises(UsageError, match="train-images"):
        load_digits(tmp_path)
    for content in (b"", b"\0\0\x08\x03", b"\0\0\x08\x03" + bytes(12) + b"x", b"\0\0\x09\x03" + bytes(12)):
        (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
        with pytest.raises(FormatError):
            load_digits(tmp_path)
