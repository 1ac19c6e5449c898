"""What is said before TLS 1.3 stands: what goes on of it, in whichever pieces it comes."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.errors import ChannelError
from strongroom.shield.network.greeting import Greeting
from tests.shield.network.outside import NAME, authority, client_context, server_context

OTHER = "other.example.com"
EARLY = b"\x17\x03\x03\x00\x05early"


def talk(*, again: bool) -> list[tuple[int, bytes]]:
    """OpenSSL's, as (0, the client; 1, the host; what it says), until the host has chosen."""
    by = authority()
    context = server_context(by, NAME)
    if again:
        context.set_ecdh_curve("secp384r1")
    ends = [ssl.MemoryBIO(), ssl.MemoryBIO()]
    tls = [
        client_context(by.certificate.der).wrap_bio(ends[1], ends[0], server_hostname=NAME),
        context.wrap_bio(ends[0], ends[1], server_side=True),
    ]
    said = []
    for turn in range(4 if again else 2):
        which = turn % 2
        before = ends[which].read()  # nothing: it was taken
        assert not before
        with pytest.raises(ssl.SSLWantReadError):
            tls[which].do_handshake()
        data = ends[which].read()
        said.append((which, data))
        ends[which].write(data)
    return said


@pytest.fixture(scope="module")
def plain():
    return talk(again=False)


@pytest.fixture(scope="module")
def twice():
    return talk(again=True)


def heard(greeting, said, size):
    """What went on of each, in its order."""
    on = []
    for which, data in said:
        for at in range(0, len(data), size):
            pieces = greeting.heard(which, data[at : at + size])
            on += [(each, piece) for each, piece in enumerate(pieces) if piece]
    return on


def joined(on):
    """One piece for all that came from one side before something came from the other."""
    together = []
    for which, piece in on:
        if together and together[-1][0] == which:
            together[-1] = (which, together[-1][1] + piece)
        else:
            together.append((which, piece))
    return together


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_it_goes_on_as_it_was_said_once_the_host_has_chosen(plain, twice, size):
    for said in (plain, twice):
        greeting = Greeting(NAME)
        on = heard(greeting, said, size)
        assert greeting.stands and not greeting.held
        for which in (0, 1):
            assert b"".join(piece for each, piece in on if each == which) == b"".join(
                data for each, data in said if each == which
            )
        (_, first), *rest = joined(on)
        assert first == said[0][1] and rest
        assert greeting.heard(0, b"x") == (b"x", b"") and greeting.heard(1, b"y") == (b"", b"y")


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_what_comes_behind_a_hello_waits_for_the_host(plain, twice, size):
    greeting = Greeting(NAME)
    on = heard(greeting, [(0, plain[0][1] + EARLY)], size)
    assert joined(on) == [plain[0]] and greeting.held == len(EARLY)
    assert joined(heard(greeting, plain[1:], size))[0][1].startswith(EARLY)
    greeting = Greeting(NAME)
    (_, first), (_, asked), (_, second), (_, chosen) = twice
    on = heard(greeting, [(0, first + EARLY), (1, asked), (0, second), (1, chosen)], size)
    assert greeting.stands and b"".join(piece for each, piece in on if each == 0) == first + EARLY + second


def test_another_name_the_second_time_and_a_third_hello_are_refused(twice):
    (_, first), (_, asked), (_, second), (_, chosen) = twice
    greeting = Greeting(NAME)
    heard(greeting, [(0, first), (1, asked)], 1 << 20)
    with pytest.raises(ChannelError, match=r"^name$"):
        greeting.heard(0, second.replace(NAME.encode(), OTHER.encode()))
    greeting = Greeting(NAME)
    heard(greeting, [(0, first), (1, asked)], 1 << 20)
    with pytest.raises(ChannelError, match=r"^hello$"):
        greeting.heard(0, b"GET / HTTP/1.1\r\n")
    greeting = Greeting(NAME)
    heard(greeting, [(0, first), (1, asked), (0, second)], 1 << 20)
    with pytest.raises(ChannelError, match=r"^hello$"):
        greeting.heard(1, asked)
    greeting = Greeting(NAME)
    with pytest.raises(ChannelError, match=r"^hello$"):  # a second message in the record of the first
        hello = bytearray(first) + b"\x01\0\0\0"
        hello[3:5] = (len(hello) - 5).to_bytes(2, "big")
        greeting.heard(0, bytes(hello))
    assert chosen


def test_an_alert_goes_on_and_nothing_behind_it(plain):
    alert = b"\x15\x03\x03\x00\x02\x02\x28"
    greeting = Greeting(NAME)
    heard(greeting, plain[:1], 1 << 20)
    assert heard(greeting, [(1, alert)], 3) == [(1, alert[:3]), (1, alert[3:6]), (1, alert[6:])]
    assert greeting.refused and not greeting.stands
    assert greeting.heard(0, b"clear") == (b"", b"") and not greeting.held
    with pytest.raises(ChannelError, match=r"^hello$"):
        greeting.heard(1, b"x")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_comes_goes_on_waits_or_is_refused(plain, twice, data):
    said = data.draw(st.sampled_from([plain, twice]))
    number = data.draw(st.integers(0, len(said) - 1))
    which, known = said[number]
    at = data.draw(st.integers(0, len(known)))
    bad = known[:at] + data.draw(st.binary(max_size=64)) + known[at + data.draw(st.integers(0, 8)) :]
    greeting = Greeting(NAME)
    try:
        heard(greeting, [*said[:number], (which, bad), *said[number + 1 :]], data.draw(st.integers(1, 400)))
    except ChannelError as error:
        assert error.message in ("hello", "name", "version")
