"""What whoever holds the disk can try on a vault that is authenticated only: anybody reads, and nobody changes it."""

import random

import pytest

from strongroom import vault
from strongroom.errors import (
    FormatError,
    IntegrityError,
    RollbackError,
    StrongroomError,
    TamperedError,
    TruncatedError,
    WrongKeyError,
)
from strongroom.sealed import NO_FRESHNESS, MemoryAnchor
from strongroom.storage import MemoryDirectory
from strongroom.vault.kind import is_kind, meta_key
from strongroom.vault.rows import Packed, Tree
from strongroom.vault.vault import Vault
from tests.attacks.vaults import BLOCK, CONTENTS, KEY, copied, flipped, swapped


def open_clear(disk, mode="r", anchor=NO_FRESHNESS, *, encrypted=False, log=False):
    directory = disk if isinstance(disk, MemoryDirectory) else MemoryDirectory(disk)
    return Vault(directory, mode, KEY, anchor, what="vault", encrypted=encrypted, log=log)


def read(disk, anchor=NO_FRESHNESS):
    with open_clear(disk, "r", MemoryAnchor(anchor.read()) if anchor is not NO_FRESHNESS else anchor) as opened:
        opened.verify()
        return {path: opened.read_bytes(path) for path in opened.files()}


def fill(directory, anchor, *, encrypted):
    with open_clear(directory, "x", anchor, encrypted=encrypted) as opened:
        for path, content in CONTENTS.items():
            with opened.open(path, "xb", block_size=BLOCK) as file:
                file.write(content)
        opened.symlink("images", "train/linked")


@pytest.fixture
def live():
    directory, anchor = MemoryDirectory(), MemoryAnchor()
    fill(directory, anchor, encrypted=False)
    return directory, anchor


def data_of(disk, path):
    """The name of the file that a path's content lies in."""
    with open_clear(disk) as opened:
        body = opened.inode(opened.stat(path).inode).body
    assert isinstance(body, (Packed, Tree))  # never in the database, which is encrypted
    return (body.pack if isinstance(body, Packed) else body.file).hex()


def refused(disk, anchor, errors=TamperedError, match=None):
    with pytest.raises(errors, match=match):
        read(disk, anchor)


def test_contents_are_in_clear_and_names_are_not(live):
    disk = copied(live[0])
    everything = b"".join(disk.values())
    for path, content in CONTENTS.items():
        assert content[:BLOCK] in disk[data_of(live[0], path)]
    assert not any(word in everything for word in (b"train", b"images", b"linked", b"CREATE TABLE"))
    # What was written at once is one piece: the file begins with the content.
    assert disk[data_of(live[0], "train/images")].startswith(CONTENTS["train/images"])


def test_every_sampled_bit_of_content(live):
    disk, rng = copied(live[0]), random.Random(3)  # noqa: S311
    for path, content in CONTENTS.items():
        name = data_of(live[0], path)
        at = disk[name].index(content[:500])
        for _ in range(12):
            bit = 8 * at + rng.randrange(8 * len(content))
            refused(disk | {name: flipped(disk[name], bit)}, live[1], match="authentication failed")


def test_swap_cut_and_delete(live):
    disk, anchor = copied(live[0]), live[1]
    one, two, pack = (data_of(live[0], path) for path in ("train/images", "train/labels", "train/packed"))
    refused(disk | {one: disk[two], two: disk[one]}, anchor)
    refused(disk | {one: swapped(disk[one], 0, BLOCK, BLOCK)}, anchor)
    refused(disk | {one: disk[two][:BLOCK] + disk[one][BLOCK:]}, anchor)
    small = [disk[pack].index(CONTENTS[path]) for path in ("train/packed", "train/packed-too")]
    refused(disk | {pack: swapped(disk[pack], *small, 3000)}, anchor)
    for name in (one, pack):
        refused(disk | {name: disk[name][:-1]}, anchor, TruncatedError)
        refused({other: data for other, data in disk.items() if other != name}, anchor, match="is missing")


def test_a_file_that_is_added_is_none_of_the_vault_s(live):
    disk = copied(live[0]) | {"0" * 32: CONTENTS["train/images"], "train": b"x"}
    assert read(disk, live[1]) == CONTENTS | {"train/linked": CONTENTS["train/images"]}


def test_old_content_and_old_versions(live):
    directory, anchor = live
    before, name = copied(directory), data_of(directory, "train/images")
    with open_clear(directory, "r+", anchor) as opened, opened.open("train/images", "r+b") as file:
        file.write(b"n" * 70_000)
    after = copied(directory)
    refused(after | {name: before[name]}, anchor, IntegrityError)
    refused(before, anchor, RollbackError)
    refused(after | {"meta": before["meta"]}, anchor, RollbackError)
    assert read(after, anchor)["train/images"] == b"n" * 70_000


def test_the_end_of_the_log_is_missed(live):
    directory, anchor = live
    with open_clear(directory, "r+", anchor) as opened:
        opened.keep_log()
        opened.write_bytes("train/packed", b"synced")
        opened.fsync(opened.stat("train/packed").inode)
        disk = copied(directory)
        refused(disk | {"log": disk["log"][:50]}, anchor, RollbackError)
        refused({name: data for name, data in disk.items() if name != "log"}, anchor, RollbackError)


# One kind in the place of the other, under one key.


@pytest.mark.parametrize("encrypted", [True, False], ids=["encrypted", "clear"])
def test_no_kind_passes_for_the_other(encrypted, tmp_path):
    fill(made := MemoryDirectory(), MemoryAnchor(), encrypted=encrypted)
    with pytest.raises(WrongKeyError):
        open_clear(copied(made), encrypted=not encrypted)
    word = "encrypted" if encrypted else "authenticated only"
    for mode in ("r", "r+"):
        with pytest.raises(FormatError, match=f"is {word}, wanted"):
            vault.open(MemoryDirectory(copied(made)), mode, key=KEY, anchor=NO_FRESHNESS, encrypted=not encrypted)
    # Who reads may take either; who writes has to say so, if anybody shall be able to read it.
    with vault.open(made, "r", key=KEY, anchor=NO_FRESHNESS) as opened:
        assert opened.encrypted is encrypted and opened.read_bytes("inline") == CONTENTS["inline"]
    if not encrypted:
        with pytest.raises(FormatError, match="wanted encrypted") as caught:
            vault.open(made, "r+", key=KEY, anchor=NO_FRESHNESS)
        assert "--authenticated" in str(caught.value.hint)


def test_another_key_is_no_other_kind(live):
    for mode in ("r", "r+"):
        with pytest.raises(WrongKeyError):
            vault.open(live[0], mode, key=bytes(32), anchor=NO_FRESHNESS)
    # The key of `meta` is not the vault key: nobody who is given the one has the other.
    with pytest.raises(FormatError, match="is authenticated only"):
        vault.open(live[0], "r", key=KEY, anchor=NO_FRESHNESS, encrypted=True)
    assert meta_key(KEY, encrypted=False) != KEY and not is_kind(live[0], "meta", KEY, encrypted=True)


def test_data_files_of_one_kind_are_nothing_to_the_other():
    """Slots and data files of both, mixed in all ways: what is read is what one of them holds, or nothing."""
    disks = {}
    for encrypted in (True, False):
        fill(made := MemoryDirectory(), MemoryAnchor(), encrypted=encrypted)
        disks[encrypted] = copied(made)
    one, two = disks[True], disks[False]
    mixed = bytearray(two["meta"])
    mixed[:4096] = one["meta"][:4096]
    for encrypted in (True, False):
        for disk in (one | two, two | one, one | two | {"meta": bytes(mixed)}):
            try:
                with open_clear(disk, encrypted=encrypted) as opened:
                    opened.verify()
                    assert opened.read_bytes("inline") == CONTENTS["inline"]
            except StrongroomError:
                pass


def test_what_is_rekeyed_compacted_and_copied_stays_of_its_kind(tmp_path):
    from strongroom.vault.backup import backup, restore

    anchor = MemoryAnchor()
    with vault.open(tmp_path / "v", "x", key=KEY, anchor=anchor, encrypted=False) as opened:
        for path, content in CONTENTS.items():
            opened.write_bytes(path, content)
        opened.write_bytes("gone", bytes(3000))
        opened.commit()
        opened.remove("gone")
        opened.compact()
    backup(tmp_path / "v", tmp_path / "copy", key=KEY, anchor=anchor)
    with vault.open(tmp_path / "v", "r+", key=KEY, anchor=anchor, encrypted=False) as opened:
        opened.rekey(bytes(32))
        assert opened.encrypted is False
    with pytest.raises(WrongKeyError):
        vault.open(tmp_path / "v", "r", key=KEY, anchor=anchor)
    for key, place in ((bytes(32), "v"), (KEY, "copy")):
        found = anchor if place == "v" else NO_FRESHNESS
        with vault.open(tmp_path / place, "r", key=key, anchor=found, encrypted=False) as opened:
            assert {path: opened.read_bytes(path) for path in opened.files()} == CONTENTS
    restore(tmp_path / "copy", tmp_path / "v", key=KEY, anchor=anchor, reason="try it")
    with vault.open(tmp_path / "v", "r", key=KEY, anchor=anchor, encrypted=False) as opened:
        assert opened.verify() == len(CONTENTS)


def test_through_fsspec_who_writes_says_so_too(tmp_path):
    from strongroom.vault.filesystem import SealedFileSystem

    options = {"vault": tmp_path / "v", "key": KEY, "anchor": "NO_FRESHNESS"}
    with SealedFileSystem(**options, mode="x", encrypted=False).open("a", "wb") as file:
        file.write(b"public")
    fs = SealedFileSystem(**options)
    assert fs.cat("a") == b"public"
    with pytest.raises(FormatError, match="is authenticated only, wanted encrypted"):
        fs.pipe("a", b"private")
    SealedFileSystem(**options, encrypted=False).pipe("a", b"public, too")
    with pytest.raises(FormatError, match="wanted encrypted"):
        SealedFileSystem(**options, encrypted=True).cat("a")
