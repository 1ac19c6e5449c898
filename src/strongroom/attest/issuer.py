"""The CAS as a signer: the key of its leaf, once the chain ends at the root that somebody pinned."""

from __future__ import annotations

import datetime as dt

from strongroom.crypto import Certificate, PublicKey, equal
from strongroom.errors import VerificationError

CAS_URI = "spiffe://strongroom/cas"
"""The name in the certificate of every CAS; which CAS it is, the root key tells."""


def issuer_key(chain: tuple[Certificate, Certificate], cas_root: str, *, now: int) -> PublicKey:
    """The key of a CAS's leaf.

    Args:
        chain: leaf and root, as they came.
        cas_root: ``sha256:<hex>``, the fingerprint of the root key to trust.
        now: seconds since 1970, when both must be valid.

    Raises:
        VerificationError: another root, not issued by it, or not a CAS's.
        ExpiredError: one of the two is not valid at `now`.
    """
    leaf, root = chain
    if not equal(root.key.fingerprint.encode(), cas_root.encode()):
        raise VerificationError(
            f"CAS root: got {root.key.fingerprint}, wanted {cas_root}",
            hint="it is another CAS's than the one that was named",
        )
    moment = dt.datetime.fromtimestamp(now, dt.UTC)
    root.verify_issued_by(root, now=moment)
    leaf.verify_issued_by(root, now=moment)
    if leaf.uris != [CAS_URI]:
        raise VerificationError(f"CAS certificate: got the names {leaf.uris}, wanted {CAS_URI}")
    return leaf.key
