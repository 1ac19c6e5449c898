"""A second reader of sealed files, from docs/spec/sealed-file.md alone. It shares no code with the package.

`open_file(...).read()` gives the content of a file, or `Refused` says with which verdict it is refused.
"""

import hashlib
import hmac
import re
import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

LABEL = b"strongroom/sealed/v1/"
PLACE = (1 << 56) - 1


class Refused(Exception):  # noqa: N818
    """The file is refused. The first argument is the verdict, as in the index of the vectors."""


def check(fine, verdict, why):
    if not fine:
        raise Refused(verdict, why)


def hkdf(key, label, context):
    return hmac.digest(hmac.digest(bytes(32), key, "sha256"), label + b"\0" + context + b"\1", "sha256")


def decrypt(key, nonce, box, aad):
    """XAES-256-GCM: the first half of the nonce derives a key, the second is AES-256-GCM's nonce."""
    aes = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305
    subkey = int.from_bytes(aes.update(bytes(16)), "big") << 1
    subkey = (subkey ^ (0x87 if subkey >> 128 else 0)) & ((1 << 128) - 1)
    derived = b""
    for counter in (1, 2):
        block = int.from_bytes(bytes((0, counter)) + b"X\0" + nonce[:12], "big") ^ subkey
        derived += aes.update(block.to_bytes(16, "big"))
    try:
        return AESGCM(derived).decrypt(nonce[12:], box, aad)
    except InvalidTag:
        raise Refused("tampered", "authentication failed") from None


class Root:
    def __init__(self, sequence, digest, epoch=0, lsn=0, tag=bytes(16)):
        self.version, self.epoch, self.log = (sequence, digest), epoch, (lsn, tag)


def parse_root(text):
    found = re.fullmatch(r"([1-9]\d*):([0-9a-f]{64})(?:\+([1-9]\d*):([0-9a-f]{32}))?(?:@([1-9]\d*))?", text, re.ASCII)
    check(found, "format", "root")
    sequence, digest, lsn, tag, epoch = found.groups()
    tag = bytes.fromhex(tag or "00" * 16)
    return Root(int(sequence), bytes.fromhex(digest), int(epoch or 0), int(lsn or 0), tag)


class Slot:
    """One slot: its header, and once it is opened, its body."""

    def __init__(self, raw):
        self.raw, self.clear = raw, raw[:64]
        header = struct.unpack("<8sHHI16s32s", self.clear.ljust(64, b"\0"))
        magic, version, self.flags, size, self.file_id, self.commitment = header
        self.block_size, possible = size, 4096 <= size <= 1 << 22 and size & (size - 1) == 0
        self.looks_right = magic == b"SRSEALED" and version == 1 and self.flags <= 1 and possible

    def open(self, key):
        raw = self.raw
        self.block_key = hkdf(key, LABEL + b"blocks", self.file_id)
        check(len(raw) == 4096, "tampered", "slot is cut")
        body = self.body = decrypt(self.block_key, raw[64:88], raw[88:], LABEL + b"slot\0" + self.clear)
        (
            self.sequence, self.length, self.places, self.pointer, before, before_digest, self.epoch, lsn, tag,
            self.generation, old_keys, retained, since, pinned, gap, old_key, gap_2,
        ) = struct.unpack_from("<QQQ48sQ32sQQ16sBBBBHH32sQ", body)  # fmt: skip
        self.previous, self.log, self.lsn, self.tag = (before, before_digest), (lsn, tag), lsn, tag
        parts = [
            1 <= self.sequence < 1 << 61 and before == self.sequence - 1 and (before or not any(before_digest)),
            self.length <= 1 << 60 and self.places <= PLACE and self.epoch < 1 << 63 and lsn < 1 << 63,
            (lsn or not any(tag)) and old_keys <= 1 and (old_keys or not any(old_key)),
            retained <= 16 and since <= 64 and since < self.sequence and not pinned >> retained and not gap + gap_2,
            not any(body[192 + 104 * retained : 1856]) and not any(body[1856 + 32 * since :]),
        ]
        check(all(parts), "format", "body")
        self.since = [body[1856 + 32 * i : 1888 + 32 * i] for i in range(since)]
        check(not since or self.since[-1] == before_digest, "format", "roots since the anchor")
        clear = self.file_id + struct.pack("<IHQ", self.block_size, self.flags, self.epoch)
        fields = struct.pack("<QQ48sQ32sQ16s", self.sequence, self.length, self.pointer, *self.previous, *self.log)
        digest = hashlib.sha256(LABEL + b"root\0" + clear + fields).digest()
        self.root = Root(self.sequence, digest, self.epoch, lsn, tag)
        self.kept = [struct.unpack_from("<QQQ48s32s", body, 192 + 104 * i) for i in range(retained)]
        numbers = [kept[0] for kept in self.kept]
        own = (self.sequence, self.length, self.places, self.pointer, digest)
        fine = numbers == sorted(set(numbers)) and (not numbers or 1 <= numbers[0] <= numbers[-1] <= self.sequence)
        for kept in self.kept:
            fine = fine and kept[1] <= 1 << 60 and kept[2] <= PLACE and (kept[0] != self.sequence or kept == own)
        check(fine, "format", "retained roots")
        old_keys = {(self.generation - 1) % 256: old_key} if old_keys else {}
        self.keys = old_keys | {self.generation: self.block_key}
        return self


def newest_slot(data, key):
    """Steps 1 to 5 of Opening: the newest slot, and the numbers of those passed over."""
    slots = [Slot(data[at : at + 4096]) for at in range(0, 4 * 4096, 4096)]
    if not any(slot.looks_right for slot in slots):
        check(not data.startswith(b"SRSEALED") or len(data) >= 4 * 4096, "truncated", "no whole slot")
        raise Refused("format", "not a sealed file")
    mine = [s for s in slots if s.looks_right and s.commitment == hkdf(key, LABEL + b"commit", s.file_id)]
    check(mine, "wrong-key", "sealed under another key")
    opened, damaged = [], []
    for at, slot in enumerate(slots):
        try:
            check(slot in mine, "tampered", "another key")
            opened.append(slot.open(key))
        except Refused as error:
            if error.args[0] != "tampered":
                raise
            if any(slot.raw):
                damaged.append(at)
    check(opened, "truncated" if len(data) < 4 * 4096 else "tampered", "no slot authenticates")
    bodies = {}
    for slot in opened:
        check(slot.clear == opened[0].clear, "tampered", "slots of different files")
        check(bodies.setdefault(slot.sequence, slot.body) == slot.body, "tampered", "two histories")
    newest = max(opened, key=lambda slot: slot.sequence)
    check(len(data) >= newest.places * newest.block_size, "truncated", "shorter than its slot says")
    return newest, damaged, opened


def is_fresh(slot, anchor, log):
    """Step 6. With `log` the caller looks for the anchor's position in the log that follows the slot's."""
    root = slot.root
    if root.version == anchor.version:
        return root.epoch <= anchor.epoch and (root.log == anchor.log or (log and root.log[0] < anchor.log[0]))
    steps = slot.sequence - anchor.version[0]
    follows = slot.previous == anchor.version and root.log == anchor.log
    listed = 1 <= steps <= len(slot.since) and slot.since[-steps] == anchor.version[1]
    listed = listed and (root.log == anchor.log or root.log[0] > anchor.log[0])
    return root.epoch == anchor.epoch and (follows or listed)


def open_file(data, key, anchor=None, *, at=None, encrypted=None, log=False):
    """The newest slot of a sealed file; its `read` gives the content, `damaged` the slots that were passed over."""
    slot, slot.damaged, opened = newest_slot(data, key)
    check(encrypted in (None, not slot.flags), "format", "of the other kind")
    check(anchor is None or is_fresh(slot, parse_root(anchor), log), "rollback", "not what the anchor holds")
    length, places, pointer = slot.length, slot.places, slot.pointer
    if at is not None:
        before = [(s.sequence, s.length, s.places, s.pointer) for s in opened if s.root.version == slot.previous]
        known = {kept[0]: kept[1:4] for kept in [*slot.kept, *before, (slot.sequence, length, places, pointer)]}
        check(at in known, "usage", "not kept")
        length, places, pointer = known[at]
        check(len(data) >= places * slot.block_size, "truncated", "shorter than its slot says")
    version = (pointer, length, places, slot.flags, -(-4 * 4096 // slot.block_size))
    slot.read = lambda: walk_tree(data, slot.keys, slot.file_id, slot.block_size, *version)
    return slot


def read_tree(data, key, file_id, block_size, pointer, length, flags=0):
    """The content of a tree without slots, whose place p lies at byte p * block size of `data`."""
    keys = {0: hkdf(key, LABEL + b"blocks", file_id)}
    return walk_tree(data, keys, file_id, block_size, pointer, length, len(data) // block_size, flags, 1)


def walk_tree(data, keys, file_id, size, root, length, places, flags, first):
    fanout, blocks, height = size // 48, -(-length // size), 0
    while fanout**height < blocks:
        height += 1
    content, seen = bytearray(length), set(range(first))

    def walk(level, index, pointer):
        word, nonce, tag = struct.unpack("<Q24s16s", pointer)
        place, generation = word & PLACE, word >> 56
        if not any(pointer):
            return
        check(place and place < places and place not in seen, "tampered", "place")
        check(generation in keys, "wrong-key", "generation")
        seen.add(place)
        block = data[place * size : (place + 1) * size]
        aad = LABEL + b"block\0" + file_id + struct.pack("<HBQ", flags, level, index)
        if flags:
            decrypt(keys[generation], nonce, tag, aad + block)
        else:
            block = decrypt(keys[generation], nonce, block + tag, aad)
        if level == 0:
            content[index * size : (index + 1) * size] = block[: length - index * size]
            return
        for child in range(fanout):
            walk(level - 1, index * fanout + child, block[child * 48 : child * 48 + 48])

    walk(height, 0, root)
    return bytes(content)
