"""The Merkle tree over the audit log (RFC 9162, section 2.1): roots, proofs that are short, and their verification.

- The tree of the first n entries never changes; its root stands for all of them and their order.
- What is stored of it are the roots of complete subtrees: node (level, index) covers the 2^level entries from
  index * 2^level on. None of them changes once written, and an append writes two of them on average.
- A frontier is what an append and the root need: the complete subtrees that the tree consists of, largest first.

Nothing here reads a file; nodes come from an argument, and whoever gives them vouches for them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from strongroom.crypto import equal
from strongroom.errors import FormatError, RollbackError, TamperedError

HASH_SIZE = 32
MAX_SIZE = (1 << 63) - 1
MAX_PROOF = 64
"""Hashes in a proof: an inclusion proof in a tree of 2^63 entries has at most 63, a consistency proof one more."""

Node = Callable[[int, int], bytes]
"""The hash of node (level, index)."""

EMPTY_ROOT = hashlib.sha256().digest()


def leaf_hash(entry: bytes) -> bytes:
    """RFC 9162, section 2.1.1."""
    return hashlib.sha256(b"\0" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """RFC 9162, section 2.1.1."""
    return hashlib.sha256(b"\1" + left + right).digest()


@dataclass(frozen=True, slots=True)
class Frontier:
    """A tree as an append sees it.

    Attributes:
        size: number of entries.
        peaks: hashes of its complete subtrees, one for each bit of `size`, largest first.
    """

    size: int = 0
    peaks: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, node: Node, size: int) -> Frontier:
        """The frontier of the first `size` entries."""
        return cls(size, tuple(node(level, (size >> level) - 1) for level in _levels(size)))

    def append(self, leaf: bytes) -> tuple[Frontier, list[tuple[int, int, bytes]]]:
        """The tree with one more leaf, and the nodes (level, index, hash) that this completes, the leaf's first."""
        level, index, peaks = 0, self.size, list(self.peaks)
        nodes = [(0, index, leaf)]
        while index & 1:
            leaf = node_hash(peaks.pop(), leaf)
            level, index = level + 1, index >> 1
            nodes.append((level, index, leaf))
        return Frontier(self.size + 1, (*peaks, leaf)), nodes

    def root(self) -> bytes:
        """The hash of the whole tree."""
        if not self.peaks:
            return EMPTY_ROOT
        root, *others = reversed(self.peaks)
        for peak in others:
            root = node_hash(peak, root)
        return root

    def peak_levels(self) -> list[tuple[int, int]]:
        """(level, index) of each peak."""
        return [(level, (self.size >> level) - 1) for level in _levels(self.size)]


def inclusion_proof(node: Node, index: int, size: int) -> list[bytes]:
    """The hashes that lead from entry `index` (from 0) to the root of the first `size` entries: section 2.1.3.1's PATH.

    Raises:
        ValueError: there is no such entry.
    """
    if not 0 <= index < size:
        raise ValueError(f"index: {index}, wanted one below {size}")
    path: list[bytes] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append(_subtree(node, middle, end))
            end = middle
        else:
            path.append(_subtree(node, start, middle))
            start = middle
    return path[::-1]


def consistency_proof(node: Node, old: int, new: int) -> list[bytes]:
    """The hashes that show the first `old` entries to be those of the tree of `new`: section 2.1.4.1's PROOF.

    It is empty where `old` is 0 or `new`.

    Raises:
        ValueError: `old` is more than `new`.
    """
    if not 0 <= old <= new:
        raise ValueError(f"old: {old}, wanted at most {new}")
    if old in (0, new):
        return []
    proof: list[bytes] = []
    start, end = 0, new
    while old != end:
        middle = start + _split(end - start)
        if old <= middle:
            proof.append(_subtree(node, middle, end))
            end = middle
        else:
            proof.append(_subtree(node, start, middle))
            start = middle
    if start:
        proof.append(_subtree(node, start, end))
    return proof[::-1]


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Section 2.1.3.2: the entry with hash `leaf` is number `index` (from 0) of the `size` entries under `root`.

    Raises:
        FormatError: the proof is not one for such an entry.
        TamperedError: it leads to another root.
    """
    _check_sizes(index + 1, size)
    _check_hashes((leaf, root, *proof))
    fn, sn = index, size - 1
    for sibling in proof:
        if sn == 0:
            raise FormatError("inclusion proof: has more hashes than the tree has levels")
        if fn & 1 or fn == sn:
            leaf = node_hash(sibling, leaf)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            leaf = node_hash(leaf, sibling)
        fn, sn = fn >> 1, sn >> 1
    if sn:
        raise FormatError("inclusion proof: has fewer hashes than the tree has levels")
    if not equal(leaf, root):
        raise TamperedError(f"inclusion proof: entry {index + 1} is not in the log of {size} entries that was named")


def verify_consistency(old: int, old_root: bytes, new: int, new_root: bytes, proof: Sequence[bytes]) -> None:
    """Section 2.1.4.2: the tree of `new` entries begins with the `old` entries under `old_root`.

    Raises:
        FormatError: the proof is not one for such trees.
        RollbackError: the one tree does not extend the other.
    """
    _check_sizes(old, new)
    _check_hashes((old_root, new_root, *proof))
    if old in (0, new):
        if proof:
            raise FormatError(f"consistency proof: {len(proof)} hashes, wanted none")
        wanted = EMPTY_ROOT if old == 0 else new_root
        if not equal(old_root, wanted):
            raise _fork(old, new)
        return
    path = list(proof)
    if old & (old - 1) == 0:
        path.insert(0, old_root)
    if not path:
        raise FormatError("consistency proof: is empty")
    fn, sn = old - 1, new - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    first = second = path[0]
    for sibling in path[1:]:
        if sn == 0:
            raise FormatError("consistency proof: has more hashes than the tree has levels")
        if fn & 1 or fn == sn:
            first, second = node_hash(sibling, first), node_hash(sibling, second)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            second = node_hash(second, sibling)
        fn, sn = fn >> 1, sn >> 1
    if sn:
        raise FormatError("consistency proof: has fewer hashes than the tree has levels")
    if not equal(first, old_root) or not equal(second, new_root):
        raise _fork(old, new)


def read_hashes(value: object) -> tuple[bytes, ...]:
    """A proof. Raises FormatError unless `value` is a list of hashes in hexadecimal digits."""
    if not isinstance(value, list) or len(value) > MAX_PROOF:
        raise FormatError(f"proof: wanted a list of at most {MAX_PROOF} hashes")
    try:
        hashes = tuple(bytes.fromhex(one) for one in value)
    except (ValueError, TypeError):
        hashes = (b"",)
    if any(len(one) != HASH_SIZE for one in hashes):
        raise FormatError(f"proof: wanted hashes of {HASH_SIZE} bytes in hexadecimal digits")
    return hashes


def _fork(old: int, new: int) -> RollbackError:
    return RollbackError(
        f"consistency proof: the log of {new} entries does not begin with the {old} entries seen before",
        hint="the log was rolled back, rewritten or forked: keep both heads, they prove it",
    )


def _check_sizes(old: int, new: int) -> None:
    if not 0 <= old <= new <= MAX_SIZE:
        raise FormatError(f"log: entry or size {old}, wanted at most {new}")


def _check_hashes(hashes: Sequence[bytes]) -> None:
    if len(hashes) > MAX_PROOF + 2:
        raise FormatError(f"proof: {len(hashes)} hashes, wanted at most {MAX_PROOF}")
    if any(len(value) != HASH_SIZE for value in hashes):
        raise FormatError(f"proof: holds a hash that is not of {HASH_SIZE} bytes")


def _levels(size: int) -> list[int]:
    """The levels of a tree's peaks, highest first: the bits of its size."""
    return [level for level in range(size.bit_length() - 1, -1, -1) if size >> level & 1]


def _split(count: int) -> int:
    """The largest power of two smaller than `count`: where section 2.1.1 divides a tree."""
    return 1 << (count - 1).bit_length() - 1


def _subtree(node: Node, start: int, end: int) -> bytes:
    """The hash over entries `start` up to `end`, where that is a subtree: complete, or the last of its level."""
    peaks = []
    while start < end:
        level = (end - start).bit_length() - 1
        peaks.append(node(level, start >> level))
        start += 1 << level
    root, *others = reversed(peaks)
    for peak in others:
        root = node_hash(peak, root)
    return root
