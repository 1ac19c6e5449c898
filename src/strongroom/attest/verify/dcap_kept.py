"""What was verified of a quote, kept so that it is not found out again for every quote of an enclave.

Two quotes that one enclave asks for, under the same endorsements, differ in their report data and in the attestation
key's signature. That signature is verified of every quote (`dcap_chain.check_signature`); all else is as it was, since
it depends on nothing else, but for the time. So:

- An answer stands for quotes that are the same, byte for byte, in all else, of the same kind, under the same root and
  endorsements.
- Only acceptance is kept, and only once both parsers have read that quote alike. A refusal is found out anew.
- It stands between the latest date from which something holds and the earliest at which something ends, of all
  certificates, revocation lists and documents, by `dcap-qvl`'s account and by ours. At those seconds and outside
  everything is verified anew.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

from strongroom.attest.claims import Claims
from strongroom.attest.parse.dcap import Quote
from strongroom.crypto import digest
from strongroom.crypto.chains import VendorCertificate

_MOST = 256


@dataclass(frozen=True)
class Answer:
    """The claims of one such quote, from when they hold, and until when."""

    claims: Claims
    starts: int
    expires: int


class Answers:
    """Those of one process, the latest used first. May be used from several threads."""

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, Answer] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: bytes, *, now: int) -> Answer | None:
        with self._lock:
            answer = self._kept.get(key)
            if answer is None or not answer.starts < now < answer.expires:
                return None
            self._kept.move_to_end(key)
            return answer

    def keep(self, key: bytes, answer: Answer) -> None:
        with self._lock:
            self._kept[key] = answer
            self._kept.move_to_end(key)
            while len(self._kept) > _MOST:
                self._kept.popitem(last=False)

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()


def key_of(tee: str, quote: Quote, endorsements: bytes, root: VendorCertificate) -> bytes:
    """What an answer is kept by: a digest of all that it depends on, but for report data, signature and time."""
    parts = (tee.encode(), *quote.without_report_data(), endorsements, root.der)
    return digest(*(digest(part) for part in parts))
