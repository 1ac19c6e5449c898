"""The vectors of the mirror: judged alike by the package and by a reader of its own, written from the specification."""

import ast
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from strongroom import mirror
from strongroom.errors import StrongroomError
from strongroom.mirror.restored import Restored, read_manifest
from strongroom.sealed import NO_FRESHNESS, MemoryAnchor, Root, open_sealed
from strongroom.storage import MemoryDirectory, MemoryStorage
from tests.vectors import mirror_reader, sealed_reader
from tests.vectors.mirror.generate import BLOCK, FOLDER, KEY, describe, make
from tests.vectors.mirror_reader import Array

VECTORS = json.loads((FOLDER / "index.json").read_text())
every = pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])


def plain(value):
    """A state of the package's as the second reader has it."""
    if isinstance(value, np.generic):
        return Array("scalar", value.dtype.str, (), value.tobytes())
    if isinstance(value, dict):
        return {plain(key): plain(part) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    return value


class Kinds(dict):
    """Arrays of every kind, as the second reader has them."""

    def __contains__(self, kind):
        return True

    def __missing__(self, kind):
        return lambda entry, array: Array(kind, entry.dtype, entry.shape, array.tobytes())


def state_of(restored):
    restored.verify()
    for name in restored.arrays:
        restored.array(name)
    return describe({name: plain(restored.part(name, Kinds())) for name in restored})


def read_content(data):
    storage = MemoryStorage()
    with open_sealed(storage, "x", key=KEY, anchor=NO_FRESHNESS, block_size=BLOCK) as file:
        file.write(data)
        file.commit()
        return state_of(Restored(file, read_manifest(file), owned=False))


def read_file(data, vector, tmp_path):
    path = tmp_path / "mirror"
    path.write_bytes(data)
    anchor = MemoryAnchor(Root.parse(vector["anchor"])) if "anchor" in vector else NO_FRESHNESS
    key = bytes.fromhex(vector["key"])
    with mirror.read(path, key=key, anchor=anchor, step=vector.get("step")) as restored:
        return state_of(restored)


def test_the_vectors_are_what_the_generator_makes():
    files, vectors = make()
    assert vectors == VECTORS
    kept = [*FOLDER.glob("*.content"), *FOLDER.glob("*.sealed")]
    assert {path.name: path.read_bytes() for path in kept} == files
    assert {vector["file"] for vector in vectors} == set(files)
    names = [vector["name"] for vector in vectors]
    assert len(set(names)) == len(names) > 60
    assert all(("refused" in vector) != ("state" in vector) for vector in vectors)


@every
def test_the_package(vector, tmp_path):
    data = (FOLDER / vector["file"]).read_bytes()
    try:
        found = read_content(data) if vector["file"].endswith(".content") else read_file(data, vector, tmp_path)
    except StrongroomError as error:
        assert error.code == vector.get("refused"), error
        return
    assert found == vector.get("state")


@every
def test_the_second_reader(vector):
    data = (FOLDER / vector["file"]).read_bytes()
    try:
        if vector["file"].endswith(".content"):
            found = mirror_reader.parse(data, BLOCK)
        else:
            key = bytes.fromhex(vector["key"])
            found = mirror_reader.read(data, key, vector.get("anchor"), vector.get("step"))
    except sealed_reader.Refused as error:
        assert error.args[0] == vector.get("refused"), error
        return
    assert describe(found.state) == vector.get("state")


def test_the_second_reader_reads_what_the_package_writes():
    """With arrays that change shape, come and go, and three commits kept."""
    directory, anchor = MemoryDirectory(), MemoryAnchor()
    rng = np.random.default_rng(1)
    states = [
        {"w": rng.normal(size=(60, 50)), "b": np.arange(3, dtype=">i2"), "n": 1, "t": ("a", None, {1.5: b"x"})},
        {"w": rng.normal(size=(70, 50)), "c": np.array(["é", "ab"]), "n": float("-inf"), "s": "\ud800\udc00"},
        {"v": rng.normal(size=9000).astype(np.float32), "w": rng.normal(size=(70, 50)), "g": np.float32(2), "e": []},
    ]
    with mirror.open(directory, key=KEY, anchor=anchor, keep=3, block_size=BLOCK) as opened:
        for step, state in enumerate(states):
            opened.commit(step, state)
        data = bytes(directory.files["mirror"].data)
        for step, state in enumerate(states):
            found = mirror_reader.read(data, KEY, str(anchor.read()), step)
            assert (found.step, list(found.state)) == (step, list(state))
            restored = opened.restore() if step == 2 else opened._restored_at(opened._kept[step][1])
            assert describe(found.state) == state_of(restored)
            restored.close()
        assert mirror_reader.read(data, KEY).arrays["v"].data == states[2]["v"].tobytes()


def test_the_second_reader_is_a_small_one_of_its_own():
    source = Path(mirror_reader.__file__).read_text()
    assert len(source.splitlines()) < 120
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])
    }
    assert imported - set(sys.stdlib_module_names) == {"tests"}
