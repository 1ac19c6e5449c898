"""How much of a chain is known not to be revoked, in the words of `Claims.revocation`.

Told of chains that `verify_chain` followed: it refuses a list that is not in force, by nobody in the chain, or that
revokes something of it. So what remains to be told is whose lists were there.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from strongroom.crypto.chains import RevocationList, VendorCertificate

CHECKED, PARTLY, UNCHECKED = "checked", "partly", "not checked"
# RFC 5280, section 4.2.1.13: where the issuer's list is.
_DISTRIBUTION_POINTS = "2.5.29.31"


def revocation(lists: Sequence[RevocationList], issuers: Collection[str]) -> str:
    """Whether these lists are of all `issuers`, the names of those in the chain that make lists.

    Two issuers of one name have lists that cannot be told apart here.
    """
    found, wanted = {each.issuer for each in lists}, set(issuers)
    if not found & wanted:
        return UNCHECKED
    return CHECKED if wanted <= found and len(wanted) == len(issuers) else PARTLY


def issuers(chain: Sequence[VendorCertificate], root: VendorCertificate) -> list[str]:
    """The names of all who issued a certificate of the chain; the root's own is nobody's to revoke."""
    return [each.issuer for each in chain if each != root]


def named_issuers(chain: Sequence[VendorCertificate], root: VendorCertificate) -> list[str]:
    """Those of them whose certificates say where the issuer's list is; where none does, all of them."""
    below = [each for each in chain if each != root]
    return issuers([each for each in below if each.extension(_DISTRIBUTION_POINTS)] or below, root)
