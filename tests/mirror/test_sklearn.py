"""Estimators that learn by partial_fit go on, bit for bit, after a kill; what cannot be kept is refused by name."""

import os
import random
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn import cluster, decomposition, linear_model, naive_bayes, neural_network, preprocessing
from sklearn.multioutput import MultiOutputRegressor
from sklearn.pipeline import make_pipeline

from strongroom import mirror
from strongroom.errors import FormatError, UsageError
from strongroom.mirror import sklearn as adapter
from strongroom.sealed import FileAnchor

KEY = bytes(range(32))
STEPS = 30
BATCH = 16
CLASSES = [0, 1, 2]

KILLED = {
    "sgd": lambda: linear_model.SGDClassifier(loss="log_loss", learning_rate="invscaling", eta0=0.1, average=5),
    "mlp": lambda: neural_network.MLPClassifier((8,), random_state=np.random.RandomState(5)),
    "mlp-momentum": lambda: neural_network.MLPClassifier((8,), solver="sgd", learning_rate="invscaling"),
    "kmeans": lambda: cluster.MiniBatchKMeans(4, random_state=3, reassignment_ratio=0.5, n_init=2),
}


def batch(step: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(step)
    labels = rng.integers(0, 3, BATCH)
    return rng.normal(size=(BATCH, 6)) + labels[:, None], labels


def learn(estimator: Any, step: int) -> None:
    inputs, labels = batch(step)
    if hasattr(estimator, "predict_proba") or isinstance(estimator, linear_model.SGDClassifier):
        estimator.partial_fit(inputs, labels, classes=CLASSES)
    else:
        estimator.partial_fit(inputs, labels)


def bits(value: Any) -> Any:
    """Everything that is in an estimator, comparable bit for bit."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.strides, value.tobytes()
    if isinstance(value, np.generic):
        return value.dtype.str, value.tobytes()
    if isinstance(value, np.random.RandomState):
        return [bits(part) for part in value.get_state()]
    if isinstance(value, (list, tuple)):
        return type(value).__name__, [bits(part) for part in value]
    if isinstance(value, dict):
        return {key: bits(part) for key, part in value.items()}
    if hasattr(value, "__dict__"):
        return type(value).__name__, {key: bits(part) for key, part in vars(value).items() if key != "_loss_function_"}
    return type(value).__name__, value


def train(directory: Path, kind: str, die_at: int | None = None) -> tuple[Any, Any]:
    random.seed(1)
    np.random.seed(2)
    estimator, scaler = KILLED[kind](), preprocessing.StandardScaler()
    with mirror.open(directory / "m", key=KEY, anchor=FileAnchor(directory / "a"), durability="process") as opened:
        training = adapter.Training(opened, every=2, model=estimator, scaler=scaler)
        for step in range(training.restore(), STEPS):
            learn(scaler, step)
            learn(estimator, step)
            if step == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            training.commit(force=step == STEPS - 1, drawn=random.random())  # noqa: S311
        return bits(estimator), bits(scaler)


def in_a_fork(function: Any, *arguments: Any) -> int:
    """The wait status of a child that called it."""
    child = os.fork()
    if not child:
        code = 1
        try:
            function(*arguments)
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitpid(child, 0)[1]


def run(directory: Path, kind: str) -> None:
    """Both trainings, each in forks of this process, which itself has never started OpenMP's threads."""

    def finish(name: str) -> None:
        (directory / f"{name}.bits").write_text(repr(train(directory / name, kind)))

    for name in ("alone", "killed"):
        (directory / name).mkdir()
    assert in_a_fork(finish, "alone") == 0
    for die_at in (0, 5, 6, 19):
        status = in_a_fork(train, directory / "killed", kind, die_at)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    for _ in range(2):  # the second time it is finished already
        assert in_a_fork(finish, "killed") == 0
        assert (directory / "killed.bits").read_text() == (directory / "alone.bits").read_text()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children")
@pytest.mark.parametrize("kind", KILLED)
def test_a_killed_training_ends_as_one_left_alone(tmp_path, kind):
    command = [sys.executable, "-W", "error", __file__, str(tmp_path), kind]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


PLAIN = [
    linear_model.SGDRegressor(average=True),
    linear_model.SGDOneClassSVM(average=True),
    linear_model.Perceptron(class_weight={0: 1.0, 1: 2.0, 2: 1.0}),
    neural_network.MLPRegressor(hidden_layer_sizes=(5, 3)),
    neural_network.BernoulliRBM(7, random_state=1),
    naive_bayes.GaussianNB(),
    naive_bayes.MultinomialNB(),
    naive_bayes.BernoulliNB(),
    naive_bayes.ComplementNB(),
    naive_bayes.CategoricalNB(min_categories=20),
    decomposition.IncrementalPCA(3),
    decomposition.LatentDirichletAllocation(4),
    decomposition.MiniBatchNMF(3),
    decomposition.MiniBatchDictionaryLearning(3, random_state=1),
    preprocessing.MinMaxScaler((0, 2)),
    preprocessing.MaxAbsScaler(),
]


@pytest.mark.parametrize("estimator", PLAIN, ids=lambda one: type(one).__name__)
def test_every_known_estimator_goes_on_from_a_commit(tmp_path, estimator):
    def step(one: Any, number: int) -> None:
        inputs, labels = batch(number)
        inputs = np.abs(inputs).round() if not isinstance(one, naive_bayes.GaussianNB) else inputs
        if isinstance(one, (naive_bayes._BaseNB, linear_model.Perceptron)):
            one.partial_fit(inputs, labels, classes=CLASSES)
        else:
            one.partial_fit(inputs, labels)

    from sklearn.base import clone

    fresh = clone(estimator)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # convergence is not asked for
        for number in range(3):
            step(estimator, number)
        with mirror.open(tmp_path / "m", key=KEY, anchor=FileAnchor(tmp_path / "a")) as opened:
            adapter.Training(opened, one=estimator).commit()
            step(estimator, 3)
            assert adapter.Training(opened, one=fresh).restore() == 1
        step(fresh, 3)
    assert bits(fresh) == bits(estimator)


def test_arrays_and_generators_that_are_one_stay_one():
    generator = np.random.RandomState(3)
    model = neural_network.MLPClassifier((4,), random_state=generator)
    learn(model, 0)
    model._best_coefs = model.coefs_
    packed = adapter.pack(model)
    other = neural_network.MLPClassifier((4,), random_state=np.random.RandomState(9))
    mine = other.random_state
    adapter.unpack(other, packed)
    assert other._best_coefs[0] is other.coefs_[0]
    assert other._random_state is other.random_state is mine
    assert bits(other) == bits(model)


def test_a_class_that_is_not_known_is_refused():
    class Own(linear_model.SGDClassifier):
        pass

    with pytest.raises(UsageError, match="model: a Own, wanted one of SGDClassifier, "):
        adapter.pack(Own(), "model")
    with pytest.raises(UsageError, match="a Pipeline, wanted one of"):
        adapter.pack(make_pipeline(preprocessing.StandardScaler()))


def test_an_attribute_that_cannot_be_kept_is_refused_by_name():
    model = linear_model.SGDClassifier()
    model.callback = print
    with pytest.raises(UsageError, match=r"estimator\.callback: a builtin_function_or_method, wanted plain values"):
        adapter.pack(model)
    del model.callback
    model.coef_ = np.zeros((200, 100))[::100, ::50]
    with pytest.raises(UsageError, match=r"estimator\.coef_: an array of strides .*, wanted one without large gaps"):
        adapter.pack(model)
    model.coef_ = np.zeros(8)
    model.more_ = model.coef_[2:5]
    with pytest.raises(UsageError, match=r"estimator\.more_: shares memory with estimator\.coef_"):
        adapter.pack(model)
    nested = MultiOutputRegressor(make_pipeline(linear_model.SGDRegressor()))
    with pytest.raises(UsageError, match=r"estimator\.estimator: a Pipeline, wanted"):
        adapter.pack(nested)


def test_another_class_parameter_or_version_is_refused():
    model = linear_model.SGDClassifier(alpha=0.5)
    learn(model, 0)
    packed = adapter.pack(model)
    with pytest.raises(UsageError, match=r"estimator: a sklearn.*Perceptron, and the mirror holds a sklearn.*SGDC"):
        adapter.unpack(linear_model.Perceptron(), packed)
    with pytest.raises(UsageError, match=r"estimator: alpha is 0\.25, and the mirror's 0\.5"):
        adapter.unpack(linear_model.SGDClassifier(alpha=0.25), packed)
    with pytest.raises(UsageError, match=r"scikit-learn .*, and the mirror is of 0\.1"):
        adapter.unpack(model, {**packed, "version": "0.1"})


def test_a_class_named_by_the_mirror_is_not_imported():
    model = neural_network.MLPClassifier((4,))
    learn(model, 0)
    packed = adapter.pack(model)
    packed["state"]["_optimizer"] = ("object", "subprocess.Popen", {"args": ["true"]})
    before = bits(model)
    with pytest.raises(FormatError, match=r"estimator\._optimizer: .*subprocess"):
        adapter.unpack(model, packed)
    assert bits(model) == before  # and nothing was changed


def test_other_names_are_refused(tmp_path):
    with mirror.open(tmp_path / "m", key=KEY, anchor=FileAnchor(tmp_path / "a")) as opened:
        adapter.Training(opened, scaler=preprocessing.MinMaxScaler()).commit()
        with pytest.raises(UsageError, match="estimators: model, and the mirror holds scaler"):
            adapter.Training(opened, model=preprocessing.MinMaxScaler()).restore()
        opened.commit(2, {"other": 1})
        with pytest.raises(UsageError, match="holds no estimators"):
            adapter.Training(opened, model=preprocessing.MinMaxScaler()).restore()


def test_the_example_of_the_guide_runs_and_goes_on(tmp_path):
    guide = (Path(__file__).parents[2] / "docs" / "how-to" / "mirror-frameworks.md").read_text()
    blocks = dict(re.findall(r"^```python\n# ([a-z.]+)\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL))
    (tmp_path / "common.py").write_text(blocks["common.py"])
    (tmp_path / "example.py").write_text(blocks["sklearn"])
    for _ in range(2):
        ended = subprocess.run(
            [sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2])
