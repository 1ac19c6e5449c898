"""What goes in clear before TLS stands: read from OpenSSL's own messages, in any pieces, and from anything else."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.errors import ChannelError
from strongroom.shield.network.greeting import named
from strongroom.shield.network.hello import TLS_1_3, ClientHello, ServerHello, client_hello, server_hello
from tests.shield.network.outside import NAME, authority, client_context, server_context


@pytest.fixture(scope="module")
def hellos():
    """A client's hello, and by the highest version that it takes, the server's."""
    by = authority()
    ours, theirs = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context(by.certificate.der).wrap_bio(ours, theirs, server_hostname=NAME)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    hello, answers = theirs.read(), {}
    for highest in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        came, goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = server_context(by, NAME, highest=highest).wrap_bio(came, goes, server_side=True)
        came.write(hello)
        with pytest.raises(ssl.SSLWantReadError):
            server.do_handshake()
        answers[highest] = goes.read()
    return hello, answers


def records(hello: bytes, size: int) -> bytes:
    """The same message in records of that size (RFC 8446, section 5.1)."""
    body = hello[5:]
    pieces = (body[at : at + size] for at in range(0, len(body), size))
    return b"".join(hello[:3] + len(piece).to_bytes(2, "big") + piece for piece in pieces)


def test_hellos_are_read_once_they_have_come_however_they_are_cut(hellos):
    hello, answers = hellos
    said = client_hello(hello)
    assert said == ClientHello(NAME, (0x0304, 0x0303), encrypted=False)
    for size in (1, 7, 100):
        assert client_hello(records(hello, size)) == said
    assert [client_hello(hello[:at]) for at in range(len(hello))] == [None] * len(hello)
    assert server_hello(answers[ssl.TLSVersion.TLSv1_3]) == ServerHello(TLS_1_3, retry=False)
    assert server_hello(answers[ssl.TLSVersion.TLSv1_2]) == ServerHello(0x0303, retry=False)
    assert server_hello(answers[ssl.TLSVersion.TLSv1_3][:20]) is None


def test_only_tls_1_3_to_the_named_host_in_the_open_is_let_through(hellos):
    hello, _ = hellos
    assert named(hello, NAME)
    assert not named(hello[:-1], NAME)
    before = hello.index(NAME.encode()) - 9  # extension, and the lengths of it, of the list, and of the name
    hidden = hello[:before] + b"\xfe\x0d" + hello[before + 2 :]
    for said, host, why in (
        (hello, "other.example.com", "name"),
        (hello, "", "name"),  # an address, which no hello names
        (hidden, NAME, "name"),
        (hello.replace(b"\x03\x04", b"\x7f\x04"), NAME, "version"),
        (hello.replace(NAME.encode(), b"files.example.co\xff"), NAME, "hello"),
        (b"GET / HTTP/1.1\r\n", NAME, "hello"),
        (b"\x16\x03\x01\xff\xff\x01", NAME, "hello"),
        (b"\x16\x03\x01\x00\x04\x01\xff\xff\xff", NAME, "hello"),
        (b"\x16\x03\x01\x00\x04\x02\0\0\0", NAME, "hello"),
    ):
        with pytest.raises(ChannelError, match=f"^{why}$"):
            named(said, host)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_whatever_comes_is_read_or_refused(hellos, data):
    hello, answers = hellos
    at = data.draw(st.integers(0, len(hello) - 1))
    known = data.draw(st.sampled_from([hello, *answers.values(), b""]))
    bad = known[:at] + data.draw(st.binary(max_size=64)) + known[at + data.draw(st.integers(0, 4)) :]
    for read in (client_hello, server_hello):
        try:
            read(bad)
        except ChannelError as error:
            assert error.message == "hello"
