"""The vectors of the vault: judged alike by the package and by a reader of its own, written from the specification."""

import ast
import json
import sys
from pathlib import Path

import pytest

from strongroom.errors import StrongroomError
from strongroom.sealed import NO_FRESHNESS, MemoryAnchor, Root
from strongroom.storage import MemoryDirectory
from strongroom.vault.vault import Vault
from tests.vectors import sealed_reader, vault_reader
from tests.vectors.make_vault import FOLDER, KEY, changed, judged, load, tree_of

VECTORS = json.loads((FOLDER / "index.json").read_text())
every = pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])


def files_of(vector) -> dict[str, bytes]:
    return changed(load(vector["folder"]), vector.get("changes", []))


def test_the_index():
    names = [vector["name"] for vector in VECTORS]
    assert len(set(names)) == len(names) > 20
    assert {vector["folder"] for vector in VECTORS} <= {path.name for path in FOLDER.iterdir()}
    assert all(("refused" in vector) != ("tree" in vector) for vector in VECTORS)


@every
def test_the_package(vector):
    anchor = MemoryAnchor(Root.parse(vector["anchor"])) if "anchor" in vector else NO_FRESHNESS
    directory = MemoryDirectory(files_of(vector))
    try:
        encrypted = vector.get("encrypted", True)
        with Vault(directory, "r", bytes.fromhex(vector["key"]), anchor, what="vault", encrypted=encrypted) as opened:
            opened.verify()
            found = judged(tree_of(opened))
    except StrongroomError as error:
        assert error.code == vector.get("refused"), error
        return
    assert found == vector.get("tree")


@every
def test_the_second_reader(vector):
    try:
        key, encrypted = bytes.fromhex(vector["key"]), vector.get("encrypted", True)
        found = vault_reader.read_vault(files_of(vector), key, vector.get("anchor"), encrypted=encrypted)
    except sealed_reader.Refused as error:
        assert error.args[0] == vector.get("refused"), error
        return
    assert judged(found) == vector.get("tree")


def test_the_second_reader_reads_what_the_package_writes():
    """Today's, with records in the log that no commit has taken in."""
    directory, anchor = MemoryDirectory(), MemoryAnchor()
    opened = Vault(directory, "x", KEY, anchor, what="vault")
    opened.write_bytes("a/tree", bytes(range(256)) * 2000)
    opened.write_bytes("packed", b"p" * 9000)
    opened.close()
    opened = Vault(directory, "r+", KEY, anchor, what="vault", log=True)
    with opened.open("a/tree", "r+b") as file:
        file.write_at(70_000, b"logged" * 100)
        file.truncate(400_000)
    opened.symlink("a/tree", "link")
    opened.rename("packed", "b")
    opened.fsync(opened.stat("a/tree").inode)
    files = {name: bytes(file.data) for name, file in directory.files.items()}
    assert judged(vault_reader.read_vault(files, KEY, str(anchor.read()))) == judged(tree_of(opened))
    opened.discard()


def test_the_second_reader_is_a_small_one_of_its_own():
    source = Path(vault_reader.__file__).read_text()
    assert len(source.splitlines()) < 200
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])
    }
    assert imported - set(sys.stdlib_module_names) == {"tests"}
