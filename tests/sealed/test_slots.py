"""Slots: their strict form, damage, and what counts as fresh."""

from dataclasses import replace

import pytest

from strongroom.errors import FormatError, RollbackError, TamperedError, UsageError
from strongroom.sealed import NO_FRESHNESS, MemoryAnchor, Root
from strongroom.sealed import layout as fmt
from strongroom.sealed.layout import HOLE, SLOT_SIZE, Commit, Header, Retained
from strongroom.sealed.slots import check_fresh, read_slots
from strongroom.storage import MemoryStorage

KEY = bytes(range(32))
FILE_ID = bytes(16)
HEADER = Header(4096, FILE_ID, fmt.commitment(KEY, FILE_ID))
CIPHER = fmt.block_cipher(KEY, FILE_ID)
NONCE = bytes(24)
TAG = b"t" * 16
FIRST = Commit(1, 5, 5, b"p" * 48, None)


def after(commit: Commit, **changes) -> Commit:
    return replace(commit, sequence=commit.sequence + 1, previous=commit.root(HEADER), retained=(), since=(), **changes)


def seal(commit: Commit) -> bytes:
    return fmt.seal_slot(CIPHER, HEADER, commit, NONCE)


def stored(*commits: Commit | None) -> MemoryStorage:
    storage = MemoryStorage(bytes(5 * 4096))
    for at, commit in enumerate(commits):
        if commit:
            storage.write_at(at * SLOT_SIZE, seal(commit))
    return storage


# The form.


def test_a_full_slot_fits():
    before = replace(FIRST, sequence=99, previous=Root(98, bytes(32)))
    full = after(
        before,
        epoch=(1 << 63) - 1,
        lsn=(1 << 63) - 1,
        tag=TAG,
        generation=255,
        old_key=b"k" * 32,
    )
    full = replace(
        full,
        retained=tuple(Retained(n, 1 << 60, fmt.PLACE_MASK, b"q" * 48, b"d" * 32, n % 3 == 0) for n in range(50, 66)),
        since=(*(bytes([n]) * 32 for n in range(63)), before.root(HEADER).digest),
    )
    assert fmt.open_slot(CIPHER, seal(full)) == full
    itself = replace(full, retained=(*full.retained[1:], full.as_retained(HEADER)))
    assert fmt.open_slot(CIPHER, seal(itself)) == itself


def test_too_many_roots_are_told_before_anything_is_sealed():
    many = tuple(Retained(n, 0, 4, HOLE, bytes(32)) for n in range(1, 18))
    with pytest.raises(UsageError, match="retained roots: 17, wanted at most 16"):
        seal(Commit(20, 0, 4, HOLE, Root(19, bytes(32)), retained=many))
    with pytest.raises(UsageError, match="since the anchor: 65"):
        seal(Commit(90, 0, 4, HOLE, Root(89, bytes(32)), since=(bytes(32),) * 65))


def test_every_unused_byte_is_zero():
    body = fmt._pack_body(FIRST)
    free = {*range(112, 119), *range(120, 127), 144}  # epoch and log number below 2^63, and the key generation
    for at in set(range(72, 3992)) - free:
        changed = bytearray(body)
        changed[at] ^= 0x80
        clear = HEADER.pack()
        with pytest.raises(FormatError):
            fmt.open_slot(CIPHER, clear + NONCE + CIPHER.encrypt(NONCE, changed, fmt._SLOT_LABEL + clear))


@pytest.mark.parametrize(
    "wrong",
    [
        replace(FIRST, sequence=0),
        replace(FIRST, sequence=2),
        replace(FIRST, sequence=3, previous=Root(1, bytes(32))),
        replace(FIRST, length=(1 << 60) + 1),
        replace(FIRST, places=1 << 56),
        replace(FIRST, epoch=1 << 63),
        replace(FIRST, retained=(Retained(1, 6, 5, b"p" * 48, bytes(32)),)),
        replace(FIRST, retained=(Retained(2, 5, 5, b"p" * 48, bytes(32)),)),
        after(FIRST, lsn=0, tag=TAG),
        replace(after(FIRST), retained=(FIRST.as_retained(HEADER),) * 2),
        replace(after(FIRST), retained=(replace(FIRST.as_retained(HEADER), sequence=0),)),
        replace(after(FIRST), retained=(replace(FIRST.as_retained(HEADER), length=1 << 61),)),
        replace(after(FIRST), since=(bytes(32),)),
        replace(after(FIRST), since=(bytes(32), FIRST.root(HEADER).digest)),
        replace(FIRST, since=(bytes(32),)),
    ],
)
def test_bodies_that_no_writer_makes(wrong):
    with pytest.raises(FormatError, match="slot"):
        fmt.open_slot(CIPHER, seal(wrong))


def test_the_flag_is_bound():
    clear = replace(HEADER, flags=fmt.AUTHENTICATED_ONLY)
    assert not fmt.parse_header(fmt.seal_slot(CIPHER, clear, FIRST, NONCE)).encrypted
    for header, bit in ((HEADER, 1), (clear, 0)):
        slot = bytearray(fmt.seal_slot(CIPHER, header, FIRST, NONCE))
        slot[10] = bit
        with pytest.raises(TamperedError):
            fmt.open_slot(CIPHER, bytes(slot))
    assert FIRST.root(HEADER) != FIRST.root(clear)
    assert fmt.block_aad(FILE_ID) != fmt.block_aad(FILE_ID, fmt.AUTHENTICATED_ONLY)
    slot[10] = 2
    with pytest.raises(FormatError, match="flags: 0x0002"):
        fmt.parse_header(bytes(slot))


def test_every_field_of_a_root_counts():
    second = after(FIRST, epoch=1, lsn=1, tag=TAG)
    others = [
        replace(second, length=6),
        replace(second, pointer=b"q" * 48),
        replace(second, epoch=2),
        replace(second, lsn=2),
        replace(second, tag=b"u" * 16),
        replace(second, previous=Root(1, bytes(32))),
    ]
    digests = {second.root(HEADER).digest, second.root(replace(HEADER, block_size=8192)).digest}
    digests |= {other.root(HEADER).digest for other in others}
    assert len(digests) == len(others) + 2
    assert replace(second, places=9).root(HEADER) == second.root(HEADER)
    assert "k" * 32 not in repr(replace(second, old_key=b"k" * 32))


# Damage.


def test_damage_is_noted():
    second = after(FIRST)
    storage = stored(FIRST, second, second)
    slots, newest = read_slots(storage, KEY, "f")
    assert (newest, slots.notes) == (second, [])
    storage.data[SLOT_SIZE + 1000] ^= 1
    slots, newest = read_slots(storage, KEY, "f")
    assert newest == second
    assert slots.notes == ["slot 1 is damaged, by a crash or by a change of the file; version 2 is served, from 1 slot"]
    storage.data[2 * SLOT_SIZE] ^= 1
    storage.data[3 * SLOT_SIZE] ^= 1
    slots, newest = read_slots(storage, KEY, "f")
    assert newest == FIRST
    assert [note[:6] for note in slots.notes] == ["slot 1", "slot 2", "slot 3"]


def test_slots_of_another_key_are_passed_over_and_noted():
    other = bytes(32)
    header = replace(HEADER, commitment=fmt.commitment(other, FILE_ID))
    storage = stored(FIRST)
    cipher = fmt.block_cipher(other, FILE_ID)
    storage.write_at(SLOT_SIZE, fmt.seal_slot(cipher, header, after(FIRST), NONCE))
    slots, newest = read_slots(storage, other, "f")
    assert newest.sequence == 2
    assert slots.notes == ["slot 0 is sealed under another key; version 2 is served"]
    assert read_slots(storage, KEY, "f")[1] == FIRST


def test_changes_by_others_show():
    storage = stored(FIRST)
    slots, _ = read_slots(storage, KEY, "f")
    assert not slots.changed(storage)
    slots.write(storage, after(FIRST), NONCE)
    assert not slots.changed(storage)
    storage.data[5000] ^= 1
    assert slots.changed(storage)


# Freshness.


def fresh(commit: Commit, anchor: Root | None, *, log: bool = False) -> tuple[Root | None, Root | None]:
    """What `check_fresh` gives, and where the anchor is then."""
    memory = MemoryAnchor(anchor)
    found = check_fresh(commit.root(HEADER), commit.previous, memory, "f", since=commit.since, log=log)
    return found, memory.read()


def refused(commit: Commit, anchor: Root | None, *, log: bool = False) -> None:
    memory = MemoryAnchor(anchor)
    with pytest.raises(RollbackError):
        check_fresh(commit.root(HEADER), commit.previous, memory, "f", since=commit.since, log=log)
    assert memory.read() == anchor


def test_without_an_anchor():
    assert check_fresh(FIRST.root(HEADER), None, NO_FRESHNESS, "f") is None


def test_a_the_same_version():
    now = FIRST.root(HEADER)
    assert fresh(FIRST, now) == (now, now)
    refused(FIRST, replace(now, digest=bytes(32)))
    refused(after(FIRST, epoch=1), replace(after(FIRST, epoch=1).root(HEADER), epoch=0))


def test_a_the_log_is_for_the_caller_to_look_into():
    taken = after(FIRST, lsn=4, tag=TAG)
    now = taken.root(HEADER)
    assert fresh(taken, now) == (now, now)
    further = replace(now, lsn=6, tag=b"u" * 16)
    assert fresh(taken, further, log=True) == (further, further)
    refused(taken, further)  # nobody would look
    refused(taken, replace(now, tag=b"u" * 16), log=True)
    refused(taken, replace(now, lsn=3), log=True)
    refused(taken, replace(now, lsn=0, tag=b""), log=True)


def test_b_the_successor():
    first, second = FIRST.root(HEADER), after(FIRST)
    assert fresh(FIRST, None) == (first, first)
    assert fresh(second, first) == (second.root(HEADER),) * 2
    refused(after(second), first)
    refused(second, None)
    refused(second, replace(first, digest=bytes(32)))
    refused(replace(FIRST, epoch=1), None)
    refused(replace(FIRST, lsn=1, tag=TAG), None)


def test_b_a_slot_of_the_enclave_that_lost_the_race():
    first = FIRST.root(HEADER)
    logged = replace(first, lsn=1, tag=TAG)  # the winner appended to the log and moved the anchor
    lost = after(FIRST)
    refused(lost, logged)
    refused(lost, logged, log=True)
    won = after(FIRST, lsn=1, tag=TAG)
    assert fresh(won, logged)[1] == won.root(HEADER)
    refused(after(FIRST, lsn=1, tag=b"u" * 16), logged)
    refused(after(FIRST, lsn=2, tag=TAG), logged)


def chain(length: int) -> list[Commit]:
    commits = [FIRST]
    for _ in range(length - 1):
        commits.append(after(commits[-1]))
    return commits


def test_c_grouped():
    commits = chain(70)
    digests = [commit.root(HEADER).digest for commit in commits]
    newest = replace(commits[-1], since=tuple(digests[5:69]))
    fmt.open_slot(CIPHER, seal(newest))
    for at in (5, 30, 68):
        assert fresh(newest, commits[at].root(HEADER))[1] == newest.root(HEADER)
    refused(newest, commits[4].root(HEADER))
    refused(newest, Root(31, digests[29]))
    refused(newest, replace(commits[30].root(HEADER), epoch=1))
    refused(newest, replace(commits[30].root(HEADER), lsn=1, tag=TAG))
    logged = replace(newest, lsn=2, tag=TAG)
    for lsn, tag in ((0, b""), (1, b"u" * 16), (2, TAG)):
        assert fresh(logged, replace(commits[30].root(HEADER), lsn=lsn, tag=tag))[1] == logged.root(HEADER)
    refused(logged, replace(commits[30].root(HEADER), lsn=2, tag=b"u" * 16))
    refused(logged, replace(commits[30].root(HEADER), lsn=3, tag=TAG))


def test_d_an_authorised_restore():
    second = after(FIRST)
    anchor = MemoryAnchor(after(second).root(HEADER))
    restored = anchor.restore(FIRST.root(HEADER), reason="test")
    assert fresh(FIRST, restored) == (restored, restored)
    # The branch that was left: its next commit follows the restored version, but is of the epoch before.
    refused(second, restored)
    refused(replace(second, since=(FIRST.root(HEADER).digest,)), restored)
    onward = after(FIRST, epoch=1)
    assert fresh(onward, restored)[1] == onward.root(HEADER)
    refused(after(FIRST, epoch=2), restored)
