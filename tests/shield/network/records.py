"""Records of TLS 1.3 as Python's own module never sends them, made by hand (RFC 8446, sections 5.2, 7.1 to 7.3)."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

_ASKED = b"\x18\x00\x00\x01\x01"  # KeyUpdate, update_requested
_HANDSHAKE = b"\x16"


class ByHand:
    """One end of a connection, whose handshake is OpenSSL's. What is sent is counted by hand from then on.

    Args:
        secrets: a file, for the secrets of the handshake.
    """

    def __init__(
        self, context: ssl.SSLContext, connection: socket.socket, secrets: Path, *, server: bool = False
    ) -> None:
        context.keylog_filename = str(secrets)
        if server:
            context.num_tickets = 0  # which would be the first records
        self._came, self._goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._came, self._goes, server_side=server)
        self._socket, self._secrets, self._server = connection, secrets, server
        self._secret, self._number = b"", 0
        self._to_send = bytearray()

    def shake(self) -> None:
        self._socket.settimeout(20)
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._socket.sendall(self._goes.read())
                self._came.write(self._socket.recv(1 << 16))
        self._socket.sendall(self._goes.read())
        assert self._tls.cipher() is not None and self._tls.cipher()[0] == "TLS_AES_256_GCM_SHA384"
        label = "SERVER_TRAFFIC_SECRET_0" if self._server else "CLIENT_TRAFFIC_SECRET_0"
        lines = (line.split() for line in self._secrets.read_text().splitlines())
        self._secret = next(bytes.fromhex(line[2]) for line in lines if line[0] == label)

    def say(self, data: bytes) -> None:
        self._record(data + b"\x17")
        self.flush()

    def change_keys(self, times: int) -> None:
        """Ask so often for a change of the other end's keys, and change the own ones each time, as it has to be."""
        for _ in range(times):
            self._record(_ASKED + _HANDSHAKE)
            self._secret, self._number = self._expand(b"traffic upd", 48), 0

    def flush(self) -> None:
        self._socket.sendall(self._to_send)
        self._to_send.clear()

    def _record(self, inner: bytes) -> None:
        nonce = int.from_bytes(self._expand(b"iv", 12), "big") ^ self._number
        header = b"\x17\x03\x03" + (len(inner) + 16).to_bytes(2, "big")
        sealed = AESGCM(self._expand(b"key", 32)).encrypt(nonce.to_bytes(12, "big"), inner, header)
        self._to_send += header + sealed
        self._number += 1

    def _expand(self, label: bytes, size: int) -> bytes:
        full = b"tls13 " + label
        info = size.to_bytes(2, "big") + bytes([len(full)]) + full + b"\0"
        return HKDFExpand(SHA384(), size, info).derive(self._secret)
