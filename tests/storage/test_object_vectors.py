"""The vectors of numbered objects, judged alike by the package and by a reader of its own."""

import ast
import contextlib
import json
import sys
from pathlib import Path

import pytest

from strongroom.errors import StrongroomError
from strongroom.storage import ObjectDirectory
from tests.vectors import object_reader
from tests.vectors.make_objects import INDEX, make

fsspec = pytest.importorskip("fsspec")

VECTORS = json.loads(INDEX.read_text())


def memory():
    return fsspec.filesystem("memory", global_store=False, skip_instance_cache=True)


def objects(vector):
    return {name: bytes.fromhex(data) for name, data in vector["objects"].items()}


def content(file):
    buffer = bytearray(file.size())
    assert file.read_into(0, buffer) == len(buffer)
    return bytes(buffer)


def test_the_vectors_are_what_the_generator_makes():
    assert make() == VECTORS


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_the_package(vector):
    fs = memory()
    for name, data in objects(vector).items():
        fs.pipe_file(f"/vault/{name}", data)
    try:
        with contextlib.closing(ObjectDirectory(fs, "/vault", updatable={"meta"}).open("meta", "r")) as file:
            found = content(file)
    except StrongroomError as error:
        assert error.code == vector.get("refused"), error
        return
    assert found.hex() == vector.get("content")


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_the_second_reader(vector):
    try:
        found = object_reader.read(objects(vector), "meta")
    except object_reader.Refused as error:
        assert error.args[0] == vector.get("refused"), error
        return
    assert found.hex() == vector.get("content")


def test_the_second_reader_reads_what_the_package_writes():
    fs = memory()
    with contextlib.closing(ObjectDirectory(fs, "/vault", updatable={"meta"}).open("meta", "x")) as file:
        for step in range(1, 140):
            file.write_at(step * 37 % 500, bytes([step]) * (step % 50))
            if step % 11 == 0:
                file.resize(step * 3)
            file.sync()
            stored = {path.rsplit("/", 1)[-1]: fs.cat_file(path) for path in fs.ls("/vault", detail=False)}
            assert object_reader.read(stored, "meta") == content(file)


def test_the_second_reader_is_a_small_one_of_its_own():
    source = Path(object_reader.__file__).read_text()
    assert len(source.splitlines()) < 60
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])
    }
    assert imported <= set(sys.stdlib_module_names)
