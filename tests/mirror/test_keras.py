"""A Keras `fit` goes on bit for bit after kills; data, metrics, rates and history too. Run with the torch backend."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

for needed in ("keras", "torch"):
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"needs {needed}", allow_module_level=True)

ROOT = Path(__file__).parents[2]


def python(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Keras takes its backend when it is imported: so in a process of its own."""
    environment = {**os.environ, "KERAS_BACKEND": "torch", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children")
def test_killed_trainings_end_as_those_left_alone(tmp_path):
    optimizers = ["sgd", "adam", "adamw"]
    words = ["--kills", "5", "--epochs", "5", "--directory", str(tmp_path)]
    ended = python("-m", "tests.mirror.kills_keras", *optimizers, *words)
    assert ended.returncode == 0, ended.stderr
    said = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [one["optimizer"] for one in said] == optimizers
    for one in said:
        assert one["same"], one
        assert one["kills"] == 5, one
        assert one["lines"] == 40 + 5 + 1


# What the parts below begin with.
BEGIN = """
import keras, numpy as np, pytest
from strongroom import mirror
from strongroom.errors import UsageError
from strongroom.mirror.keras import NO_EPOCH, MirrorCallback, OrderedData
from strongroom.sealed import FileAnchor

rng = np.random.default_rng(0)
images, labels = rng.normal(size=(40, 5)).astype("float32"), rng.integers(0, 2, 40)

def opened(name="m", **more):
    return mirror.open(name, key=bytes(32), anchor=FileAnchor(name + ".anchor"), **more)

def model(units=4, **more):
    layers = [keras.Input((5,)), keras.layers.Dense(units), keras.layers.Dropout(0.5), keras.layers.Dense(1)]
    made = keras.Sequential(layers)
    made.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse", metrics=["mae"], **more)
    return made

def data(size=8, **more):
    return OrderedData((images, labels), size, **more)

def fit(made, mirrored, given, epochs=2, callbacks=(), **more):
    more = {"shuffle": False, "initial_epoch": mirrored.resume(), "verbose": 0, **more}
    return made.fit(given, epochs=epochs, callbacks=[*callbacks, mirrored], **more)

def weights(made):
    return [keras.ops.convert_to_numpy(one).tobytes() for one in [*made.variables, *made.optimizer.variables]]
"""

PARTS = {
    "a batch is a function of seed, epoch and number": """
        one = data(seed=3, transform=lambda batch, rng: (batch[0] + rng.normal(), batch[1]))
        whole = [[one.go_to(epoch)] and [one[i] for i in range(5)] for epoch in (0, 1)]
        assert len(one) == 5 and not np.array_equal(whole[0][0][0], whole[1][0][0])
        one.go_to(1, 3)
        assert len(one) == int(one.num_batches) == 2
        for i in range(2):
            assert all(map(np.array_equal, one[i], whole[1][3 + i]))
        with pytest.raises(IndexError):
            one[2]
        with pytest.raises(UsageError, match="start: 5, wanted 0 to 4"):
            one.go_to(1, 5)
    """,
    "sealed data sets give the batches that they give themselves": """
        from strongroom.data import SealedDataset, seal_arrays
        seal_arrays("s", {"x": images, "y": labels}, key=bytes(32), anchor=FileAnchor("s.anchor"))
        with SealedDataset("s", key=bytes(32), anchor=FileAnchor("s.anchor")) as dataset:
            one = OrderedData(dataset, 8, seed=5)
            one.go_to(2, 1)
            wanted = list(dataset.batches(8, seed=5, epoch=2, start=1))
            assert len(wanted) == len(one) == 4
            for i, batch in enumerate(wanted):
                assert all(map(np.array_equal, one[i], batch))
    """,
    "a fit that keras shuffles is refused": """
        import random
        random.seed(1)
        with opened() as m, pytest.raises(UsageError, match="asked for before batch .*, wanted them in order"):
            given = data()
            fit(model(), MirrorCallback(m, given), given, shuffle=True)
    """,
    "a fit that is not resumed, or elsewhere, is refused": """
        with opened() as m:
            given = data()
            mirrored = MirrorCallback(m, given)
            with pytest.raises(UsageError, match="not resumed, wanted resume"):
                model().fit(given, callbacks=[mirrored], shuffle=False, verbose=0)
            fit(model(), mirrored, given)
            with pytest.raises(UsageError, match="initial_epoch: 0, wanted 2"):
                fit(model(), mirrored, given, initial_epoch=0, epochs=3)
            with pytest.raises(UsageError, match="other data than the callback's"):
                fit(model(), mirrored, data())
    """,
    "another model, optimizer, data or backend is refused": """
        with opened() as m:
            given = data()
            fit(model(), MirrorCallback(m, given), given)
            with pytest.raises(UsageError, match="model: .*kernel is <f4 .5, 3., and the mirror's .* <f4 .5, 4."):
                fit(model(3), MirrorCallback(m, given), given, 3)
            other = model()
            other.compile("adam", "mse", metrics=["mae"])
            with pytest.raises(UsageError, match="optimizer: .* variables, and the mirror holds"):
                fit(other, MirrorCallback(m, given), given, 3)
            with pytest.raises(UsageError, match="data: .*size 4, .*, and the mirror is of .*size 8"):
                MirrorCallback(m, data(4)).resume()
            with pytest.raises(UsageError, match="data: none, and the mirror is of"):
                MirrorCallback(m).resume()
            m.commit(1000, {"other": 1})
            with pytest.raises(UsageError, match="holds no training of Keras"):
                MirrorCallback(m, given).resume()
    """,
    "early stopping goes on and stays stopped": """
        def stop():
            return keras.callbacks.EarlyStopping("loss", mode="max", patience=2, restore_best_weights=True)
        def run(name, every_fit, step):
            keras.utils.set_random_seed(4)
            with opened(name, keep=14) as m:
                given, early, made = data(), stop(), model()
                mirrored = MirrorCallback(m, given, callbacks=[early])
                if step:
                    mirrored.resume(step)
                history = fit(made, mirrored, given, 9, [early])
                return history.history, history.epoch, weights(made), mirrored.resume()
        alone = run("a", 9, None)
        assert alone[3] == NO_EPOCH and 3 <= len(alone[1]) < 9
        again = run("a", 9, None)  # is finished already
        assert again[:3] == alone[:3]
        back = run("a", 9, len(alone[1]) * 5 - 7)
        assert back == alone
        with opened("a") as m:
            assert MirrorCallback(m, data(), callbacks=[stop()]).resume(stopped=False) == len(alone[1])
        with pytest.raises(UsageError, match="callbacks: a CSVLogger, wanted EarlyStopping or ReduceLROnPlateau"):
            MirrorCallback(None, data(), callbacks=[keras.callbacks.CSVLogger("x")])
    """,
    "a fit that was stopped in the middle goes on there": """
        class Stop(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                if self.model.optimizer.iterations == 7:
                    self.model.stop_training = True
        def run(name, callbacks):
            keras.utils.set_random_seed(4)
            with opened(name) as m:
                given, made = data(), model()
                mirrored = MirrorCallback(m, given, every=3)
                history = fit(made, mirrored, given, 3, callbacks)
                return history.history, weights(made), m.step
        alone = run("a", [])
        assert run("b", [Stop()])[2] == 7
        assert run("b", []) == alone
    """,
    "other data is mirrored at the ends of epochs": """
        def run(name, epochs):
            keras.utils.set_random_seed(4)
            with opened(name) as m:
                made = model()
                history = made.fit(
                    images, labels, batch_size=8, epochs=epochs, verbose=0,
                    initial_epoch=(mirrored := MirrorCallback(m)).resume(), callbacks=[mirrored],
                )
                return history.history, weights(made), m.step
        alone = run("a", 4)
        assert run("b", 2)[2] == 2
        assert run("b", 4) == alone
    """,
    "steps in groups and lower precision": """
        def run(name, epochs):
            keras.utils.set_random_seed(4)
            with opened(name) as m:
                keras.config.set_dtype_policy("bfloat16")
                given, made = data(), model(steps_per_execution=1)
                history = fit(made, MirrorCallback(m, given), given, epochs)
                assert made.layers[0].kernel.dtype == "bfloat16"
                return history.history, weights(made), m.step
        alone = run("a", 3)
        run("b", 1)
        assert run("b", 3) == alone
    """,
}


GUIDE = (ROOT / "docs" / "how-to" / "mirror-frameworks.md").read_text()
BLOCKS = dict(re.findall(r"^```python\n# ([a-z.]+)\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL))
PARTS["the example of the guide runs and goes on"] = f"""
with open("common.py", "w") as file:
    file.write({BLOCKS["common.py"]!r})
for _ in range(2):
    exec({BLOCKS["keras"]!r}, {{}})
"""

# Keras asks for NumPy arrays of PyTorch's parameters in a way that NumPy 2 warns of.
KERAS_OWN = "ignore:__array__ implementation:DeprecationWarning"

# Runs each of them in a directory of its own, and says how it went.
END = """
import json, os, sys, traceback
said = {}
for name, part in json.load(open("parts.json")).items():
    os.mkdir(name)
    os.chdir(name)
    try:
        exec(compile(part, name, "exec"), dict(globals()))
        said[name] = ""
    except BaseException:
        said[name] = traceback.format_exc()
    os.chdir("..")
json.dump(said, open("said.json", "w"))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    directory = tmp_path_factory.mktemp("keras")
    (directory / "parts.json").write_text(json.dumps({name: textwrap.dedent(part) for name, part in PARTS.items()}))
    ended = python("-W", "error", "-W", KERAS_OWN, "-c", BEGIN + END, cwd=directory)
    assert ended.returncode == 0, ended.stderr
    return json.loads((directory / "said.json").read_text())


@pytest.mark.parametrize("name", PARTS)
def test_in_a_process_of_keras(said, name):
    assert not said[name], said[name]
