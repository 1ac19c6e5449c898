"""Pytrees come back leaf for leaf, bit for bit, into a template; whatever does not fit is refused by name."""

import dataclasses
import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")

import jax
import jax.numpy as jnp

from strongroom import mirror
from strongroom.errors import UsageError
from strongroom.mirror.jax import pack, unpack
from strongroom.sealed import FileAnchor

KEY = bytes(range(32))


class Pair(typing.NamedTuple):
    count: Any
    moments: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    weight: Any
    bias: Any
    name: str = dataclasses.field(default="a layer", metadata={"static": True})


def tree(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)

    def some(*shape: int, dtype: Any = np.float32) -> Any:
        return jnp.asarray(rng.normal(size=shape).astype(np.float32)).astype(dtype)

    return {
        "layers": [Layer(some(3, 4), some(4)), Layer(some(4, 2, dtype=jnp.bfloat16), None)],
        "small": (some(5, dtype=jnp.float8_e4m3fn), some(5, dtype=jnp.float8_e5m2), some(0, 3)),
        "opt": Pair(jnp.asarray(seed, jnp.int32), {"mu": some(3), "nu": some(3)}),
        "key": jax.random.key(seed),
        "keys": jax.random.split(jax.random.key(seed, impl="rbg"), 3),
        "old key": jax.random.PRNGKey(seed),
        "numpy": rng.normal(size=7),
        "rate": 0.1 * seed,
        "step": seed,
        "on": seed % 2 == 0,
    }


def raw(leaf: Any) -> Any:
    if hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return str(leaf.dtype), raw(jax.random.key_data(leaf))
    if isinstance(leaf, (bool, int, float)):
        return type(leaf), leaf
    array = np.asarray(leaf)
    return type(leaf), array.dtype.name, array.shape, array.tobytes()


def bits(value: Any) -> Any:
    leaves, structure = jax.tree_util.tree_flatten(value)
    return structure, [raw(leaf) for leaf in leaves]


@pytest.fixture
def opened(tmp_path):
    with mirror.open(tmp_path / "m", key=KEY, anchor=FileAnchor(tmp_path / "a")) as made:
        yield made


def test_a_tree_comes_back(opened):
    saved = tree(1)
    opened.commit(1, pack(saved))
    back = unpack(tree(2), opened.restore())
    assert bits(back) == bits(saved)
    assert {"jax/layers/0/weight", "jax/opt/moments/mu", "jax/small/1"} <= opened.restore().arrays.keys()


def test_a_template_of_shapes_will_do(opened):
    saved = {"weight": jnp.arange(6.0).reshape(2, 3), "key": jax.random.key(3)}
    opened.commit(1, pack(saved))
    shapes = jax.eval_shape(lambda: {"weight": jnp.zeros((2, 3)), "key": jax.random.key(0)})
    assert bits(unpack(shapes, opened.restore())) == bits(saved)


def test_what_comes_back_is_nobody_elses_memory(opened):
    saved = {"numpy": np.arange(4.0), "jax": jnp.arange(4)}
    packed = pack(saved)
    back = unpack(saved, packed)
    packed["jax"]["numpy"][:] = 0
    assert back["numpy"].tolist() == [0, 1, 2, 3]


def test_a_single_leaf_is_a_tree(opened):
    opened.commit(1, pack(jnp.arange(3)) | pack({"more": 1}, part="other"))
    assert unpack(jnp.zeros(3, jnp.int32), opened.restore()).tolist() == [0, 1, 2]
    assert unpack({"more": 0}, opened.restore(), part="other") == {"more": 1}


REFUSED = {
    "shape": ({"a": {"b": jnp.zeros(3)}}, r"jax/a/b: float32 \(3,\), and the mirror's is float32 \(2,\)"),
    "type": ({"a": {"b": jnp.zeros(2, jnp.bfloat16)}}, r"jax/a/b: bfloat16 \(2,\), and the mirror's is float32"),
    "less": ({"a": {}}, "jax: a/b not in the template"),
    "more": ({"a": {"b": jnp.zeros(2), "c": 1}}, "jax: a/c not in the mirror"),
    "other name": ({"a": {"c": jnp.zeros(2)}}, "jax: a/c not in the mirror; a/b not in the template"),
    "number": ({"a": {"b": 1.0}}, "jax/a/b: a float, and the mirror's is a ndarray"),
    "key": ({"a": {"b": jax.random.key(0)}}, "jax/a/b: a random key, and the mirror's is none"),
    "text": ({"a": {"b": "text"}}, "jax/a/b: a str, wanted an array or a number"),
}


@pytest.mark.parametrize(("template", "said"), REFUSED.values(), ids=REFUSED)
def test_a_template_that_does_not_fit_is_refused_by_name(opened, template, said):
    opened.commit(1, pack({"a": {"b": jnp.ones(2)}}))
    with pytest.raises(UsageError, match=said):
        unpack(template, opened.restore())


def test_random_keys_of_another_kind_are_refused():
    packed = pack({"key": jax.random.key(0)})
    with pytest.raises(UsageError, match="jax/key: a random key<rbg>, and the mirror's is key<fry>"):
        unpack({"key": jax.random.key(0, impl="rbg")}, packed)
    with pytest.raises(UsageError, match=r"jax/key: keys of shape \(2,\), and the mirror's have \(\)"):
        unpack({"key": jax.random.split(jax.random.key(0))}, packed)
    with pytest.raises(UsageError, match="jax/key: an array, and the mirror's is no array"):
        unpack({"key": jnp.zeros(2)}, packed)


def test_leaves_that_cannot_be_kept_are_refused():
    with pytest.raises(UsageError, match="jax/f: a function, wanted an array or a number"):
        pack({"f": lambda: 0})
    with pytest.raises(UsageError, match="jax/f: an array of object, which a mirror cannot keep"):
        pack({"f": np.array([None])})
    with pytest.raises(UsageError, match="two leaves are called 'a/b'"):
        pack({"a": {"b": 1}, "a/b": 2})
    with pytest.raises(UsageError, match="jax: not in the commit, wanted one of other"):
        unpack({}, {"other": {}})


def test_optax_goes_on(opened):
    optax = pytest.importorskip("optax")
    schedule = optax.warmup_cosine_decay_schedule(0.0, 0.1, 3, 20)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, mu_dtype=jnp.bfloat16))

    @jax.jit
    def step(state: Any) -> Any:
        key, noise = jax.random.split(state["key"])

        def loss(params: Any) -> Any:
            hidden = jnp.tanh(jax.random.normal(noise, (8, 5)) @ params["in"])
            return ((hidden @ params["out"] - 1) ** 2).mean()

        value, gradients = jax.value_and_grad(loss)(state["params"])
        updates, opt = optimizer.update(gradients, state["opt"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "opt": opt, "key": key, "loss": value}

    def start(seed: int) -> Any:
        params = {"in": jax.random.normal(jax.random.key(seed), (5, 6)), "out": jnp.ones((6, 1)) * seed}
        return {"params": params, "opt": optimizer.init(params), "key": jax.random.key(seed), "loss": jnp.zeros(())}

    state = start(1)
    for number in range(6):
        state = step(state)
        if number == 2:
            opened.commit(number, pack(state))
    again = unpack(start(2), opened.restore())
    for _ in range(3):
        again = step(again)
    assert bits(again) == bits(state)


def test_the_example_of_the_guide_runs_and_goes_on(tmp_path):
    pytest.importorskip("optax")
    guide = (Path(__file__).parents[2] / "docs" / "how-to" / "mirror-frameworks.md").read_text()
    blocks = dict(re.findall(r"^```python\n# ([a-z.]+)\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL))
    (tmp_path / "common.py").write_text(blocks["common.py"])
    (tmp_path / "example.py").write_text(blocks["jax"])
    for _ in range(2):
        ended = subprocess.run(
            [sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr
