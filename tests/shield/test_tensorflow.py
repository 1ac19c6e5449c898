"""TensorFlow on a writable mount: its checkpoints, models and records."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.posix.server import served

# Not imported: no other test of this process is to run with it.
if find_spec("tensorflow") is None:
    pytest.skip("TensorFlow is not installed: pip install 'strongroom[tensorflow]'", allow_module_level=True)


def ran(code: str, point: Path) -> dict[str, Any]:
    """What Python code prints as JSON, in a process of its own, in the mount."""
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=point, capture_output=True, text=True, env=os.environ | quiet)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


WRITES = """
import json, os, tensorflow as tf
state = tf.train.Checkpoint(w=tf.Variable(tf.range(100_000.0)), step=tf.Variable(0))
manager = tf.train.CheckpointManager(state, "checkpoints", max_to_keep=2)
for step in range(1, 5):
    state.step.assign(step)
    manager.save()
module = tf.Module()
module.w = tf.Variable(3.0)
module.f = tf.function(lambda x: x * module.w, input_signature=[tf.TensorSpec([], tf.float32)])
tf.saved_model.save(module, "model")
with tf.io.TFRecordWriter("data.tfrecord") as writer:
    for number in range(1000):
        writer.write(str(number).encode() * 10)
print(json.dumps({"kept": sorted(name for name in os.listdir("checkpoints") if name.endswith(".index"))}))
"""
READS = """
import json, tensorflow as tf
state = tf.train.Checkpoint(w=tf.Variable(tf.zeros(100_000)), step=tf.Variable(0))
state.restore(tf.train.latest_checkpoint("checkpoints")).assert_consumed()
loaded = tf.saved_model.load("model")  # holds the variables
records = [record.numpy() for record in tf.data.TFRecordDataset("data.tfrecord")]
print(json.dumps({
    "step": int(state.step),
    "weights": bool(tf.reduce_all(state.w == tf.range(100_000.0))),
    "answer": float(loaded.f(tf.constant(2.0))),
    "records": records == [str(number).encode() * 10 for number in range(1000)],
}))
"""


@pytest.fixture(scope="module")
def told(fuse: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By one process that writes, and by another that reads from a second mount: TensorFlow takes seconds to start."""
    places = tmp_path_factory.mktemp("v"), tmp_path_factory.mktemp("m")
    found: dict[str, Any] = {}
    for code in (WRITES, READS):
        with served(*places) as server:
            found |= ran(code, server.point)
    return found


def test_checkpoints(told: dict[str, Any]) -> None:
    assert told["kept"] == ["ckpt-3.index", "ckpt-4.index"]
    assert (told["step"], told["weights"]) == (4, True)


def test_models_and_records(told: dict[str, Any]) -> None:
    assert (told["answer"], told["records"]) == (6.0, True)
