"""Vendors' services in memory, or on a port of this machine, that answer with recorded endorsements."""

from __future__ import annotations

import datetime as dt
import json
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

from strongroom.attest.endorsements import Answer
from strongroom.crypto import CertificateAuthority, SigningKey
from strongroom.errors import ChannelError

PCS = "https://api.trustedservices.intel.com"
ROOT_CRL = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
KDS = "https://kdsintf.amd.com"


class VendorServices:
    """A transport that answers from `answers`, by URL, and else with 404. `asked` lists all URLs, in order."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        self.down = False

    def get(self, url: str) -> Answer:
        self.asked.append(url)
        if self.down:
            raise ChannelError("api.example: connection refused")
        return self.answers.get(url, Answer(404, {}, b"no such thing"))

    def serve(self, url: str, body: bytes, **headers: str) -> None:
        """The headers' underscores stand for hyphens."""
        self.answers[url] = Answer(200, {name.replace("_", "-"): value for name, value in headers.items()}, body)

    def serve_intel(
        self, collateral: Mapping[str, str], tee: str, *, base: str = PCS, root_crl: str = ROOT_CRL
    ) -> None:
        """Intel's answers for the one platform that `collateral`, in the form of dcap-qvl, is of."""
        crl = bytes.fromhex(collateral["pck_crl"])
        ca = "platform" if b"Platform" in crl else "processor"
        fmspc = json.loads(collateral["tcb_info"])["fmspc"].upper()
        self.serve(
            f"{base}/{tee}/certification/v4/tcb?fmspc={fmspc}&update=standard",
            answer("tcbInfo", collateral["tcb_info"], collateral["tcb_info_signature"]),
            tcb_info_issuer_chain=quote(collateral["tcb_info_issuer_chain"]),
        )
        self.serve(
            f"{base}/{tee}/certification/v4/qe/identity?update=standard",
            answer("enclaveIdentity", collateral["qe_identity"], collateral["qe_identity_signature"]),
            sgx_enclave_identity_issuer_chain=quote(collateral["qe_identity_issuer_chain"]),
        )
        self.serve(
            f"{base}/sgx/certification/v4/pckcrl?ca={ca}&encoding=der",
            crl,
            sgx_pck_crl_issuer_chain=quote(collateral["pck_crl_issuer_chain"]),
        )
        self.serve(root_crl, bytes.fromhex(collateral["root_ca_crl"]))


def answer(member: str, text: str, signature: str) -> bytes:
    """A signed document as Intel's service gives it out."""
    return f'{{"{member}":{text},"signature":"{signature}"}}'.encode()


@contextmanager
def served(directory: Path, routes: Mapping[str, tuple[int, Mapping[str, str], bytes]]) -> Iterator[tuple[str, Path]]:
    """An HTTPS server on this machine: its URL, and the file of its CA. It answers as `routes` say, by path;
    ``/slow`` never ends its headers."""
    now = dt.datetime.now(dt.UTC)
    authority = CertificateAuthority.create("test", now=now)
    key = SigningKey.generate()
    leaf = authority.issue(key.public, "localhost", now=now, lifetime=dt.timedelta(days=1), hosts=["localhost"])
    (directory / "server.pem").write_bytes(key.pem() + leaf.pem())
    (directory / "ca.pem").write_bytes(authority.certificate.pem())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "server.pem")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = routes.get(self.path, (404, {}, b""))
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | dict(headers)).items():
                self.send_header(name, value)
            if self.path == "/slow":
                self.flush_headers()
                self.rfile.read(1)  # until the client hangs up
                return
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            pass  # clients that hang up are part of the tests

    with Server(("localhost", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"https://localhost:{server.server_address[1]}", directory / "ca.pem"
        finally:
            server.shutdown()
            thread.join()
