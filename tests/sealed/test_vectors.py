"""The vectors of the format: made again to the byte, and judged alike by the package and by a reader of its own."""

import ast
import hashlib
import json
import sys
from pathlib import Path

import pytest

from strongroom.errors import StrongroomError
from strongroom.sealed import NO_FRESHNESS, MemoryAnchor, Root, open_sealed
from strongroom.storage import MemoryStorage
from tests.vectors import sealed_reader
from tests.vectors.sealed.generate import FOLDER, make

VECTORS = json.loads((FOLDER / "index.json").read_text())
DAMAGED = "slot {} is damaged"


def test_the_vectors_are_what_the_generator_makes():
    files, vectors = make()
    assert vectors == VECTORS
    assert {path.name: path.read_bytes() for path in FOLDER.glob("*.sealed")} == files
    assert {vector["file"] for vector in vectors} == set(files)
    names = [vector["name"] for vector in vectors]
    assert len(set(names)) == len(names) > 30


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_the_package(vector):
    storage = MemoryStorage((FOLDER / vector["file"]).read_bytes())
    anchor = MemoryAnchor(Root.parse(vector["anchor"])) if "anchor" in vector else NO_FRESHNESS
    try:
        with open_sealed(
            storage,
            key=bytes.fromhex(vector["key"]),
            anchor=anchor,
            at=vector.get("at"),
            encrypted=vector.get("encrypted"),
        ) as file:
            content = file.read()
            file.verify()
            notes = file.notes
    except StrongroomError as error:
        assert error.code == vector.get("refused"), error
        return
    assert hashlib.sha256(content).hexdigest() == vector.get("sha256")
    assert [note[: len(DAMAGED) - 1] for note in notes] == [DAMAGED.format(n) for n in vector.get("damaged", [])]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_the_second_reader(vector):
    data = (FOLDER / vector["file"]).read_bytes()
    how = {name: vector[name] for name in ("anchor", "at", "encrypted") if name in vector}
    try:
        file = sealed_reader.open_file(data, bytes.fromhex(vector["key"]), **how)
        content = file.read()
    except sealed_reader.Refused as error:
        assert error.args[0] == vector.get("refused"), error
        return
    assert hashlib.sha256(content).hexdigest() == vector.get("sha256")
    assert file.damaged == vector.get("damaged", [])


def test_the_second_reader_is_a_small_one_of_its_own():
    source = Path(sealed_reader.__file__).read_text()
    assert len(source.splitlines()) < 200
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])
    }
    assert imported - set(sys.stdlib_module_names) == {"cryptography"}


def test_the_second_reader_reads_what_the_package_writes():
    storage, anchor = MemoryStorage(), MemoryAnchor()
    content = bytes(range(256)) * 3000  # a tree of three levels
    with open_sealed(storage, "x", key=bytes(32), anchor=anchor, block_size=4096) as file:
        file.write(content)
        first = file.retain()
        file.truncate(10_000)
        file.rekey(bytes([1]) * 32)
        file.rekey_step(1)
        file.commit()
    data, key = bytes(storage.data), bytes([1]) * 32
    assert sealed_reader.open_file(data, key, str(anchor.read())).read() == content[:10_000]
    assert sealed_reader.open_file(data, key, at=first.sequence).read() == content
