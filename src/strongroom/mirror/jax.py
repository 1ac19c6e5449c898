"""JAX pytrees under a mirror: every leaf by its name, put back into a template that the program has made.

::

    state = {"params": params, "opt": optimizer.init(params), "key": jax.random.key(0)}
    with mirror.open("run.mirror", key=key, anchor=anchor) as opened:
        restored = opened.restore()
        if restored is not None:
            state = unpack(state, restored)
        for step in range(0 if restored is None else restored.step, 1000):
            ...  # a step of the training
            opened.commit(step + 1, pack(state))

- A name is the path of keys that JAX gives: ``params/dense/kernel``, ``opt/0/mu/dense/kernel``. It works for any
  registered pytree: dicts, lists, tuples, named tuples (what optax has), dataclasses, modules.
- The mirror holds names and leaves; the structure is the template's alone.
- Random keys come back as keys of the same implementation, Python's numbers as numbers of the same type.

A leaf that is spread over several devices is gathered for a commit, and put back as the template's is laid out. One
that is spread over several processes is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import jax
import numpy as np
import numpy.typing as npt

from strongroom.errors import UsageError
from strongroom.mirror.manifest import Entry
from strongroom.mirror.restored import Convert, Restored
from strongroom.mirror.state import EXTENSION_TYPES

PART: Final = "jax"
"""The part of a commit that a pytree is, unless `pack` is told another."""


def pack(tree: Any, *, part: str = PART) -> dict[str, Any]:
    """A pytree as the parts of a commit: ``mirror.commit(step, pack(state))``. On a CPU no leaf is copied.

    Raises:
        UsageError: a leaf that is neither an array nor a number; two leaves of one name.
    """
    leaves: dict[str, Any] = {}
    for name, leaf in _named(tree):
        if name in leaves:
            raise UsageError(f"{part}: two leaves are called {name!r}, wanted names that differ")
        leaves[name] = _save(leaf, f"{part}/{name}")
    return {part: leaves}


def unpack(template: Any, restored: Restored | Mapping[str, Any], *, part: str = PART) -> Any:
    """The pytree that was packed, in the structure of `template`, whose leaves give types, shapes and devices.

    Args:
        template: is left as it is. Its arrays may be `jax.ShapeDtypeStruct`, as `jax.eval_shape` gives.
        restored: what `Mirror.restore` or `strongroom.mirror.read` gave, or what `pack` did.

    Raises:
        UsageError: the commit has no such part; leaves that only one of the two has; a leaf of another type or shape,
            by name.
        as `Restored.part`.
    """
    if part not in restored:
        raise UsageError(f"{part}: not in the commit, wanted one of {', '.join(restored) or 'no part'}")
    saved = restored.part(part, _CONVERT) if isinstance(restored, Restored) else restored[part]
    if not isinstance(saved, Mapping):
        raise UsageError(f"{part}: no pytree, wanted what pack gives")
    named = _named(template)
    names = [name for name, _ in named]
    missing = [name for name in names if name not in saved]
    more = [str(name) for name in saved if name not in set(names)]
    if missing or more:
        said = [f"{', '.join(missing[:3])} not in the mirror"] * bool(missing)
        said += [f"{', '.join(more[:3])} not in the template"] * bool(more)
        raise UsageError(f"{part}: {'; '.join(said)}", hint="make the template as the state was made that was mirrored")
    leaves = [_load(leaf, saved[name], f"{part}/{name}") for name, leaf in named]
    return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(template), leaves)


def _named(tree: Any) -> list[tuple[str, Any]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [("/".join(_word(key) for key in path) or "leaf", leaf) for path, leaf in leaves]


def _word(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


# Leaves.


def _is_key(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and bool(jax.numpy.issubdtype(dtype, jax.dtypes.prng_key))


def _implementation(leaf: Any) -> str:
    # Of an array and of a ShapeDtypeStruct: key<fry>, say.
    return str(leaf.dtype)


def _save(leaf: Any, path: str) -> Any:
    if leaf is None or isinstance(leaf, (bool, int, float)):
        return leaf
    if isinstance(leaf, complex):
        raise UsageError(f"{path}: a Python complex number, wanted an array of it")
    if isinstance(leaf, np.generic):
        leaf = np.asarray(leaf)
    if not isinstance(leaf, (jax.Array, np.ndarray)):
        raise UsageError(
            f"{path}: a {type(leaf).__name__}, wanted an array or a number",
            hint="leave functions and text out: equinox.filter and flax.nnx.split do so",
        )
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        raise UsageError(f"{path}: spread over several processes, wanted what this one has")
    if _is_key(leaf):
        return {"key": _implementation(leaf), "data": np.asarray(jax.random.key_data(leaf))}
    array = np.asarray(leaf)
    if array.dtype.name not in EXTENSION_TYPES and array.dtype.kind not in "?biufcmMSU":
        raise UsageError(f"{path}: an array of {array.dtype}, which a mirror cannot keep")
    return array


def _load(leaf: Any, saved: Any, path: str) -> Any:
    if leaf is None or isinstance(leaf, (bool, int, float)):
        if type(saved) is not type(leaf):
            raise UsageError(f"{path}: a {type(leaf).__name__}, and the mirror's is a {type(saved).__name__}")
        return saved
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        raise UsageError(f"{path}: a {type(leaf).__name__}, wanted an array or a number")
    if _is_key(leaf):
        return _load_key(leaf, saved, path)
    if not isinstance(saved, np.ndarray):
        raise UsageError(f"{path}: an array, and the mirror's is no array")
    now, was = (tuple(leaf.shape), np.dtype(leaf.dtype).name), (saved.shape, saved.dtype.name)
    if now != was:
        raise UsageError(f"{path}: {now[1]} {now[0]}, and the mirror's is {was[1]} {was[0]}")
    if isinstance(leaf, np.generic):
        return saved.reshape(-1)[0]
    if isinstance(leaf, np.ndarray):
        return saved.copy()  # the mirror's own memory, or that of what was packed, is not the program's
    return _place(saved, leaf, path)


def _load_key(leaf: Any, saved: Any, path: str) -> Any:
    if not isinstance(saved, Mapping) or not isinstance(saved.get("data"), np.ndarray):
        raise UsageError(f"{path}: a random key, and the mirror's is none")
    now, was = _implementation(leaf), saved.get("key")
    if now != was:
        raise UsageError(f"{path}: a random {now}, and the mirror's is {was}")
    name = _KEYS.get(now)
    if name is None:
        raise UsageError(f"{path}: a random {now}, wanted one of {', '.join(_KEYS)}")
    made = jax.random.wrap_key_data(saved["data"], impl=name)
    if made.shape != tuple(leaf.shape):
        raise UsageError(f"{path}: keys of shape {tuple(leaf.shape)}, and the mirror's have {made.shape}")
    return made if getattr(leaf, "sharding", None) is None else jax.device_put(made, leaf.sharding)


# JAX's implementations, by what their types are called.
_KEYS: Final = {"key<fry>": "threefry2x32", "key<rbg>": "rbg", "key<urbg>": "unsafe_rbg"}


def _place(array: npt.NDArray[Any], leaf: Any, path: str) -> Any:
    sharding = getattr(leaf, "sharding", None)
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        raise UsageError(f"{path}: {array.dtype}, which this JAX makes narrower", hint="set jax_enable_x64")
    return jax.device_put(array.copy(), sharding)  # a copy: JAX may take memory of NumPy's for its own


def _view(entry: Entry, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if entry.dtype not in EXTENSION_TYPES:
        return array
    import ml_dtypes  # which JAX depends on

    return array.view(np.dtype(getattr(ml_dtypes, entry.dtype)))


_CONVERT: Final[dict[str, Convert]] = {"numpy": _view}
