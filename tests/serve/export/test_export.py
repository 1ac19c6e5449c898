"""Models of each framework become ONNX that answers as they do, or are refused."""

import importlib.util
import json
import sys
import types
import warnings

import numpy as np
import onnx
import pytest

from strongroom.cli.main import main
from strongroom.errors import FormatError, MissingDependencyError, ModelFormatError, UsageError
from strongroom.serve.export import export
from strongroom.serve.stage import Stage
from tests.serve.graph.world import residual

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")


class Scorer(torch.nn.Module):
    """Two inputs by name, one of them whole numbers, and two answers by name."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(10, 4)
        self.last = torch.nn.Linear(4, 3)

    def forward(self, ids, mask):
        rows = self.table(ids) * mask[..., None]
        return {"rows": rows, "scores": self.last(torch.relu(rows.sum(1)))}


def examples():
    return {"ids": np.array([[1, 2, 9]], np.int64), "mask": np.array([[1, 1, 0]], np.float32)}


def test_a_module_of_pytorch(tmp_path):
    model, path = Scorer(), tmp_path / "model.onnx"
    done = export(model, path, example=examples())
    assert (done.framework, done.notes, model.training) == ("PyTorch", (), True)
    assert done.difference < 1e-5
    assert {info.name: (info.datatype, info.shape) for info in done.inputs} == {
        "ids": ("INT64", (-1, 3)),
        "mask": ("FP32", (-1, 3)),
    }
    assert [info.name for info in done.outputs] == ["rows", "scores"]
    stage = Stage.load(path.read_bytes(), name="m")
    assert stage.digest == done.digest
    inputs = {"ids": np.arange(6, dtype=np.int64).reshape(2, 3), "mask": np.ones((2, 3), np.float32)}
    with torch.no_grad():
        wanted = model(*map(torch.from_numpy, inputs.values()))
    for got, each in zip(stage.infer(inputs).values(), wanted.values(), strict=True):
        np.testing.assert_allclose(got, each.numpy(), atol=1e-5)


class Named(torch.nn.Module):
    """Its answers are called as its parameters and inputs are, and as nothing else is."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(3))
        self.embedding = torch.nn.Embedding(4, 3)

    def forward(self, ids):
        found = self.embedding(ids) * self.scale
        return {"embedding": found, "scale": found + 1, "ids": found + 2, "": found + 3, "logits": found + 4}


def test_answers_have_their_names_where_nothing_else_has(tmp_path):
    done = export(Named(), tmp_path / "model.onnx", example={"ids": np.array([[1, 2, 3]], np.int64)})
    names = [info.name for info in done.outputs]
    assert names[-1] == "logits"
    assert len({*names, "ids", ""}) == 7
    assert done.difference < 1e-5


@pytest.mark.slow
def test_an_exported_program_and_its_file(tmp_path):
    program = torch.export.export(torch.nn.Linear(4, 2), (torch.rand(3, 4),))
    done = export(program, tmp_path / "one.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, tmp_path / "model.pt2")
    assert export(tmp_path / "model.pt2", tmp_path / "two.onnx").inputs[0].shape == done.inputs[0].shape == (3, 4)


class Random(torch.nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


class Branching(torch.nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_what_does_not_answer_as_the_model_does_is_not_written(tmp_path):
    before = tmp_path / "model.onnx"
    before.write_bytes(b"as it was")
    with pytest.raises(ModelFormatError, match=r"ONNX Runtime's answers are .* away from PyTorch's"):
        export(Random(), before, example=np.zeros((2, 3), np.float32))
    assert before.read_bytes() == b"as it was"
    assert sorted(tmp_path.iterdir()) == [before]


def test_what_cannot_be_exported_says_why(tmp_path, capfd):
    with pytest.raises(ModelFormatError, match=r"PyTorch cannot export it: .*data-dependent") as refused:
        export(Branching(), tmp_path / "model.onnx", example=torch.ones(2, 3))
    assert "For more" not in refused.value.message  # one sentence, not the first of its advice
    with pytest.raises(UsageError, match="example: missing"):
        export(Scorer(), tmp_path / "model.onnx")
    with pytest.raises(UsageError, match="does not run on it"):
        export(torch.nn.Linear(4, 2), tmp_path / "model.onnx", example=np.zeros((2, 5), np.float32))
    with pytest.raises(UsageError, match="got dict, wanted one of PyTorch"):
        export({}, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_files_that_run_code_are_not_read(tmp_path):
    torch.save(Scorer(), tmp_path / "model.pt")
    with pytest.raises(FormatError, match="a Python pickle by its name") as caught:
        export(tmp_path / "model.pt", tmp_path / "model.onnx")
    assert "strongroom.export(model" in caught.value.hint
    (tmp_path / "model.pt").rename(tmp_path / "model.pt2")
    with pytest.raises(ModelFormatError):
        export(tmp_path / "model.pt2", tmp_path / "model.onnx")
    (tmp_path / "model.tflite").write_bytes(b"x")
    with pytest.raises(FormatError, match="of no kind that is known"):
        export(tmp_path / "model.tflite", tmp_path / "model.onnx")
    with pytest.raises(UsageError, match="there is no"):
        export(tmp_path / "none.pt2", tmp_path / "model.onnx")


def test_an_onnx_file_is_put_in_one_piece(tmp_path):
    made, _ = residual()
    onnx.save(made, tmp_path / "in.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    done = export(tmp_path / "in.onnx", tmp_path / "out.onnx", opset=18)
    assert (done.framework, done.difference) == ("ONNX", None)
    assert onnx.load(tmp_path / "out.onnx").opset_import[0].version == 18
    assert done.bytes > (tmp_path / "in.onnx").stat().st_size


@pytest.mark.slow
def test_a_keras_model_and_its_file(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "torch":
        pytest.skip("Keras was imported with another backend")
    with torch.no_grad():
        first, second = keras.Input((4,), name="first"), keras.Input((3,), name="second")
        both = keras.layers.Concatenate()([first, second])
        model = keras.Model([first, second], keras.layers.Dense(2, activation="softmax")(both))
    done = export(model, tmp_path / "one.onnx")
    assert (done.framework, [info.shape for info in done.inputs]) == ("Keras", [(-1, 4), (-1, 3)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(tmp_path / "model.keras")
    assert export(tmp_path / "model.keras", tmp_path / "two.onnx").bytes == done.bytes


def test_scikit_learn_and_tensorflow_want_their_converters(tmp_path, monkeypatch):
    sklearn = pytest.importorskip("sklearn.linear_model")
    for name in ("skl2onnx", "tf2onnx", "tensorflow"):
        monkeypatch.setitem(sys.modules, name, None)
    rows = np.random.default_rng(0).standard_normal((20, 3))
    model = sklearn.LogisticRegression().fit(rows, rows[:, 0] > 0)
    with pytest.raises(MissingDependencyError, match="skl2onnx: is not installed"):
        export(model, tmp_path / "model.onnx")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/saved_model.pb").write_bytes(b"")
    with pytest.raises(MissingDependencyError, match="tensorflow: is not installed"):
        export(tmp_path / "saved", tmp_path / "model.onnx")


@pytest.mark.skipif(importlib.util.find_spec("skl2onnx") is None, reason="skl2onnx is not installed")
def test_classifiers_of_scikit_learn(tmp_path):
    sklearn = pytest.importorskip("sklearn.linear_model")
    rows = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)
    labels = (rows[:, 0] > 0).astype(int)
    done = export(sklearn.LogisticRegression().fit(rows, labels), tmp_path / "model.onnx")
    assert [info.datatype for info in done.outputs] == ["INT64", "FP32"]
    done = export(sklearn.LogisticRegression().fit(rows, np.array(["a", "b"])[labels]), tmp_path / "text.onnx")
    assert ([info.datatype for info in done.outputs], len(done.notes)) == (["FP32"], 1)


@pytest.mark.skipif(importlib.util.find_spec("skl2onnx") is None, reason="skl2onnx is not installed")
@pytest.mark.parametrize(
    ("name", "options"),
    [("HistGradientBoostingClassifier", {"max_iter": 3}), ("IsolationForest", {"n_estimators": 3, "random_state": 0})],
)
def test_trees_of_scikit_learn(tmp_path, name, options):
    ensemble = pytest.importorskip("sklearn.ensemble")
    rows = np.random.default_rng(0).standard_normal((60, 3)).astype(np.float32)
    model = getattr(ensemble, name)(**options).fit(rows, (rows[:, 0] > 0).astype(int))
    done = export(model, tmp_path / "model.onnx")
    stage = Stage.load((tmp_path / "model.onnx").read_bytes(), name="m")
    answers = stage.infer({done.inputs[0].name: rows})
    assert np.array_equal(answers[done.outputs[0].name].ravel(), model.predict(rows))


def test_the_verb_runs_the_users_program_and_takes_what_it_names(tmp_path, capfd):
    program = tmp_path / "train.py"
    program.write_text("import torch\nprint('training')\ndef model():\n    return torch.nn.Linear(4, 2)\n")
    (tmp_path / "x.json").write_text("[[1, 2, 3, 4.5]]")
    words = ["export", f"{program}:model", "--output", str(tmp_path / "m.onnx"), "--example", str(tmp_path / "x.json")]
    assert main([*words, "--json"]) == 0
    shown = capfd.readouterr()
    assert "training" in shown.err
    out = json.loads(shown.out)
    assert (out["framework"], out["inputs"][0]["shape"]) == ("PyTorch", [-1, 4])
    assert main(words) == 2
    assert "exists" in capfd.readouterr().err
    (tmp_path / "n.onnx").write_bytes((tmp_path / "m.onnx").read_bytes())
    assert main(["export", f"{tmp_path / 'n.onnx'}", *words[2:4], "--overwrite"]) == 0
    shown = capfd.readouterr()
    assert shown.out.startswith(f"{tmp_path / 'm.onnx'} ")
    assert "takes " in shown.out


@pytest.mark.parametrize(
    ("text", "name", "status"),
    [("x = 1", "model", 2), ("raise ValueError('no')", "model", 10), ("exit()", "model", 2), ("model = 1", "model", 2)],
)
def test_programs_that_make_no_model(tmp_path, capfd, text, name, status):
    (tmp_path / "train.py").write_text(text)
    assert main(["export", f"{tmp_path}/train.py:{name}", "--output", str(tmp_path / "m.onnx")]) == status
    assert capfd.readouterr().err.startswith("strongroom: ")


def test_nothing_of_a_framework_is_imported_for_another(monkeypatch):
    for name in ("keras", "sklearn", "tensorflow"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(UsageError):
        export(types.SimpleNamespace(), "model.onnx")
    assert not {"keras", "sklearn", "tensorflow"} & set(sys.modules)
