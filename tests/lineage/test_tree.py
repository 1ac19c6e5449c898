"""The content digest of a tree: the specification by other means, and what it does and does not depend on."""

import os
import stat
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from blake3 import blake3

from strongroom import vault
from strongroom.enclave import drop
from strongroom.lineage.tree import digest_tree, directory_tree, vault_tree
from strongroom.sealed import NO_FRESHNESS
from tests.lineage.world import tree

KEY = b"k" * 32


def by_hand(*entries):
    state = blake3(b"strongroom/tree/v1\0")
    for kind, path, content in entries:
        state.update(struct.pack(">BI", kind, len(path)) + path)
        state.update(struct.pack(">Q", len(content)) + blake3(content).digest())
    return state.digest()


@pytest.fixture
def folder(tmp_path):
    top = tmp_path / "data"
    (top / "b").mkdir(parents=True)
    (top / "a.txt").write_bytes(b"one")
    (top / "b" / "c").write_bytes(b"two" * 700_000)
    (top / "b.txt").write_bytes(b"")
    (top / "link").symlink_to("b/c")
    return top


@pytest.fixture
def sealed(folder, tmp_path):
    made = vault.open(tmp_path / "v", "x", key=KEY, anchor=NO_FRESHNESS)
    with made:
        vault.pack(folder, made)
    with vault.open(tmp_path / "v", "r", key=KEY, anchor=NO_FRESHNESS) as opened:
        yield opened


def test_it_is_what_the_specification_says(folder):
    found = directory_tree(folder)
    assert found.digest == by_hand(
        (1, b"a.txt", b"one"), (1, b"b.txt", b""), (1, b"b/c", b"two" * 700_000), (2, b"link", b"b/c")
    )
    assert (found.files, found.size) == (4, 3 + 2_100_000 + 3)


def test_a_vault_and_the_directory_that_it_was_made_of_agree(folder, sealed):
    assert vault_tree(sealed).digest == directory_tree(folder).digest


def test_neither_order_nor_modes_nor_times_matter(folder):
    before = directory_tree(folder).digest
    os.utime(folder / "a.txt", (1, 1))
    (folder / "a.txt").chmod(stat.S_IRUSR)
    (folder / "empty").mkdir()
    assert directory_tree(folder).digest == before
    files = [("a", 1, [b"x"]), ("b", 1, [b"y"])]
    assert digest_tree(files).digest == digest_tree(files[::-1]).digest


@pytest.mark.parametrize(
    "other",
    [
        tree(a=b"x", b=b"z"),
        tree(a=b"y", b=b"x"),
        tree(a=b"x"),
        tree(a=b"x", c=b"y"),
        tree(ab=b"xy"),
        digest_tree([("a", 2, [b"x"]), ("b", 1, [b"y"])]),
        tree(),
    ],
    ids=["content", "swapped", "missing", "renamed", "joined", "link", "empty"],
)
def test_every_difference_shows(other):
    assert other.digest != tree(a=b"x", b=b"y").digest


def test_pieces_do_not_matter():
    assert digest_tree([("a", 1, [b"x", b"", b"yz"])]) == digest_tree([("a", 1, [b"xyz"])])


def test_names_that_are_no_text_have_a_digest(tmp_path):
    try:
        (tmp_path / os.fsdecode(b"\xff")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system has no such names")
    assert directory_tree(tmp_path).digest == by_hand((1, b"\xff", b"x"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_are_no_content(folder):
    before = directory_tree(folder).digest
    os.mkfifo(folder / "pipe")
    assert directory_tree(folder).digest == before


@pytest.mark.skipif(sys.platform != "linux", reason="drops root's capabilities, as enclaves do")
@pytest.mark.parametrize("bits", [0o311, 0o444, 0o000], ids=["no listing", "no entering", "neither"])
def test_a_directory_that_cannot_be_listed_is_not_passed_over(folder, bits):
    """Its files open by name all the same, so a digest without them would name other data than what can be read."""
    script = (
        "import pathlib, sys, strongroom.lineage.tree as t, strongroom.errors as e\n"
        "try: print(t.directory_tree(pathlib.Path(sys.argv[1])).files)\n"
        "except e.UsageError as error: print(error.message)"
    )
    command = [sys.executable, str(Path(drop.__file__)), "--", sys.executable, "-c", script, str(folder)]
    (folder / "b").chmod(bits)
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    finally:
        (folder / "b").chmod(0o700)
    assert found.startswith(f"data: {folder / 'b'}")
    assert "cannot be listed or read" in found
