"""The block tree and what is read of committed versions: shapes, memory, and pointers that cannot be."""

import os
import threading

import pytest

from strongroom.crypto import BlockCipher
from strongroom.errors import IntegrityError, TamperedError, TruncatedError, WrongKeyError
from strongroom.sealed import tree as tree_module
from strongroom.sealed import versions
from strongroom.sealed.blocks import BlockStore
from strongroom.sealed.layout import HOLE, POINTER, NonceSource
from strongroom.sealed.tree import BlockTree
from strongroom.sealed.versions import Version
from strongroom.storage import MemoryStorage

BLOCK = 4096
FANOUT = 85


def store_on(storage: MemoryStorage, *, generation: int = 0, origin: int = 1) -> BlockStore:
    ciphers = {number: BlockCipher(bytes([number]) * 32) for number in range(generation + 1)}
    return BlockStore(storage, ciphers, generation, bytes(16), BLOCK, origin=origin, what="tree")


def new_tree(storage: MemoryStorage | None = None) -> BlockTree:
    return BlockTree(store_on(storage or MemoryStorage()), None, (), first=1)


def block(index: int) -> bytes:
    return index.to_bytes(4, "big") * (BLOCK // 4)


def read(tree: BlockTree, index: int, count: int = 1) -> bytes:
    out = bytearray(count * BLOCK)
    tree.read(index, out)
    return bytes(out)


@pytest.mark.parametrize("count", [1, 2, FANOUT, FANOUT + 1, FANOUT**2, FANOUT**2 + 1])
def test_heights(count):
    tree = new_tree()
    tree.grow(count * BLOCK)
    assert tree.height == (0 if count == 1 else 1 if count <= FANOUT else 2 if count <= FANOUT**2 else 3)
    tree.write(count - 1, block(7))
    assert read(tree, count - 1) == block(7)
    assert count == 1 or read(tree, 0) == bytes(BLOCK)
    tree.prepare(count * BLOCK)
    assert read(tree, count - 1) == block(7)
    assert len(list(tree.nodes())) == tree.height
    tree.cut(BLOCK)
    assert tree.height == 0
    assert read(tree, 0) == (block(7) if count == 1 else bytes(BLOCK))
    assert tree.map().built() == (count == 1)


def test_growing_keeps_what_is_there():
    tree = new_tree()
    tree.grow(BLOCK)
    tree.write(0, block(1))
    for count in (2, FANOUT + 1, FANOUT**2 + 1):
        tree.grow(count * BLOCK)
        assert read(tree, 0) == block(1)
    tree.cut(3)
    assert read(tree, 0) == block(1)
    assert tree.map().built() == 1


def test_reads_and_writes_run_across_interior_blocks():
    tree = new_tree()
    count = 3 * FANOUT + 10
    tree.grow(count * BLOCK)
    data = b"".join(map(block, range(count)))
    tree.write(0, data)
    assert read(tree, 0, count) == data
    assert read(tree, FANOUT - 1, 2 * FANOUT + 2) == data[(FANOUT - 1) * BLOCK : (3 * FANOUT + 1) * BLOCK]
    tree.punch(FANOUT - 2, 2 * FANOUT + 3)
    assert tree.map().built() == count - FANOUT - 5
    expected = data[: (FANOUT - 2) * BLOCK] + bytes((FANOUT + 5) * BLOCK) + data[(2 * FANOUT + 3) * BLOCK :]
    assert read(tree, 0, count) == expected
    version = tree.prepare(count * BLOCK)
    again = BlockTree(tree.store, version, (), first=1)
    assert read(again, 0, count) == expected
    assert versions.verify(tree.store, version, 1) == count - FANOUT - 5


def test_interior_blocks_of_holes_only_are_holes():
    tree = new_tree()
    tree.grow(3 * FANOUT * BLOCK)
    tree.write(5, block(5))
    tree.flush()
    tree.write(5, block(6))
    tree.punch(5, 6)
    tree.flush()
    assert tree.map().built() == 0
    assert tree.prepare(3 * FANOUT * BLOCK) == Version(HOLE, 3 * FANOUT * BLOCK, 1)


def test_little_is_kept_in_memory(monkeypatch):
    monkeypatch.setattr(tree_module, "_NODE_CACHE", 10 * BLOCK)
    storage = MemoryStorage()
    tree = new_tree(storage)
    count = 40 * FANOUT
    tree.grow(count * BLOCK)
    for index in range(0, count, 20):
        tree.write(index, block(index))
        tree.relieve()
        assert sum(map(len, tree._dirty.values())) <= 11
        assert len(tree._clean) <= 10
    for index in range(0, count, 20):
        assert read(tree, index) == block(index)
    version = tree.prepare(count * BLOCK)
    assert versions.verify(tree.store, version, 1) == count // 20
    tree.forget()
    assert not tree._clean


def test_cutting_what_was_never_flushed_releases_it():
    tree = new_tree()
    tree.grow(5 * FANOUT * BLOCK)
    for index in range(0, 5 * FANOUT, 7):
        tree.write(index, block(index))
    tree.cut(FANOUT * BLOCK)
    assert tree.height == 1
    assert tree.map().built() == -(-FANOUT // 7)
    tree.prepare(FANOUT * BLOCK)
    assert tree.map().built() == -(-FANOUT // 7) + 1


# Pointers that only a holder of the key can make, but a careless one might.


def forged(places: list[int], storage: MemoryStorage | None = None) -> tuple[BlockStore, Version]:
    """A version of height 1 whose data pointers name these places; the interior block rests in place 1."""
    storage = storage or MemoryStorage()
    store = store_on(storage)
    node = b"".join(POINTER.pack(place, bytes(24), bytes(16)) for place in places).ljust(BLOCK, b"\0")
    pointer = bytes(store.write(1, 0, [1], node))
    store.resize(10)
    return store, Version(pointer, FANOUT * BLOCK, 10)


@pytest.mark.parametrize(
    "places", [[2, 3, 2], [1], [2, 10], [1 << 55], [4, 4]], ids=["twice", "itself", "behind", "far", "again"]
)
def test_a_place_is_used_once_and_within_the_file(places):
    store, version = forged(places)
    with pytest.raises(TamperedError, match="used twice"):
        versions.reach(store, version, 1)
    with pytest.raises(IntegrityError):
        versions.verify(store, version, 1)
    tree = BlockTree(store, version, (), first=1)
    with pytest.raises(TamperedError):
        tree.write(0, block(0))
    assert versions.scrub(store, [version], 1).problems


@pytest.mark.parametrize("place", [0 | 1 << 56, 10, 1 << 55])
def test_reading_does_not_follow_a_pointer_out_of_the_version(place):
    store, version = forged([2, place])
    with pytest.raises(TamperedError, match="out of range"):
        read(BlockTree(store, version, (), first=1), 1)


@pytest.mark.parametrize("first, places", [(1, 1), (2, 10)])
def test_the_root_block_rests_within_the_version(first, places):
    store, version = forged([2])
    with pytest.raises(TamperedError, match="out of range"):
        BlockTree(store, Version(version.pointer, version.length, places), (), first=first)


def test_places_of_the_slots_are_no_blocks():
    store = BlockStore(
        MemoryStorage(bytes(20 * BLOCK)), {0: BlockCipher(bytes(32))}, 0, bytes(16), BLOCK, origin=0, what=""
    )
    node = POINTER.pack(3, bytes(24), bytes(16)).ljust(BLOCK, b"\0")
    version = Version(bytes(store.write(1, 0, [4], node)), FANOUT * BLOCK, 10)
    assert versions.reach(store, version, 3) == 0b11000
    with pytest.raises(TamperedError, match="out of range"):
        versions.reach(store, version, 4)


def test_a_version_longer_than_the_storage():
    store, version = forged([2])
    store.resize(5)
    for look in (versions.reach, versions.verify):
        with pytest.raises(TruncatedError, match="5 places, wanted 10"):
            look(store, version, 1)
    with pytest.raises(TruncatedError):
        versions.generations(store, version)


def test_a_generation_without_a_key():
    storage = MemoryStorage()
    store = store_on(storage, generation=3)
    pointer = bytes(store.write(0, 0, [1], block(1)))
    out = bytearray(BLOCK)
    store.read(0, 0, pointer, out)
    assert out == block(1)
    with pytest.raises(WrongKeyError, match=r"key generation 3, wanted one of \[0\]"):
        store_on(storage).read(0, 0, pointer, out)
    assert versions.generation_of(pointer) == 3
    assert versions.place_of(pointer) == 1


@pytest.mark.parametrize("places", [[1], [1, 2, 3, 4], [4, 3, 2, 1], [1, 2, 7, 8, 9, 5], list(range(1, 200))])
def test_runs_of_places(places):
    storage = MemoryStorage()
    store = store_on(storage)
    data = b"".join(map(block, places))
    pointers = store.write(0, 50, places, data)
    out = bytearray(len(data))
    store.read(0, 50, pointers, out)
    assert out == data
    alone = bytearray(BLOCK)
    for i in range(len(places)):  # each block has its own nonce, tag and place, however it was written
        store.read(0, 50 + i, pointers[i * POINTER.size : (i + 1) * POINTER.size], alone)
        assert alone == data[i * BLOCK : (i + 1) * BLOCK]
    assert len({bytes(pointers[at + 8 : at + 32]) for at in range(0, len(pointers), POINTER.size)}) == len(places)


@pytest.mark.parametrize("damaged", [0, 1, 30, 62, 63])
def test_a_block_changed_within_a_run(damaged):
    storage = MemoryStorage()
    store = store_on(storage)
    pointers = store.write(0, 0, list(range(1, 65)), bytes(64 * BLOCK))
    storage.data[damaged * BLOCK + 100] ^= 1
    with pytest.raises(
        TamperedError, match=f"block {damaged} of level 0: authentication failed at place {damaged + 1}"
    ):
        store.read(0, 0, pointers, bytearray(64 * BLOCK))


def test_nonces_are_drawn_anew():
    source = NonceSource()
    drawn = [source.next(), *_take(source, 1000), *_take(NonceSource(), 1000)]
    assert len(set(drawn)) == len({nonce[12:] for nonce in drawn}) == 2001
    assert {nonce[:12] for nonce in drawn[:1001]} == {drawn[0][:12]}
    assert drawn[0][:12] != drawn[1001][:12]
    source._used = NonceSource._LIMIT - 1
    assert source.take_apart(2)[0] != drawn[0][:12]


def _take(source, count):
    prefix, halves = source.take_apart(count)
    return [prefix + half for half in halves]


def test_one_cipher_serves_several_threads():
    cipher, wrong = BlockCipher(bytes(32)), []
    nonces = [os.urandom(24) for _ in range(200)]  # more derived keys than are cached
    sealed = [cipher.encrypt(nonce, block(i), b"") for i, nonce in enumerate(nonces)]

    def open_all() -> None:
        out = bytearray(BLOCK)
        for i, nonce in enumerate(nonces):
            cipher.decrypt_into(nonce, sealed[i], b"", out)
            if out != block(i):
                wrong.append(i)

    threads = [threading.Thread(target=open_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
