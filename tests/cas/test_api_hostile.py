"""Requests by hand: what bodies, heads, framing and client certificates may look like, and the CAS stands."""

from __future__ import annotations

import base64
import datetime as dt
import json
import re
import socket
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from strongroom.cas.client.address import split_address
from strongroom.crypto import Certificate
from strongroom.errors import ChannelError

JSON = {"content-type": "application/json"}
NONCE = b"POST /v1/nonce HTTP/1.1\r\nhost: cas\r\ncontent-type: application/json\r\n"


@pytest.fixture
def enclave(world):
    with world.enclave() as made:
        yield made


def ask(world, body: bytes, **headers: str):
    return world.client._http.request("POST", "/v1/nonce", body=body, headers=JSON | headers)


@pytest.mark.parametrize(
    "said",
    [
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonx",
        "x",
    ],
)
def test_a_body_that_is_not_said_to_be_json_is_refused(world, said):
    answer = world.client._http.request(
        "POST", "/v1/nonce", body=json.dumps({"policy": world.name}).encode(), headers={"content-type": said}
    )
    assert (answer.status, answer.json()["code"]) == (415, "usage")


@pytest.mark.parametrize("said", ["application/json; charset=utf-8", "Application/JSON"])
def test_json_is_said_in_several_ways(world, said):
    body = json.dumps({"policy": world.name}).encode()
    assert world.client._http.request("POST", "/v1/nonce", body=body, headers={"content-type": said}).status == 200


@pytest.mark.parametrize(
    "body",
    [
        b'{"policy": "a/b", "policy": "a/b"}',
        b'{"policy": "x", "policy": "a/b"}',
        b'{"policy": "a/b", "policy": NaN}',
        b'{"policy": "a/b"} {}',
        b'{"policy": "a/b"}' + b" " * (1 << 20),
        b'{"policy": "a/b", "x": 1' + b"0" * 100_000 + b"}",
        b'\xef\xbb\xbf{"policy": "a/b"}',
        b'{"policy": "a/b\xff"}',
        b'{"policy": ' + b"[" * 100_000,
        b'{"policy": ' + b'{"a":' * 100_000,
    ],
    ids=range(10),
)
def test_json_with_two_readings_or_none_is_refused(world, body, caplog):
    answer = ask(world, body.replace(b"a/b", world.name.encode()))
    assert answer.status == 400
    assert answer.json()["code"] == "format"
    assert "request failed" not in caplog.text


def put_anchor(world, body: bytes):
    path = f"/v1/policies/{world.name}/anchors/out"
    return world.client._http.request("PUT", path, body=body, headers=JSON)


@pytest.mark.parametrize("twice", [b'"x": 1, "x": 1', b'"x": NaN', b'"x": Infinity', b'"x": -Infinity'])
def test_json_is_strict_inside_a_field_too(world, twice):
    """In a field whose content the request would take as it is: only that the reading is strict refuses it."""
    body = b'{"old": null, "new": "1:' + b"1" * 64 + b'", "fence": {%s}}'
    answer = put_anchor(world, body % twice)
    assert (answer.status, answer.json()["code"]) == (400, "format")
    assert "not a JSON object" in str(answer.json()["error"])
    assert world.client.anchor(world.name, "out").read() is None
    assert put_anchor(world, body % b'"x": 1').status == 200


@pytest.mark.parametrize("wrong", ["NaN", "Infinity", '"\\ud800"', "[]", "null"])
def test_a_policy_s_name_that_is_no_text_is_refused(world, wrong):
    answer = ask(world, b'{"policy": %s}' % wrong.encode())
    assert (answer.status, answer.json()["code"]) == (400, "format")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "utf-32-be"])
def test_a_body_in_another_encoding_is_refused(world, encoding):
    text = json.dumps({"policy": world.name})
    assert ask(world, text.encode()).status == 200
    answer = ask(world, text.encode(encoding))
    assert answer.status == 400
    assert "not a JSON object" in str(answer.json()["error"])


def test_a_field_that_is_not_known_is_refused(world):
    answer = ask(world, json.dumps({"policy": world.name, "critical": True}).encode())
    assert answer.status == 400
    assert "unknown field 'critical'" in str(answer.json()["error"])


def test_whoever_tries_another_method_is_told_which_there_are(world):
    answer = world.client._http.request("DELETE", f"/v1/policies/{world.name}")
    assert answer.status == 405
    assert {"GET", "PUT"} <= set(answer.headers["allow"].replace(" ", "").split(","))


def exchange(enclave, sent: bytes) -> bytes:
    """All that comes back, after which there is nothing more, for those bytes."""
    enclave.stream.send(sent)
    answer = b""
    try:
        while part := enclave.stream.recv():
            answer += part
    except ChannelError:
        pass
    return answer


def said(world, *headers: bytes) -> bytes:
    """A request for a nonce with those lines in its head, and its body."""
    body = json.dumps({"policy": world.name}).encode()
    return NONCE + b"".join(line + b"\r\n" for line in headers) + b"content-length: %d\r\n\r\n" % len(body) + body


CLOSE = b"connection: close"
LENGTHS = [
    [b"content-length: 2"],
    [b"content-length: +2"],
    [b"content-length : 2"],
    [b"transfer-encoding: chunked"],
    [b"transfer-encoding: xchunked"],
    [b"transfer-encoding: chunked, identity"],
    [b"transfer-encoding:\tchunked", b"transfer-encoding: x"],
    [b"x: y\r\n z"],
    [b"x\0y: z"],
    [b": nothing"],
]


@pytest.mark.parametrize("lines", LENGTHS, ids=range(len(LENGTHS)))
def test_a_head_that_says_two_things_of_the_body_ends_the_connection(world, enclave, lines, caplog):
    follow = b"GET /v1/cas HTTP/1.1\r\nhost: cas\r\nconnection: close\r\n\r\n"
    answer = exchange(enclave, said(world, *lines) + follow)
    assert not answer or answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1 ") <= 1
    assert "request failed" not in caplog.text
    assert world.client.describe()["service"] == "strongroom-cas"


def test_two_heads_of_the_log_are_refused(world, enclave):
    head = b"strongroom-head: 0:" + b"0" * 64
    answer = exchange(enclave, said(world, CLOSE, head, head))
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"given 2 times" in answer


@pytest.mark.parametrize(
    "chunks",
    [b"zz\r\n{}\r\n0\r\n\r\n", b"-2\r\n{}\r\n0\r\n\r\n", b"2\r\n{}x\r\n0\r\n\r\n", b"ffffffffffffffffff\r\n{}"],
    ids=range(4),
)
def test_chunks_that_are_none_end_the_connection(enclave, chunks):
    answer = exchange(enclave, NONCE + b"transfer-encoding: chunked\r\n\r\n" + chunks)
    assert not answer or answer.startswith(b"HTTP/1.1 400")


def test_chunks_are_a_body(world, enclave):
    body = json.dumps({"policy": world.name}).encode()
    chunks = b"".join(b"1;x=y\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    answer = exchange(enclave, NONCE + CLOSE + b"\r\ntransfer-encoding: chunked\r\n\r\n" + chunks)
    assert answer.startswith(b"HTTP/1.1 200")


def test_requests_in_one_go_are_answered_in_order(world, enclave):
    """And each by itself: of two nonces the second is the connection's."""
    answer = exchange(enclave, said(world) * 3 + b"GET /v1/cas HTTP/1.1\r\nhost: cas\r\nconnection: close\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200") == 4
    nonces = re.findall(rb'"nonce":"([0-9a-f]{64})"', answer)
    assert len(set(nonces)) == 3
    assert answer.index(nonces[2]) < answer.index(b'"service"')


# Certificates that OpenSSL shows. Whoever reads them may do so only to find a key.


def certificate(key, signer=None, *, extensions=(), name="owner") -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(0x1122334455667788)
        .not_valid_before(now - dt.timedelta(days=2))
        .not_valid_after(now + dt.timedelta(days=2))
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(signer or key, algorithm).public_bytes(serialization.Encoding.DER)


def changed(old: bytes, new: bytes):
    def make(key) -> bytes:
        der = certificate(key, extensions=[(x509.SubjectAlternativeName([x509.DNSName("example.org")]), False)])
        assert der.count(old)
        return der.replace(old, new)

    return make


_OTHER = x509.ObjectIdentifier("1.3.6.1.4.1.55555.1")
OF_OWNER = {
    "version 6": changed(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x05"),
    "negative serial": changed(bytes.fromhex("02081122334455667788"), bytes.fromhex("0208f122334455667788")),
    "name of another type": changed(b"\x0c\x05owner", b"\x14\x05\xffwner"),
    "names that are no list": changed(b"example.org", b"\xff\0ample.org"),
    "unknown critical extension": lambda key: certificate(
        key, extensions=[(x509.UnrecognizedExtension(_OTHER, b"\x30\x80"), True)]
    ),
    "basic constraints of an authority": lambda key: certificate(
        key, extensions=[(x509.BasicConstraints(ca=True, path_length=0), True)]
    ),
    "signed by another key": lambda key: certificate(key, ec.generate_private_key(ec.SECP256R1())),
    "4,000 names": lambda key: certificate(
        key, extensions=[(x509.SubjectAlternativeName([x509.DNSName(f"n{i}.example") for i in range(4000)]), False)]
    ),
    "a long name": lambda key: certificate(key, name="x" * 64),
}


def shown(world, tmp_path, key, der: bytes) -> bytes:
    """What the CAS answers to whoever shows that certificate and asks for its log."""
    pem = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = tmp_path / "client.pem"
    file.write_bytes(private + pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(file)
    answer = b""
    with socket.create_connection(split_address(world.cas.address.url), timeout=30) as raw:
        try:
            with context.wrap_socket(raw) as stream:
                stream.sendall(b"GET /v1/log HTTP/1.1\r\nhost: cas\r\nconnection: close\r\n\r\n")
                while part := stream.recv(65536):
                    answer += part
        except (ssl.SSLError, ConnectionError):
            pass
    return answer


@pytest.mark.parametrize("oddity", OF_OWNER)
def test_a_client_s_certificate_is_its_key_or_nothing(world, tmp_path, caplog, oddity):
    key = world.owner.private_key
    answer = shown(world, tmp_path, key, OF_OWNER[oddity](key))
    assert not answer or answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 403"))
    assert "Traceback" not in caplog.text
    assert "failed" not in caplog.text
    assert world.client.describe()["service"] == "strongroom-cas"


def test_names_that_are_none_name_nothing(world):
    """OpenSSL's own clients do not show this one; others may."""
    names = x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, b"\xff\xff\xff")
    read = Certificate(certificate(world.owner.private_key, extensions=[(names, True)]))
    assert (read.uris, read.key) == ([], world.owner.public)


@pytest.mark.parametrize(
    "make",
    [
        lambda: rsa.generate_private_key(65537, 2048),
        lambda: ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate,
    ],
    ids=["RSA", "P-384", "Ed25519"],
)
def test_a_key_of_another_kind_is_nobody_s(world, tmp_path, caplog, make):
    key = make()
    answer = shown(world, tmp_path, key, certificate(key))
    assert not answer or answer.startswith(b"HTTP/1.1 403")
    assert "Traceback" not in caplog.text
