"""What proxies show each other, and what they take."""

import ssl
from contextlib import suppress

import pytest

from strongroom.crypto import SigningKey
from strongroom.shield.network.identity import Credentials
from tests.shield.network.mesh_world import POLICY, mesh_world


def shake(client, server):
    """The version that two contexts agree on, in memory."""
    ways = [ssl.MemoryBIO() for _ in range(4)]
    ends = [
        client.wrap_bio(ways[0], ways[1], server_side=False),
        server.wrap_bio(ways[2], ways[3], server_side=True),
    ]
    for _ in range(6):
        for end in ends:
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
            ways[2].write(ways[1].read())
            ways[0].write(ways[3].read())
    return ends[0].version()


@pytest.fixture
def contexts():
    """A client's and a server's."""
    with mesh_world() as world:
        identity = world.identity(SigningKey.generate(), POLICY)
        yield tuple(getattr(Credentials(lambda: identity), role) for role in ("client", "server"))


def test_tunnels_are_tls_1_3(contexts):
    assert shake(*contexts) == "TLSv1.3"


@pytest.mark.parametrize("old", [0, 1], ids=["client", "server"])
def test_a_peer_of_tls_1_2_is_refused(contexts, old):
    contexts[old].minimum_version = ssl.TLSVersion.TLSv1_2
    contexts[old].maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match=r"(?i)version|protocol"):
        shake(*contexts)


def test_a_client_without_a_certificate_is_refused(contexts):
    _, server = contexts
    stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    stranger.check_hostname, stranger.verify_mode = False, ssl.CERT_NONE
    with pytest.raises(ssl.SSLError, match=r"(?i)certificate"):
        shake(stranger, server)
