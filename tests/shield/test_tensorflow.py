"""TensorFlow on a writable mount: its checkpoints, models and records."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.posix.server import served

# Not imported: no other test of this process is to run with it.
if find_spec("tensorflow") is None:
    pytest.skip("TensorFlow is not installed: pip install 'strongroom[tensorflow]'", allow_module_level=True)


def ran(code: str, point: Path) -> str:
    """What Python code prints, in a process of its own, in the mount."""
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, cwd=point, capture_output=True, text=True, env=os.environ | quiet)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_checkpoints(places: tuple[Path, Path]) -> None:
    with served(*places) as server:
        said = ran(
            """
            import os, tensorflow as tf
            state = tf.train.Checkpoint(w=tf.Variable(tf.range(100_000.0)), step=tf.Variable(0))
            manager = tf.train.CheckpointManager(state, "checkpoints", max_to_keep=2)
            for step in range(1, 5):
                state.step.assign(step)
                manager.save()
            print(*sorted(name for name in os.listdir("checkpoints") if name.endswith(".index")))
            """,
            server.point,
        )
        assert said == "ckpt-3.index ckpt-4.index"
    with served(*places) as server:
        said = ran(
            """
            import tensorflow as tf
            state = tf.train.Checkpoint(w=tf.Variable(tf.zeros(100_000)), step=tf.Variable(0))
            state.restore(tf.train.latest_checkpoint("checkpoints")).assert_consumed()
            print(int(state.step), int(tf.reduce_all(state.w == tf.range(100_000.0))))
            """,
            server.point,
        )
        assert said == "4 1"


def test_models_and_records(places: tuple[Path, Path]) -> None:
    with served(*places) as server:
        said = ran(
            """
            import tensorflow as tf
            module = tf.Module()
            module.w = tf.Variable(3.0)
            module.f = tf.function(lambda x: x * module.w, input_signature=[tf.TensorSpec([], tf.float32)])
            tf.saved_model.save(module, "model")
            with tf.io.TFRecordWriter("data.tfrecord") as writer:
                for number in range(1000):
                    writer.write(str(number).encode() * 10)
            print("saved")
            """,
            server.point,
        )
        assert said == "saved"
    with served(*places) as server:
        said = ran(
            """
            import tensorflow as tf
            records = [record.numpy() for record in tf.data.TFRecordDataset("data.tfrecord")]
            assert records == [str(number).encode() * 10 for number in range(1000)]
            loaded = tf.saved_model.load("model")  # holds the variables
            print(float(loaded.f(tf.constant(2.0))))
            """,
            server.point,
        )
        assert said == "6.0"
