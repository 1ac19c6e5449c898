"""Rows and log records of a vault: what is packed is parsed back, and any other bytes are refused by our own errors."""

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from strongroom.errors import FormatError
from strongroom.sealed.content import Version
from strongroom.vault import rows
from strongroom.vault.rows import Change, DataChange, Inline, Inode, Packed, Tree

numbers = st.integers(0, 2**63 - 1)
small = st.integers(0, 2**32 - 1)
names = st.binary(min_size=1, max_size=255)
versions = st.builds(Version, st.binary(min_size=48, max_size=48), st.integers(0, 2**60), st.integers(0, 2**56 - 1))
bodies = st.one_of(
    st.none(),
    st.binary(max_size=100).map(Inline),
    st.builds(
        Packed,
        st.binary(min_size=16, max_size=16),
        st.integers(0, 2**60),
        st.binary(min_size=24, max_size=24),
        st.binary(min_size=16, max_size=16),
    ),
    st.builds(
        Tree,
        st.binary(min_size=16, max_size=16),
        st.binary(min_size=32, max_size=32),
        st.sampled_from([4096, 65536, 1 << 22]),
        numbers,
        versions,
    ),
)
inodes = st.builds(
    Inode,
    st.integers(1, 2**63 - 1),
    st.sampled_from([0o100644, 0o040755, 0o010600]),
    small,
    small,
    small,
    st.just(0),
    numbers,
    numbers,
    numbers,
    st.none(),
    st.just(0),
)
data_changes = st.builds(
    DataChange, numbers, numbers, numbers, st.lists(st.tuples(numbers, st.binary(max_size=50)), max_size=4)
)
changes = st.builds(
    Change,
    st.lists(inodes, max_size=4),
    st.lists(st.tuples(numbers, names, numbers), max_size=4),
    st.lists(data_changes, max_size=3),
)


@given(bodies)
def test_bodies_come_back(body):
    assert rows.parse_body(rows.pack_body(body)) == body


@given(st.binary(max_size=300))
def test_bodies_of_any_bytes(data):
    with contextlib.suppress(FormatError):
        assert rows.pack_body(rows.parse_body(data)) == data


@given(changes)
def test_records_come_back(change):
    assert rows.parse_change(rows.pack_change(change)) == change


@given(changes, st.data())
def test_records_that_are_cut_or_longer(change, data):
    packed = rows.pack_change(change)
    cut = data.draw(st.integers(0, len(packed) - 1))
    for wrong in (packed[:cut], packed + b"x"):
        try:
            rows.parse_change(wrong)
        except FormatError:
            continue
        raise AssertionError("taken")


@given(st.binary(max_size=400))
def test_records_of_any_bytes(data):
    with contextlib.suppress(FormatError):
        rows.parse_change(data)
