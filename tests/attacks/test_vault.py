"""What whoever holds a vault's disk can try: each attempt is refused, or changes nothing that anybody reads."""

import random

import pytest

from strongroom.errors import ConflictError, FormatError, IntegrityError, RollbackError, TamperedError, TruncatedError
from strongroom.sealed import NO_FRESHNESS, MemoryAnchor
from strongroom.sealed.layout import SLOT_SIZE, SLOTS_SIZE
from strongroom.storage import MemoryDirectory
from tests.attacks.vaults import (
    BLOCK,
    CONTENTS,
    body_of,
    copied,
    data_file,
    made,
    open_disk,
    outcome,
    read_all,
    swapped,
)


@pytest.fixture(scope="module")
def vault():
    """(disk, anchor); tests leave both as they are."""
    directory, anchor = made()
    return copied(directory), anchor


@pytest.fixture
def live(vault):
    """The same, to go on with."""
    return MemoryDirectory(vault[0]), MemoryAnchor(vault[1].read())


def refuses(error, disk, anchor, match=None):
    with pytest.raises(error, match=match):
        read_all(disk, MemoryAnchor(anchor.read()))


# Within and between data files.


def test_names_and_shape_do_not_show(vault):
    for name, content in vault[0].items():
        for word in (b"train", b"images", b"inline", b"packed", b"SQLite", b"CREATE TABLE"):
            assert word not in content
            assert word.decode() not in name
        assert all(piece[i : i + 16] not in content for piece in CONTENTS.values() for i in (0, 300, 484))


def test_reorder_blocks_of_a_file(vault):
    disk, anchor = vault
    name = data_file(disk, "train/images")
    places = range(len(disk[name]) // BLOCK)
    rng = random.Random(1)  # noqa: S311
    for _ in range(30):
        one, two = rng.sample(places, 2)
        changed = swapped(disk[name], one * BLOCK, two * BLOCK, BLOCK)
        assert outcome(disk | {name: changed}, CONTENTS, anchor) == ("same" if changed == disk[name] else "refused")


def test_reorder_blocks_of_meta(vault):
    disk, anchor = vault
    places = range(SLOTS_SIZE // BLOCK, len(disk["meta"]) // BLOCK)
    found = {
        outcome(disk | {"meta": swapped(disk["meta"], one * BLOCK, two * BLOCK, BLOCK)}, CONTENTS, anchor)
        for one in places
        for two in places
        if one < two
    }
    assert found <= {"refused", "same"} and "refused" in found


def test_a_block_of_another_file(vault):
    disk, anchor = vault
    one, two = data_file(disk, "train/images"), data_file(disk, "train/labels")
    for at in range(0, len(disk[one]), BLOCK):
        changed = disk[one][:at] + disk[two][at : at + BLOCK] + disk[one][at + BLOCK :]
        refuses(TamperedError, disk | {one: changed}, anchor, r"train/images: .*authentication failed")


def test_swap_two_data_files(vault):
    disk, anchor = vault
    files = [data_file(disk, path) for path in ("train/images", "train/labels", "train/packed")]
    for one, two in zip(files, files[1:] + files[:1], strict=True):
        refuses((TamperedError, TruncatedError), disk | {one: disk[two], two: disk[one]}, anchor)


def test_swap_pieces_of_a_pack(vault):
    disk, anchor = vault
    one, two = body_of(disk, "train/packed"), body_of(disk, "train/packed-too")
    assert one.pack == two.pack
    name = one.pack.hex()
    changed = swapped(disk[name], one.offset, two.offset, 3000)
    refuses(TamperedError, disk | {name: changed}, anchor, "train/packed: .*authentication failed")


def test_truncate_anything(vault):
    disk, anchor = vault
    for name, data in disk.items():
        for length in {0, 1, 100, BLOCK, len(data) // 2, len(data) - BLOCK, len(data) - 1} - {len(data)}:
            if length >= 0:
                refuses(TruncatedError, disk | {name: data[:length]}, anchor)


def test_append_to_anything(vault):
    disk, anchor = vault
    for name, data in disk.items():
        assert outcome(disk | {name: data + b"x" * 5000}, CONTENTS, anchor) == "same"


def test_delete_a_data_file(vault):
    disk, anchor = vault
    for name in disk.keys() - {"meta"}:
        refuses(TamperedError, {n: data for n, data in disk.items() if n != name}, anchor, "is missing")


# Back in time.


def changed(live, path, content):
    with open_disk(live[0], "r+", live[1]) as opened, opened.open(path, "r+b") as file:
        file.write(content)


def test_roll_back_one_data_file(live):
    before = copied(live[0])
    changed(live, "train/images", b"n" * 70_000)
    name, after = data_file(live[0], "train/images"), copied(live[0])
    assert name in before and before[name] != after[name]  # changed in place
    refuses(IntegrityError, after | {name: before[name]}, live[1])
    assert read_all(after, live[1])["train/images"] == b"n" * 70_000


def test_roll_back_meta_alone(live):
    before = copied(live[0])
    changed(live, "inline", b"n")
    after = copied(live[0])
    refuses(RollbackError, after | {"meta": before["meta"]}, live[1])
    # Without an anchor it is the version before, whole, as long as its data files are.
    assert read_all(after | {"meta": before["meta"]}) == CONTENTS


def test_roll_back_the_whole_vault(live):
    before = copied(live[0])
    for content in (b"2", b"3"):
        changed(live, "inline", content)
    refuses(RollbackError, before, live[1], r"root 2:.* wanted 4:")
    assert read_all(before) == CONTENTS  # without an anchor nobody can tell


@pytest.mark.parametrize("slots", [range(4), range(1), range(3)], ids=["all", "one", "three"])
def test_roll_back_slots(live, slots):
    before = copied(live[0])
    for content in (b"2", b"3", b"4", b"5", b"6"):
        changed(live, "inline", content)
    after = copied(live[0])
    meta = bytearray(after["meta"])
    for slot in slots:
        meta[slot * SLOT_SIZE : (slot + 1) * SLOT_SIZE] = before["meta"][slot * SLOT_SIZE : (slot + 1) * SLOT_SIZE]
    expected = CONTENTS | {"inline": b"6" + CONTENTS["inline"][1:]}
    if len(slots) == 4:
        refuses(RollbackError, after | {"meta": bytes(meta)}, live[1])
    else:
        assert outcome(after | {"meta": bytes(meta)}, expected, live[1]) in ("same", "refused", "noted")


def test_zero_all_slots(vault):
    disk, anchor = vault
    refuses(FormatError, disk | {"meta": bytes(SLOTS_SIZE) + disk["meta"][SLOTS_SIZE:]}, anchor)


def test_delete_the_whole_tree(vault):
    with pytest.raises(FileNotFoundError):
        open_disk({}, "r", vault[1])
    with pytest.raises(RollbackError, match="is new, but the anchor holds"):
        open_disk({}, "x", vault[1])


# The log.


def logged(live, contents, *, mark=b"log"):
    """Acknowledge changes of `inline` by the log, and die."""
    opened = open_disk(live[0], "r+", live[1], log=True)
    disks = []
    for content in contents:
        with opened.open("inline", "r+b") as file:
            file.write(content)
        opened.fsync(opened.stat("inline").inode)
        disks.append(copied(live[0]))
    return opened, disks


def with_inline(content):
    return CONTENTS | {"inline": content + CONTENTS["inline"][len(content) :]}


def test_roll_back_the_log_s_tail(live):
    _, disks = logged(live, [b"one", b"two", b"three"])
    assert read_all(disks[2], MemoryAnchor(live[1].read())) == with_inline(b"three")
    for earlier in disks[:2]:
        refuses(RollbackError, disks[2] | {"log": earlier["log"]}, live[1], "log ends before what the anchor holds")
    refuses(RollbackError, disks[2] | {"log": b""}, live[1])
    refuses(RollbackError, {n: data for n, data in disks[2].items() if n != "log"}, live[1])
    # Without an anchor what is left of it counts.
    assert read_all(disks[2] | {"log": disks[0]["log"]}) == with_inline(b"one")
    assert read_all({n: data for n, data in disks[2].items() if n != "log"}) == CONTENTS


def test_cut_a_record_of_the_log_in_two(live):
    _, disks = logged(live, [b"one", b"two"])
    length = len(disks[1]["log"].rstrip(b"\0"))
    for cut in range(0, length, 7):
        disk = disks[1] | {"log": disks[1]["log"][:cut]}
        refuses(RollbackError, disk, live[1])
        assert read_all(disk) in (CONTENTS, with_inline(b"one"))


def test_records_that_a_commit_has_taken_in_are_put_back(live):
    opened, disks = logged(live, [b"one", b"two"])
    opened.write_bytes("later", b"x")
    opened.close()
    after = copied(live[0])
    for earlier in disks:
        disk = after | {"log": earlier["log"]}
        assert outcome(disk, with_inline(b"two") | {"later": b"x"}, live[1]) == "same"


def test_an_older_log_beside_a_newer_meta(live):
    opened, disks = logged(live, [b"one", b"two"])
    opened.commit()
    with opened.open("inline", "r+b") as file:
        file.write(b"four")
    opened.fsync(opened.stat("inline").inode)
    after = copied(live[0])
    refuses(RollbackError, after | {"log": disks[1]["log"]}, live[1])
    assert read_all(after | {"log": disks[1]["log"]}) == with_inline(b"two")
    # Records of before the commit, and behind them the one of after it: that chain is whole, and nothing is lost.
    old, new = disks[1]["log"].rstrip(b"\0"), after["log"]
    assert outcome(after | {"log": old + new}, with_inline(b"four"), live[1]) in ("refused", "same")


def test_records_of_another_vault(live):
    other = made()
    _, foreign = logged(other, [b"evil", b"EVIL"])
    _, disks = logged(live, [b"one"])
    refuses(RollbackError, disks[0] | {"log": foreign[1]["log"]}, live[1])
    assert read_all(disks[0] | {"log": foreign[1]["log"]}) == CONTENTS
    spliced = disks[0]["log"].rstrip(b"\0") + foreign[1]["log"]
    assert outcome(disks[0] | {"log": spliced}, with_inline(b"one"), live[1]) == "same"


# Two disks, one anchor.


def test_a_slot_of_an_opening_that_lost_the_race(live):
    """The host forks the disk under two enclaves; one of them moves the anchor, the other has written its slot."""
    fork = MemoryDirectory(copied(live[0])), live[1]
    winner, loser = open_disk(live[0], "r+", live[1]), open_disk(fork[0], "r+", fork[1])
    winner.write_bytes("won", b"w")
    loser.write_bytes("lost", b"l")
    winner.commit()
    with pytest.raises(ConflictError):
        loser.commit()
    for mode in ("r", "r+"):
        with pytest.raises(RollbackError):
            open_disk(copied(fork[0]), mode, live[1])
    # Nor is any mixture of the two a vault.
    mixed = copied(fork[0]) | copied(live[0])
    lost = copied(fork[0])["meta"]
    for slot in range(4):
        at = slice(slot * SLOT_SIZE, (slot + 1) * SLOT_SIZE)
        meta = mixed["meta"][: at.start] + lost[at] + mixed["meta"][at.stop :]
        assert outcome(mixed | {"meta": meta}, CONTENTS | {"won": b"w"}, live[1]) in ("refused", "same")
    winner.close()


def test_an_fsync_on_one_fork_and_a_commit_on_the_other(live):
    fork = MemoryDirectory(copied(live[0]))
    loser = open_disk(fork, "r+", live[1])
    logged(live, [b"acknowledged"])
    loser.write_bytes("lost", b"l")
    with pytest.raises(ConflictError):
        loser.commit()
    with pytest.raises(RollbackError):
        open_disk(copied(fork), "r", live[1])
    assert read_all(copied(live[0]), live[1]) == with_inline(b"acknowledged")


def test_the_branch_that_a_restore_left(live):
    before, root = copied(live[0]), live[1].read()
    changed(live, "inline", b"left")
    after = copied(live[0])
    live[1].restore(root, reason="a test")
    refuses(RollbackError, after, live[1])
    assert read_all(before, MemoryAnchor(live[1].read())) == CONTENTS
    # Nor after the restored branch has gone on, at the same number.
    again = MemoryDirectory(before), live[1]
    changed(again, "inline", b"new")
    refuses(RollbackError, after, live[1])
    refuses(RollbackError, before, live[1])
    assert read_all(copied(again[0]), live[1]) == with_inline(b"new")
    assert [reason for *_, reason in live[1].history] == ["a test"]


def test_a_vault_without_an_anchor_tells_damage_all_the_same(vault):
    disk, _ = vault
    name = data_file(disk, "train/images")
    with pytest.raises(TamperedError):
        read_all(disk | {name: bytes(len(disk[name]))}, NO_FRESHNESS)
