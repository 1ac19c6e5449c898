"""scikit-learn under a mirror: estimators that learn by ``partial_fit``, their state as data and never as a pickle.

::

    with mirror.open("run.mirror", key=key, anchor=anchor) as opened:
        training = Training(opened, scaler=StandardScaler(), model=SGDClassifier(random_state=0))
        for step in range(training.restore(), 1000):
            ...  # partial_fit with the batch of that step
            training.commit()

- The attributes of an estimator are walked: plain values, arrays, generators, and a few helpers known by name. Whatever
  else there is, is refused, so that nothing is left out unseen.
- What comes back is put into the estimators that the program has made. A class is never looked up by a name that comes
  from the mirror, but for the helpers listed here.
- Arrays keep their memory order, and two attributes that are one array stay one: both decide the bits of what follows.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import sklearn
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import (
    IncrementalPCA,
    LatentDirichletAllocation,
    MiniBatchDictionaryLearning,
    MiniBatchNMF,
)
from sklearn.linear_model import (
    PassiveAggressiveClassifier,
    PassiveAggressiveRegressor,
    Perceptron,
    SGDClassifier,
    SGDOneClassSVM,
    SGDRegressor,
)
from sklearn.multioutput import MultiOutputClassifier, MultiOutputRegressor
from sklearn.naive_bayes import BernoulliNB, CategoricalNB, ComplementNB, GaussianNB, MultinomialNB
from sklearn.neural_network import BernoulliRBM, MLPClassifier, MLPRegressor
from sklearn.preprocessing import LabelBinarizer, MaxAbsScaler, MinMaxScaler, StandardScaler

from strongroom.errors import FormatError, UsageError
from strongroom.mirror.mirror import Mirror
from strongroom.mirror.pace import BUDGET
from strongroom.mirror.training import Steps

ESTIMATORS: Final = (
    SGDClassifier, SGDRegressor, SGDOneClassSVM, Perceptron, PassiveAggressiveClassifier, PassiveAggressiveRegressor,
    MLPClassifier, MLPRegressor, BernoulliRBM, MiniBatchKMeans,
    BernoulliNB, CategoricalNB, ComplementNB, GaussianNB, MultinomialNB,
    IncrementalPCA, LatentDirichletAllocation, MiniBatchDictionaryLearning, MiniBatchNMF,
    StandardScaler, MinMaxScaler, MaxAbsScaler, MultiOutputClassifier, MultiOutputRegressor,
)  # fmt: skip
"""The classes that can be mirrored; a subclass may hold more than is known, and is none of them."""


def _helpers() -> dict[str, type]:
    from sklearn.neural_network import _stochastic_optimizers as optimizers

    found = (*ESTIMATORS, LabelBinarizer, optimizers.AdamOptimizer, optimizers.SGDOptimizer)
    return {_name(one): one for one in found}


def _name(one: type) -> str:
    return f"{one.__module__}.{one.__qualname__}"


_HELPERS: Final = _helpers()

_MAX_GAPS: Final = 16  # times the bytes of an array that is a part of a larger one

# Made anew from the parameters by every partial_fit.
_DERIVED: Final = frozenset({"_loss_function_"})


def pack(estimator: Any, name: str = "estimator") -> dict[str, Any]:
    """The whole state of an estimator, as a commit takes it; arrays in C order are not copied.

    Raises:
        UsageError: its class is none of `ESTIMATORS`; an attribute that cannot be kept, by name.
    """
    return _pack_all({name: estimator})[name]


def _pack_all(estimators: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    packer, packed = _Packer(), {}
    for name, estimator in estimators.items():
        _check_class(estimator, name)
        state = {key: packer.value(value, f"{name}.{key}", 0) for key, value in _attributes(estimator).items()}
        packed[name] = {"class": _name(type(estimator)), "version": str(sklearn.__version__), "state": state}
    packer.check()
    return packed


def unpack(estimator: Any, packed: Mapping[str, Any], name: str = "estimator") -> None:
    """Make an estimator what `pack` was given. A `RandomState` that is a parameter of it goes on as the same object.

    Raises:
        UsageError: it is of another class, has other parameters, or the state is of another version of scikit-learn.
        FormatError: it is not what `pack` gives.
    """
    _unpack(estimator, packed, name, _Unpacker())


def _unpack(estimator: Any, packed: Mapping[str, Any], name: str, unpacker: _Unpacker) -> None:
    _check_class(estimator, name)
    if not isinstance(packed, Mapping) or not isinstance(packed.get("state"), Mapping):
        raise FormatError(f"{name}: {type(packed).__name__}, wanted what pack gives")
    if packed.get("class") != _name(type(estimator)):
        raise UsageError(f"{name}: a {_name(type(estimator))}, and the mirror holds a {packed.get('class')}")
    if packed.get("version") != sklearn.__version__:
        raise UsageError(
            f"{name}: scikit-learn {sklearn.__version__}, and the mirror is of {packed.get('version')}",
            hint="go on with that version: attributes mean other things in another",
        )
    parameters = estimator.get_params(deep=False)
    for key, value in parameters.items():
        if isinstance(value, np.random.RandomState):
            unpacker.generators[f"{name}.{key}"] = value
    state = {str(key): unpacker.value(value, f"{name}.{key}") for key, value in packed["state"].items()}
    for key, value in parameters.items():
        if isinstance(value, (bool, int, float, str, type(None))) and not _equal(value, state.get(key)):
            raise UsageError(f"{name}: {key} is {value!r}, and the mirror's {state.get(key)!r}")
    vars(estimator).clear()
    vars(estimator).update(state)


def _check_class(estimator: Any, name: str) -> None:
    if type(estimator) not in ESTIMATORS:
        raise UsageError(
            f"{name}: a {type(estimator).__name__}, wanted one of {', '.join(one.__name__ for one in ESTIMATORS)}"
        )


def _equal(one: object, other: object) -> bool:
    return bool(one == other) or (one != one and other != other)  # NaN is a parameter too


def _attributes(holder: Any) -> dict[str, Any]:
    return {key: value for key, value in vars(holder).items() if key not in _DERIVED}


class _Packer:
    """Values as those of a mirror. What it adds to them is a tuple whose first part says what it is."""

    def __init__(self) -> None:
        self._arrays: dict[tuple[Any, ...], tuple[str, npt.NDArray[Any]]] = {}
        self._generators: dict[int, str] = {}

    def value(self, value: Any, path: str, depth: int) -> Any:
        if depth > 16:
            raise UsageError(f"{path}: deeper than 16 levels")
        kind = type(value)
        if value is None or kind in (bool, int, float, str, bytes) or isinstance(value, np.generic):
            return value
        if kind is np.ndarray:
            return self._array(value, path)
        if kind is list:
            if value and all(type(part) is type(value[0]) and isinstance(part, np.generic) for part in value):
                return ("scalars", np.array(value))  # a loss curve: one array, not one for each step
            return [self.value(part, f"{path}[{i}]", depth + 1) for i, part in enumerate(value)]
        if kind is tuple:
            return ("tuple", [self.value(part, f"{path}[{i}]", depth + 1) for i, part in enumerate(value)])
        if kind is dict:
            return {key: self.value(part, f"{path}[{key!r}]", depth + 1) for key, part in value.items()}
        if kind is np.random.RandomState:
            if value is _global():
                return ("random", None)
            if id(value) in self._generators:
                return ("same", self._generators[id(value)])
            self._generators[id(value)] = path
            return ("random", value.get_state(legacy=True))
        if _HELPERS.get(_name(kind)) is kind:
            attributes = _attributes(value)
            return (
                "object",
                _name(kind),
                {key: self.value(part, f"{path}.{key}", depth + 1) for key, part in attributes.items()},
            )
        raise UsageError(
            f"{path}: a {kind.__name__}, wanted plain values, arrays, a RandomState or what scikit-learn keeps there",
            hint="pass parameters as numbers and text",
        )

    def _array(self, array: npt.NDArray[Any], path: str) -> Any:
        gaps = not (array.flags.c_contiguous or array.flags.f_contiguous)
        if gaps and (min(array.strides) <= 0 or _extent(array) > _MAX_GAPS * array.nbytes):
            raise UsageError(f"{path}: an array of strides {array.strides}, wanted one without large gaps")
        key = (array.__array_interface__["data"][0], array.shape, array.strides, array.dtype.str)
        if array.size:
            if key in self._arrays:
                return ("same", self._arrays[key][0])
            self._arrays[key] = (path, array)
        if gaps:
            return ("gaps", np.ascontiguousarray(array), array.strides)
        return array if array.flags.c_contiguous else ("columns", array.T)

    def check(self) -> None:
        """Arrays that lie over one another in part would not do so when they come back."""
        found = sorted((key[0], _extent(array), path) for key, (path, array) in self._arrays.items())
        for (start, size, path), (other, _, second) in itertools.pairwise(found):
            if other < start + size:
                raise UsageError(f"{second}: shares memory with {path}, wanted an array of its own")


class _Unpacker:
    """What `_Packer` was given. Arrays and generators are known by the path they were found at.

    Attributes:
        generators: by path; those that are there before are set, not replaced.
    """

    def __init__(self) -> None:
        self._arrays: dict[str, npt.NDArray[Any]] = {}
        self._made: set[str] = set()
        self.generators: dict[str, np.random.RandomState] = {}

    def value(self, value: Any, path: str) -> Any:
        if isinstance(value, np.ndarray):
            self._arrays[path] = value
            return value
        if isinstance(value, list):
            return [self.value(part, f"{path}[{i}]") for i, part in enumerate(value)]
        if isinstance(value, dict):
            return {key: self.value(part, f"{path}[{key!r}]") for key, part in value.items()}
        if not isinstance(value, tuple):
            return value
        match value:
            case ("tuple", list(parts)):
                return tuple(self.value(part, f"{path}[{i}]") for i, part in enumerate(parts))
            case ("scalars", np.ndarray() as array):
                return list(array)
            case ("columns", np.ndarray() as array):
                self._arrays[path] = array.T
                return array.T
            case ("gaps", np.ndarray() as array, tuple(strides)):
                self._arrays[path] = _with_gaps(array, strides, path)
                return self._arrays[path]
            case ("same", str(first)) if first in self._arrays:
                return self._arrays[first]
            case ("same", str(first)) if first in self._made:
                return self.generators[first]
            case ("random", None):
                return _global()
            case ("random", tuple(state)):
                self._made.add(path)
                made = self.generators.setdefault(path, np.random.RandomState())
                made.set_state(state)
                return made
            case ("object", str(name), dict(attributes)) if name in _HELPERS:
                helper: Any = object.__new__(_HELPERS[name])
                vars(helper).update({key: self.value(part, f"{path}.{key}") for key, part in attributes.items()})
                return helper
        raise FormatError(f"{path}: {str(value)[:60]}, wanted what pack gives")


def _extent(array: npt.NDArray[Any]) -> int:
    """Bytes from its first element to behind its last; strides are positive."""
    reach = sum((count - 1) * stride for count, stride in zip(array.shape, array.strides, strict=True))
    return reach + array.itemsize if array.size else 0


def _with_gaps(array: npt.NDArray[Any], strides: tuple[int, ...], path: str) -> npt.NDArray[Any]:
    if len(strides) != array.ndim or any(not 0 < stride <= _MAX_GAPS * array.nbytes for stride in strides):
        raise FormatError(f"{path}: strides {strides} of an array of {array.nbytes} bytes")
    reach = sum((count - 1) * stride for count, stride in zip(array.shape, strides, strict=True))
    room = np.zeros(reach + array.itemsize, np.uint8)
    made: npt.NDArray[Any] = np.ndarray(array.shape, array.dtype, room.data, strides=strides)
    made[...] = array
    return made


def _global() -> np.random.RandomState:
    """The generator of ``np.random`` itself, which estimators without a seed draw from."""
    found = sklearn.utils.check_random_state(None)
    assert isinstance(found, np.random.RandomState)  # noqa: S101  # that is what it is for
    return found


class Training(Steps):
    """A training of estimators that is mirrored.

    Args:
        mirror: that is open.
        every: steps between two commits, or ``auto``: as often as `budget` allows.
        budget: the share of the time that training may wait for commits.
        estimators: by name; each is of a class of `ESTIMATORS`.

    The global random generators of NumPy and Python are kept too.
    """

    def __init__(
        self, mirror: Mirror, *, every: int | Literal["auto"] = 1, budget: float = BUDGET, **estimators: Any
    ) -> None:
        for name, estimator in estimators.items():
            _check_class(estimator, name)
        super().__init__(mirror, every, budget)
        self._estimators = estimators

    def state(self) -> dict[str, Any]:
        """The whole state as it is now. Raises UsageError as `pack`."""
        version, words, gauss = random.getstate()
        return {
            "estimators": _pack_all(self._estimators),
            "random": {
                "python": (version, np.array(words, np.uint64), gauss),
                "numpy": _global().get_state(legacy=True),
            },
            "values": self.values,
        }

    def restore(self, step: int | None = None) -> int:
        """Put the estimators and generators back to the newest commit, or to an older one that is kept; its step.

        0 if there is none yet: then nothing is changed.

        Raises:
            UsageError: the commit holds other estimators, or as `unpack`.
            as `Mirror.restore`.
        """
        restored = self._mirror.restore(step)
        if restored is None:
            return 0
        try:
            if "estimators" not in restored or "random" not in restored:
                raise UsageError("mirror: holds no estimators, wanted one that this Training committed")
            saved, generators, values = restored["estimators"], restored["random"], restored["values"]
        finally:
            restored.close()
        if saved.keys() != self._estimators.keys():
            raise UsageError(
                f"estimators: {', '.join(self._estimators)}, and the mirror holds {', '.join(saved)}",
                hint="name the same ones, or start another mirror",
            )
        unpacker = _Unpacker()
        for name, estimator in self._estimators.items():
            _unpack(estimator, saved[name], name, unpacker)
        version, words, gauss = generators["python"]
        random.setstate((version, tuple(int(word) for word in words), gauss))
        _global().set_state(generators["numpy"])
        self.step, self.values = restored.step, values
        return self.step
