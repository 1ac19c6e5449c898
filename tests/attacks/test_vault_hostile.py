# ruff: noqa: S608
"""A `meta` made by somebody who has the key and is careless or hostile: clear errors, and nothing outside of the vault.

Whoever opens such a vault trusts its maker with its content, not with their own machine.
"""

import contextlib
import stat
import struct

import pytest

from strongroom import vault
from strongroom.errors import FormatError, StrongroomError, TruncatedError
from strongroom.sealed import NO_FRESHNESS
from strongroom.storage import MemoryDirectory
from strongroom.vault import database
from strongroom.vault.check import describe, find_problems
from strongroom.vault.rows import ROOT_INODE, pack_body
from strongroom.vault.transfer import walk_vault
from tests.attacks.vaults import BLOCK, KEY, body_of, copied, flipped, open_disk

FILE, DIRECTORY, LINK = 0o100644, 0o040755, 0o120777


def base() -> MemoryDirectory:
    directory = MemoryDirectory()
    with open_disk(directory, "x") as opened:
        opened.write_bytes("inline", b"i")
        opened.write_bytes("packed", b"p" * 5000)
        with opened.open("tree", "xb", block_size=BLOCK) as file:
            file.write(b"t" * 70_000)
        opened.mkdir("folder/below")
    return directory


def hostile(*statements, directory: MemoryDirectory | None = None) -> MemoryDirectory:
    """A vault whose database was changed by `statements`: SQL, or (SQL, values)."""
    directory = directory or base()
    with open_disk(directory, "r+") as opened:
        for statement in statements:
            sql, values = statement if isinstance(statement, tuple) else (statement, ())
            opened._state._db.change(sql, *values)
        opened._state._db.settle()
        opened._meta.commit()
        opened.discard()
    return directory


def number(path: str) -> str:
    """SQL for the inode number of a path."""
    found = str(ROOT_INODE)
    for part in path.split("/"):
        found = f"(SELECT inode FROM entry WHERE parent = {found} AND name = CAST('{part}' AS BLOB))"
    return found


def set_inode(path: str, column: str, value: object):
    return f"UPDATE inode SET {column} = ? WHERE id = {number(path)}", (value,)


def add_entry(parent: str, name: bytes, inode: str):
    return f"INSERT INTO entry VALUES ({parent}, ?, {inode}, 1)", (name,)


def use(directory, tmp_path) -> None:
    """Everything that a reader and a writer do with a vault."""
    with open_disk(directory, "r") as opened:
        for path in opened.files():
            opened.stat(path, follow=False)
        list(walk_vault(opened, ROOT_INODE))
        find_problems(opened)
        describe(opened)
        vault.unpack(opened, tmp_path / "out" / "here")
        opened.verify()
    with open_disk(MemoryDirectory(copied(directory)), "r+") as opened:
        for path in opened.files():
            with opened.open(path, "r+b") as file:
                file.write(b"x")
        opened.commit()
        opened.rename("folder", "moved")
        opened.compact()
        for path in opened.listdir():
            if opened.stat(path, follow=False).is_dir:
                opened.remove_dir(path, recursive=True)
            else:
                opened.remove(path)


def refused(directory, tmp_path, match=None) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((StrongroomError, OSError), match=match):
        use(directory, tmp_path)
    here = tmp_path / "out" / "here"
    new = [path for path in tmp_path.rglob("*") if path not in before]
    assert all(path in (here.parent, here) or here in path.parents for path in new)


def test_what_is_tried_works_on_an_honest_vault(tmp_path):
    use(hostile(), tmp_path)


@pytest.mark.parametrize("value", [2, 0, -1, "1", b"1", None, 1e300, "x" * 100_000], ids=str)
def test_another_version(tmp_path, value):
    refused(hostile(("UPDATE info SET value = ? WHERE name = 'version'", (value,))), tmp_path, "vault version")


SCHEMAS = {
    "a view that never ends": (
        "DROP TABLE entry",
        "CREATE VIEW entry AS WITH RECURSIVE c(x) AS (VALUES (1) UNION ALL SELECT x + 1 FROM c)"
        " SELECT x AS parent, x AS name, x AS inode, x AS changed FROM c",
    ),
    "a trigger": (
        "CREATE TRIGGER t AFTER INSERT ON inode BEGIN DELETE FROM entry; END",
    ),
    "another table": ("CREATE TABLE x (y)",),
    "a missing table": ("DROP TABLE old",),
    "a generated column": (
        "DROP TABLE dead",
        "CREATE TABLE dead (file BLOB PRIMARY KEY, last INTEGER AS (length(file))) WITHOUT ROWID",
    ),
    "a missing index": ("DROP INDEX orphan",),
    "an index with an expression": ("CREATE INDEX more ON inode (abs(random()))",),
}  # fmt: skip


@pytest.mark.parametrize("statements", SCHEMAS.values(), ids=SCHEMAS)
def test_another_schema(tmp_path, statements):
    try:
        directory = hostile(*statements)
    except FormatError:
        return  # SQLite itself takes no such schema
    refused(directory, tmp_path, "tables of another kind")


NAMES = [b"..", b".", b"a/b", b"/etc/cron.d/x", b"../../escaped", b"nul\0", b"x" * 256, b"x" * 100_000]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name[:20]))
@pytest.mark.parametrize("parent", ["1", number("folder")], ids=["top", "below"])
@pytest.mark.parametrize("kind", ["inline", "folder/below"])
def test_names_that_cannot_be(tmp_path, name, parent, kind):
    refused(hostile(add_entry(parent, name, number(kind))), tmp_path, "no file can be")


def test_an_entry_without_a_name_is_not_there(tmp_path):
    with open_disk(hostile(add_entry("1", b"", number("inline")))) as opened:
        assert opened.listdir() == ["folder", "inline", "packed", "tree"]


TYPES = {
    f"{table}.{column}={value!r:.15}": (table, column, value)
    for table, columns in {
        "inode": ("mode", "links", "uid", "gid", "size", "atime", "mtime", "ctime", "body", "changed"),
        "entry": ("inode", "changed"),
        "pack": ("key", "size", "live"),
    }.items()
    for column in columns
    for value in (None, "text", b"bytes", 1.5, -1, 1 << 62, "x" * 100_000)
}


@pytest.mark.parametrize(("table", "column", "value"), TYPES.values(), ids=TYPES)
def test_values_of_other_types(tmp_path, table, column, value):
    """Refused, or something that may be: never another kind of error."""
    directory = hostile((f"UPDATE {table} SET {column} = ?", (value,)))
    try:
        use(directory, tmp_path)
    except (StrongroomError, OSError):
        return
    assert type(value) is int or column in ("changed", "live", "size")


@pytest.mark.parametrize("value", [None, "text", b"short", 1.5, -1, 1 << 62], ids=repr)
@pytest.mark.parametrize("row", ["old (file, first, last, version)", "dead (file, last)"])
def test_rows_of_what_is_dead(tmp_path, row, value):
    count = row.count(",") + 1
    for at in range(count):
        values: list[object] = [b"f" * 16, 1, 2, b"v" * 64][:count]
        values[at] = value
        if value is None and (at == 0 or (row.startswith("old") and at == 1)):
            continue  # the key of a table without row numbers
        directory = hostile((f"INSERT INTO {row} VALUES ({', '.join('?' * count)})", tuple(values)))
        try:
            with open_disk(directory, "r+") as opened:
                for _ in range(3):
                    with opened.open("tree", "r+b") as file:
                        file.write(b"x")
                    opened.commit()
        except (StrongroomError, OSError):
            continue


TWICE = {
    "itself": add_entry(number("folder"), b"a", number("folder")),
    "the one above": add_entry(number("folder/below"), b"a", number("folder")),
    "the top": add_entry(number("folder"), b"a", "1"),
    "two names": add_entry("1", b"a", number("folder/below")),
}


@pytest.mark.parametrize("statement", TWICE.values(), ids=TWICE)
def test_directories_that_are_reached_twice(tmp_path, statement):
    refused(hostile(statement), tmp_path, "has two names")


def test_looking_for_the_directories_above_ends(tmp_path):
    """The two are each other's parents; no path leads there, but a program may have the number of one."""
    below, folder = number("folder/below"), number("folder")
    with open_disk(hostile(f"UPDATE entry SET parent = {below} WHERE inode = {folder}"), "r+") as opened:
        opened.mkdir("other")
        (row,) = opened._state._db.rows("SELECT inode FROM entry WHERE name = ?", b"below")
        with pytest.raises(FormatError, match="lies below itself"):
            opened.rename_at(ROOT_INODE, b"other", row[0], b"other")


def test_directories_that_are_doubled_over_and_over(tmp_path):
    """2^60 paths to one directory: whoever walked them would never come back."""
    made = "INSERT INTO inode VALUES (?, ?, 1, 0, 0, 0, 0, 0, 0, x'00', 1)"
    statements = [(made, (1000 + i, DIRECTORY)) for i in range(60)]
    for i in range(60):
        statements += [add_entry(str(999 + i if i else 1), name, str(1000 + i)) for name in (b"one", b"two")]
    refused(hostile(*statements), tmp_path, "has two names")


def test_a_file_of_two_directories_that_counts_one_link(tmp_path):
    with open_disk(hostile(add_entry(number("folder"), b"a", number("packed"))), "r+") as opened:
        assert opened.read_bytes("folder/a") == b"p" * 5000
        opened.remove("packed")
        with pytest.raises(OSError, match="a"):
            opened.read_bytes("folder/a")


def test_an_entry_that_leads_nowhere(tmp_path):
    refused(hostile(add_entry("1", b"a", "12345")), tmp_path)


def test_no_top(tmp_path):
    refused(hostile("DELETE FROM inode WHERE id = 1"), tmp_path)
    refused(hostile(("UPDATE inode SET mode = ? WHERE id = 1", (FILE,))), tmp_path)


BODIES = {
    "none": b"",
    "unknown": b"\x09",
    "cut": b"\x02" + bytes(10),
    "a piece of no pack": struct.pack("<B16sQ24s16s", 2, bytes(16), 0, bytes(24), bytes(16)),
    "a piece at 2^63": struct.pack("<B16sQ24s16s", 2, bytes(16), 1 << 63, bytes(24), bytes(16)),
    "no data file": struct.pack("<B16s32sIQ48sQQ", 3, bytes(16), bytes(32), 4096, 1, bytes(48), 5000, 3),
    "block size": struct.pack("<B16s32sIQ48sQQ", 3, bytes(16), bytes(32), 3, 1, bytes(48), 5000, 3),
    "block size 0": struct.pack("<B16s32sIQ48sQQ", 3, bytes(16), bytes(32), 0, 1, bytes(48), 5000, 3),
    "places": struct.pack("<B16s32sIQ48sQQ", 3, bytes(16), bytes(32), 4096, 1, bytes(48), 5000, (1 << 64) - 1),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_contents_that_lead_nowhere(tmp_path, body):
    refused(hostile(set_inode("packed", "body", body)), tmp_path)


@pytest.mark.parametrize("offset", [5000, 1 << 40, 1 << 60])
@pytest.mark.parametrize("size", [5000, 1 << 40, 1 << 60])
def test_pieces_behind_the_end_of_a_pack(tmp_path, offset, size):
    """Nobody allocates what a row says before there is that much."""
    directory = base()
    piece = body_of(directory, "packed").pack
    body = struct.pack("<B16sQ24s16s", 2, piece, offset, bytes(24), bytes(16))
    directory = hostile(set_inode("packed", "size", size), set_inode("packed", "body", body), directory=directory)
    with open_disk(directory) as opened, pytest.raises(TruncatedError, match="too short"):
        opened.open("packed").read_at(0, bytearray(100))
    refused(directory, tmp_path, "too short")


@pytest.mark.parametrize("place", [100, 1 << 40, (1 << 50) - 1])
def test_a_place_behind_the_end_of_a_data_file(tmp_path, place):
    directory = base()
    body = pack_body(body_of(directory, "tree"))
    pointer = struct.pack("<Q40s", place, bytes(40))
    directory = hostile(set_inode("tree", "body", body[:61] + pointer + body[109:]), directory=directory)
    for name, data in copied(directory).items():
        (tmp_path / name).write_bytes(data)
    with vault.open(tmp_path, key=KEY, anchor=NO_FRESHNESS) as opened, pytest.raises(StrongroomError):
        opened.read_bytes("tree")


def test_links_that_lead_out(tmp_path):
    for target in (b"/etc/passwd", b"../../x", b"folder/../../x", b"\xff\0/x"):
        statements = (
            (f"INSERT INTO inode VALUES (77, {LINK}, 1, 0, 0, ?, 0, 0, 0, ?, 1)", (len(target), b"\x01" + target)),
            "INSERT INTO entry VALUES (1, x'6c', 77, 1)",
        )
        with open_disk(hostile(*statements)) as opened, pytest.raises((StrongroomError, OSError, ValueError)):
            vault.unpack(opened, tmp_path / "out")
        assert not (tmp_path / "out").exists() or not (tmp_path / "out" / "l").is_symlink()


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, 0, 0o170000], ids=oct)
def test_files_of_odd_kinds_are_not_made(tmp_path, kind):
    with open_disk(hostile(set_inode("inline", "mode", kind | 0o6777))) as opened:
        vault.unpack(opened, tmp_path / "out")
    assert not (tmp_path / "out" / "inline").exists()


def test_nobody_gets_another_s_rights_by_unpacking(tmp_path):
    with open_disk(
        hostile(f"UPDATE inode SET mode = {FILE | 0o6000}, uid = 0 WHERE id = {number('inline')}")
    ) as opened:
        vault.unpack(opened, tmp_path / "out")
    assert (tmp_path / "out" / "inline").stat().st_mode & 0o6000 == 0


DATABASES = {
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "text": lambda data: b"x" * len(data),
    "cut": lambda data: data[:5000],
    "one page": lambda data: data[:4096],
    "write-ahead log": lambda data: data[:18] + b"\2\2" + data[20:],
    "page size": lambda data: data[:16] + b"\2\0" + data[18:],
    "many pages": lambda data: data[:28] + b"\xff" * 4 + data[32:],
    "schema at a page that is not there": lambda data: (
        data[:100] + b"\5" + data[101:105] + b"\0\0\0\xff" * 3 + data[117:]
    ),
    "a root that is its own child": lambda data: data[:4096] + b"\5\0\0\0\1\0\0\0\0\0\0\2" + data[4108:],
    "free list": lambda data: data[:32] + b"\0\0\0\2\0\0\xff\xff" + data[40:],
    "all leaves": lambda data: data[:4096] + b"\xff" * (len(data) - 4096),
}


@pytest.mark.parametrize("change", DATABASES.values(), ids=DATABASES)
def test_what_is_no_sound_database(tmp_path, change):
    directory = base()
    with open_disk(directory, "r+") as opened:
        meta = opened._meta
        data = bytearray(meta.length)
        meta.read_at(0, data)
        new = change(bytes(data))
        meta.truncate(0)
        meta.write_at(0, new)
        meta.commit()
        opened.discard()
    try:
        use(directory, tmp_path)
    except (StrongroomError, OSError):
        return


def test_openings_that_fail_leave_nothing_in_memory():
    directory = MemoryDirectory()
    with open_disk(directory, "x") as opened:
        opened.write_bytes("a", b"x" * 100)
    disk = copied(directory)
    before = len(database._vfs.files)
    for block in range(4, len(disk["meta"]) // BLOCK):
        with contextlib.suppress(StrongroomError):
            open_disk(disk | {"meta": flipped(disk["meta"], block * BLOCK * 8)}, "r", NO_FRESHNESS).discard()
    assert len(database._vfs.files) == before
