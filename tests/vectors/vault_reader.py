"""An independent reader of vaults, written from docs/spec/vault.md alone: `read_vault(files, key)` gives the contents.

Shares no code with the implementation. `meta` is read by `sealed_reader`, its database by the SQLite of the standard
library.
"""

import sqlite3
import stat
import struct

from tests.vectors import sealed_reader as sealed

TABLES = {"info", "inode", "entry", "pack", "old", "dead", "orphan"}


def read_vault(files, key, anchor=None, *, encrypted=True):
    """Path -> content of a file, target of a link (str), None for a directory.

    Args:
        files: name -> bytes of the vault's directory.
        encrypted: whether it must be; else it must be authenticated only.

    Raises:
        sealed.Refused: with the verdict.
    """
    if not encrypted:
        key = sealed.hkdf(key, b"strongroom/vault/v1/authenticated-only", b"")
    meta = sealed.open_file(files["meta"], key, anchor, log=True)
    database = sqlite3.connect(":memory:")
    database.deserialize(meta.read())
    names = {row[0] for row in database.execute("SELECT name FROM sqlite_schema")}
    sealed.check(names == TABLES, "format", "tables")
    version = database.execute("SELECT value FROM info WHERE name = 'version'").fetchone()
    sealed.check(version == (1,), "format", "version")
    rows = {row[0]: row[1:] for row in database.execute("SELECT id, mode, size, body FROM inode")}
    entries = {row[:2]: row[2] for row in database.execute("SELECT parent, name, inode FROM entry")}
    packs = dict(database.execute("SELECT file, key FROM pack"))
    database.close()
    modes = {number: row[0] for number, row in rows.items()}
    contents = {
        number: content(files, packs, size, body, encrypted)
        for number, (mode, size, body) in rows.items()
        if stat.S_ISREG(mode) or stat.S_ISLNK(mode)
    }
    wanted = anchor_position(anchor)
    found = wanted is None or wanted == (meta.lsn, meta.tag)
    for position, record in log_records(files.get("log", b""), key, meta):
        apply(record, modes, entries, contents)
        found = found or wanted == position
    sealed.check(found, "rollback", "log")
    tree = {}
    walk("", 1, modes, entries, contents, tree)
    return tree


def content(files, packs, size, body, encrypted):
    kind = body[0]
    if kind == 0:
        return b""
    if kind == 1:
        return body[1:]
    if kind == 2:
        pack, offset, nonce, tag = struct.unpack("<16sQ24s16s", body[1:])
        data = files.get(pack.hex())
        sealed.check(data is not None, "tampered", "missing")
        sealed.check(offset + size <= len(data), "truncated", "pack")
        piece_key = sealed.hkdf(packs[pack], b"strongroom/vault/v1/pack", pack)
        piece = data[offset : offset + size]
        if encrypted:
            return sealed.decrypt(piece_key, nonce, piece + tag, b"strongroom/vault/v1/piece\0" + pack)
        sealed.decrypt(piece_key, nonce, tag, b"strongroom/vault/v1/clear-piece\0" + pack + piece)
        return piece
    file, file_key, block_size, _, version = struct.unpack("<16s32sIQ64s", body[1:])
    pointer, length, places = struct.unpack("<48sQQ", version)
    data = files.get(file.hex())
    sealed.check(data is not None, "tampered", "missing")
    sealed.check(len(data) >= (places - 1) * block_size, "truncated", "data file")
    sealed.check(length == size, "format", "size")
    # Block p of a data file rests at byte (p - 1) * block size: one block in front makes that p * block size.
    return sealed.read_tree(bytes(block_size) + data, file_key, file, block_size, pointer, length, not encrypted)


def anchor_position(anchor):
    if anchor is None or "+" not in anchor:
        return None
    lsn, tag = anchor.split("+")[1].split("@")[0].split(":")
    return int(lsn), bytes.fromhex(tag)


def log_records(data, key, meta):
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


def apply(record, modes, entries, contents):
    at = 0

    def take(layout):
        nonlocal at
        values = struct.unpack_from("<" + layout, record, at)
        at += struct.calcsize("<" + layout)
        return values

    inodes, names, pieces_of = take("III")
    for _ in range(inodes):
        number, mode, links, *_, length = take("QIIIIqqqH")
        target = take(f"{length}s")[0]
        if mode == links == 0:
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


def walk(path, parent, modes, entries, contents, tree):
    for (above, name), number in entries.items():
        if above != parent:
            continue
        fine = 1 <= len(name) <= 255 and name not in (b".", b"..") and not {47, 0} & {*name}
        sealed.check(fine, "format", "name")
        here = f"{path}{name.decode()}"
        if stat.S_ISDIR(modes[number]):
            tree[here] = None
            walk(here + "/", number, modes, entries, contents, tree)
        elif stat.S_ISLNK(modes[number]):
            tree[here] = contents[number].decode()
        elif stat.S_ISREG(modes[number]):
            tree[here] = contents[number]
