"""Statements as an honest CAS signs them, and, for attacks, as it would not."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import Any

from strongroom.attest.dsse import Envelope
from strongroom.attest.issuer import CAS_URI
from strongroom.crypto import Certificate, CertificateAuthority, ContentDigest, SigningKey, content_digest
from strongroom.lineage.resumes import Resume, Resumes
from strongroom.lineage.statement import PAYLOAD_TYPE, DataSet, Endorsement, MirrorState, Output, Run, Statement
from strongroom.lineage.tree import Tree, digest_tree

NOW = 1_790_000_000
MOMENT = dt.datetime.fromtimestamp(NOW, dt.UTC)
MODEL = b"the weights of a model"
VENDOR = "sha256:" + "5e" * 32
POLICY = "acme/train"
MEASUREMENT = "ab" * 48
ROOT = "7:" + "cd" * 32


def tree(**files: bytes) -> Tree:
    return digest_tree((path, 1, [content]) for path, content in files.items())


DATA = tree(images=b"0123", labels=b"01")


def content(data: bytes = MODEL) -> ContentDigest:
    return content_digest([data], sha256=True)


@dataclass
class Cas:
    """The authority of a CAS, and the leaf that it signs with."""

    authority: CertificateAuthority = field(default_factory=lambda: CertificateAuthority.create("CAS", now=MOMENT))
    key: SigningKey = field(default_factory=SigningKey.generate)

    @property
    def root(self) -> str:
        return self.authority.key.public.fingerprint

    def leaf(self, *, uri: str = CAS_URI, key: SigningKey | None = None, lifetime: int = 3600) -> Certificate:
        public = (key or self.key).public
        span = dt.timedelta(seconds=lifetime)
        return self.authority.issue(public, "Strongroom CAS", now=MOMENT, lifetime=span, uris=[uri])

    def statement(self, **changes: Any) -> Statement:
        """What it says of `MODEL`; `changes` are fields of the output, the run or the endorsement."""
        found = content()
        output: dict[str, Any] = {"name": "model.onnx", "sha256": found.sha256.hex(), "blake3": found.blake3.hex()}
        run: dict[str, Any] = {
            "invocation": "1f" * 16,
            "started": NOW - 60,
            "version": "1.2.3",
            "boot": {"cas_root": self.root, "policy": POLICY, "command": ["python", "train.py"]},
            "data": (
                DataSet("data", "/data", "read-only", "memory", ROOT, DATA.digest.hex(), DATA.files, DATA.size),
                DataSet("out", "/out", "read-write", "memory", ROOT, tree().digest.hex(), 0, 0),
            ),
            "mirrors": (MirrorState("run", 40, ROOT, Resumes((Resume(NOW - 30, 20, ROOT),))),),
        }
        by: dict[str, Any] = {
            "cas_root": self.root,
            "policy": POLICY,
            "policy_version": 3,
            "policy_digest": "sha256:" + "0d" * 32,
            "tee": "tdx",
            "measurement": MEASUREMENT,
            "vendor_root": VENDOR,
            "tcb_status": "UpToDate",
            "signed": NOW,
        }
        for name, value in changes.items():
            next(part for part in (output, run, by) if name in part)[name] = value
        return Statement(Output(**output), Run(**run), Endorsement(**by))

    def sign(self, payload: bytes, *, kind: str = PAYLOAD_TYPE, **leaf: Any) -> bytes:
        """Any payload, by this CAS's key or by `key`, under a leaf as asked for."""
        key = leaf.get("key") or self.key
        return Envelope.sign(key, (self.leaf(**leaf), self.authority.certificate), kind, payload).to_bytes()

    def signed(self, **changes: Any) -> bytes:
        return self.sign(self.statement(**changes).to_bytes())
