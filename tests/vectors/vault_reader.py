"""An independent reader of vaults, written from docs/spec/vault.md alone: `read_vault(files, key)` gives the contents.

Shares no code with the implementation. `meta` is read by `sealed_reader`, its database by the standard library's SQLite.
"""

from __future__ import annotations

import sqlite3
import stat
import struct
from typing import Any

from tests.vectors import sealed_reader as sealed


def read_vault(
    files: dict[str, bytes], key: bytes, anchor: str | None = None
) -> dict[str, bytes | str | None]:
    """Path -> content of a file, target of a link (str), None for a directory. Raises `sealed.Refused`."""
    meta = sealed.open_file(files["meta"], key, anchor, log=True)
    database = sqlite3.connect(":memory:")
    database.deserialize(meta.read())
    if database.execute("SELECT value FROM info WHERE name = 'version'").fetchone() != (1,):
        raise sealed.Refused("version")
    inodes: dict[int, list[Any]] = {
        row[0]: [row[1], row[2], row[3]] for row in database.execute("SELECT id, mode, size, body FROM inode")
    }
    entries = {(row[0], row[1]): row[2] for row in database.execute("SELECT parent, name, inode FROM entry")}
    packs = dict(database.execute("SELECT file, key FROM pack"))
    contents = {
        number: content(files, packs, size, body) for number, (mode, size, body) in inodes.items()
        if stat.S_ISREG(mode) or stat.S_ISLNK(mode)
    }  # fmt: skip
    modes = {number: mode for number, (mode, _, _) in inodes.items()}
    wanted = anchor_position(anchor)
    found = wanted is None or wanted == (meta.lsn, meta.tag)
    for position, record in log_records(files.get("log", b""), key, meta):
        apply(record, modes, entries, contents)
        found = found or wanted == position
    if not found:
        raise sealed.Refused("rollback")
    tree: dict[str, bytes | str | None] = {}
    walk("", 1, modes, entries, contents, tree)
    return tree


def content(files: dict[str, bytes], packs: dict[bytes, bytes], size: int, body: bytes) -> bytes:
    kind = body[0]
    if kind == 0:
        return b""
    if kind == 1:
        return body[1:]
    if kind == 2:
        pack, offset, nonce, tag = struct.unpack("<16sQ24s16s", body[1:])
        data = files.get(pack.hex())
        if data is None or offset + size > len(data):
            raise sealed.Refused("missing")
        piece_key = sealed.hkdf(packs[pack], b"strongroom/vault/v1/pack", pack)
        return sealed.decrypt(piece_key, nonce, data[offset : offset + size] + tag, b"strongroom/vault/v1/piece\0" + pack)
    file, file_key, block_size, _, version = struct.unpack("<16s32sIQ64s", body[1:])
    pointer, length, _ = struct.unpack("<48sQQ", version)
    if file.hex() not in files:
        raise sealed.Refused("missing")
    # Block p of a data file rests at byte (p - 1) * block size: one block in front makes it a file with slots.
    return sealed.read_tree(bytes(block_size) + files[file.hex()], file_key, file, block_size, pointer, length)


def anchor_position(anchor: str | None) -> tuple[int, bytes] | None:
    if anchor is None or "+" not in anchor:
        return None
    lsn, tag = anchor.split("+")[1].split("@")[0].split(":")
    return int(lsn), bytes.fromhex(tag)


def log_records(data: bytes, key: bytes, meta: Any) -> Any:
    log_key = sealed.hkdf(key, b"strongroom/vault/v1/log", meta.file_id)
    at, lsn, tag = 0, meta.lsn, meta.tag or bytes(16)
    while at + 52 <= len(data):
        length, number, nonce = struct.unpack_from("<IQ24s", data, at)
        box = data[at + 36 : at + 36 + length]
        if not 16 <= length <= (4 << 20) + 16 or len(box) != length or number > lsn + 1:
            return
        if number == lsn + 1:
            aad = b"strongroom/vault/v1/log\0" + meta.file_id + struct.pack("<Q16s", number, tag)
            try:
                plain = sealed.decrypt(log_key, nonce, box, aad)
            except sealed.Refused:
                return
            lsn, tag = number, box[-16:]
            yield (lsn, tag), plain
        at += 36 + length


def apply(record: bytes, modes: dict[int, int], entries: dict[Any, int], contents: dict[int, bytes]) -> None:
    at = 0

    def take(layout: str) -> tuple[Any, ...]:
        nonlocal at
        values = struct.unpack_from("<" + layout, record, at)
        at += struct.calcsize("<" + layout)
        return values

    inodes, names, pieces_of = take("III")
    for _ in range(inodes):
        number, mode, links, *_, length = take("QIIIIqqqH")
        target = take(f"{length}s")[0]
        if mode == 0 and links == 0:
            modes.pop(number, None)
            contents.pop(number, None)
            continue
        modes[number] = mode
        contents[number] = target or contents.get(number, b"")
    for _ in range(names):
        parent, number, length = take("QQB")
        name = take(f"{length}s")[0]
        if number:
            entries[parent, name] = number
        else:
            entries.pop((parent, name), None)
    for _ in range(pieces_of):
        number, cut, size, count = take("QQQI")
        data = bytearray(contents.get(number, b"")[: min(cut, 1 << 60)][:size].ljust(size, b"\0"))
        for _ in range(count):
            offset, length = take("QI")
            data[offset : offset + length] = take(f"{length}s")[0]
        if number in modes:
            contents[number] = bytes(data)


def walk(path: str, parent: int, modes: Any, entries: Any, contents: Any, tree: dict[str, Any]) -> None:
    for (above, name), number in entries.items():
        if above != parent:
            continue
        here = f"{path}{name.decode()}"
        if stat.S_ISDIR(modes[number]):
            tree[here] = None
            walk(here + "/", number, modes, entries, contents, tree)
        elif stat.S_ISLNK(modes[number]):
            tree[here] = contents[number].decode()
        elif stat.S_ISREG(modes[number]):
            tree[here] = contents[number]
