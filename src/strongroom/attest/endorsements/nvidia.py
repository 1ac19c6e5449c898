"""What NVIDIA publishes about its devices' certificates: the revocation lists that those certificates name.

A device's evidence carries its chain. NVIDIA's certificates in it say where their issuer's list is (RFC 5280, section
4.2.1.13), on one host for all: ``http://crl.ndis.nvidia.com/crl/NAME.crl``. Those that a device issued to itself name
none.

Not fetched, since `verify` has no use for them: online answers about single certificates (OCSP), and reference
integrity manifests (RIM).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from strongroom.attest.endorsements.endorsement import Endorsement, Want
from strongroom.attest.parse.endorsements import Endorsements, parse_endorsements
from strongroom.crypto.chains import RevocationList, VendorCertificate
from strongroom.errors import FormatError

# By HTTP, as lists of CAs commonly are: a client could not check the list of the web's own CAs otherwise.
SERVICE = "http://crl.ndis.nvidia.com"

_DISTRIBUTION_POINTS = "2.5.29.31"
# A URI in a distribution point is an IA5String below the tag [6], with its length before it. The name alone is taken:
# a certificate is not trusted to say which host is asked.
_URI = re.compile(rb"\x86.https?://crl\.ndis\.nvidia\.com/crl/([a-z0-9-]{1,64})\.crl", re.DOTALL)


def wants(endorsements: bytes, *, service: str = SERVICE) -> tuple[Want, ...]:
    """The revocation lists that the chain in a device's endorsements names, from the leaf's side on.

    Raises:
        FormatError: the endorsements do not parse, or hold no chain.
    """
    chain = parse_endorsements(endorsements).certificates
    if not chain:
        raise FormatError("device: its evidence carries no certificates, which come from the device alone")
    names = dict.fromkeys(name for each in chain for name in _names(each))
    return tuple(Want(f"nvidia/crl/{name}", f"{service.rstrip('/')}/crl/{name}.crl") for name in names)


def compose(endorsements: bytes, lists: Sequence[Endorsement]) -> bytes:
    """A device's endorsements with those lists in place of what it showed."""
    chain = parse_endorsements(endorsements).certificates
    return Endorsements(chain, tuple(RevocationList(each.body) for each in lists)).to_bytes()


def _names(certificate: VendorCertificate) -> list[str]:
    return [name.decode() for name in _URI.findall(certificate.extension(_DISTRIBUTION_POINTS) or b"")]
