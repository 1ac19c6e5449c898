"""A CAS that is told to stop answers what it has begun, and takes nothing new."""

from __future__ import annotations

import json

from strongroom.cas.client.address import cas_expectation, dial_cas, split_address
from strongroom.cas.service.server import prepare
from strongroom.channel.tls import connect
from strongroom.errors import CasUnreachableError


def test_a_request_that_has_begun_is_answered_and_new_ones_are_not(tmp_path):
    service = prepare(tmp_path)
    host, port = split_address(service.address.url)
    body = json.dumps({"policy": "acme/none"}).encode()
    head = b"POST /v1/nonce HTTP/1.1\r\nhost: cas\r\ncontent-type: application/json\r\n"
    with service:
        stream = connect(dial_cas(host, port), expect=cas_expectation(service.address.cas_root), host="cas")
        stream.send(head + b"content-length: %d\r\n\r\n" % len(body) + body[:5])
        stream.send(b"")
        # The head has arrived once another connection's request was answered after it.
        other = connect(dial_cas(host, port), expect=cas_expectation(service.address.cas_root), host="cas")
        other.send(b"GET /v1/health HTTP/1.1\r\nhost: cas\r\n\r\n")
        assert other.recv().startswith(b"HTTP/1.1 200")
        service.stop()
        while True:  # until it takes no more connections
            try:
                dial_cas(host, port).close()
            except CasUnreachableError:
                break
        stream.send(body[5:])
        answer = b""
        while data := stream.recv():
            answer += data
        assert answer.startswith(b"HTTP/1.1 404") and b"unknown-policy" in answer
        stream.close()
        other.close()
