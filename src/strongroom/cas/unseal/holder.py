"""A share's holder: verify a sealed CAS, then seal the share to it (docs/spec/cas.md, "The root secret").

1. Connect. A sealed CAS has no TLS key that anybody knows, but its operator may tell that of this start.
2. Send a nonce; get claims and evidence.
3. The claims name the key that the connection proved, and the set that the share is of.
4. The evidence is over that nonce, this connection and these claims, and what the reference values say runs there.
   Without reference values that key is all that shows who takes the share, and without it nothing; the caller must
   want that.
5. Seal the share, with its index, to the HPKE key in the claims.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from strongroom.attest.appraise import AttestationResult, ReferenceValues, appraise
from strongroom.attest.binding import EXPORTER_LABEL, Kind, parse_canonical, report_data
from strongroom.attest.evidence import Evidence
from strongroom.attest.verify import verify
from strongroom.cas.client.address import MAX_ANSWER, TIMEOUT, dial_cas, split_address
from strongroom.cas.unseal.locked import ROLE, share_info
from strongroom.cas.unseal.share_files import ShareFile
from strongroom.cas.wire import b64, bytes_field, hex_field, text_field
from strongroom.channel import HttpClient, expect_key
from strongroom.crypto import Certificate, HpkeKey, hpke_seal, random_bytes
from strongroom.errors import (
    BindingError,
    CasError,
    ConflictError,
    FormatError,
    UsageError,
    VerificationError,
    printable,
)

_CLAIMS = {"role", "spki", "hpke", "set", "threshold", "then"}


def give_share(
    url: str,
    file: ShareFile,
    key: HpkeKey,
    *,
    reference: ReferenceValues | None,
    key_of_start: str | None = None,
    then: str = "",
    clock: Callable[[], float] = time.time,
) -> tuple[Mapping[str, Any], AttestationResult | None]:
    """Give a share to the CAS at `url`, by the steps at the top of this file.

    Args:
        reference: what the CAS must be; None trusts the machine that answers there.
        key_of_start: the fingerprint of the TLS key that the CAS's operator reads from its messages.
        then: how the CAS may keep its secret from now on, if that is to change, in the words of `Shares.plan`.

    Returns:
        How many shares the CAS has, and what it was appraised as.

    Raises:
        AttestationError: it is not what was wanted; the class says why. It has got nothing.
        UnauthorizedError, ConflictError: it refused the share, or is open already.
        PeerIdentityError: it has another key than `key_of_start`.
        CasUnreachableError, ChannelError: nobody answers, or the connection ended.
    """
    share = file.open(key)
    shown: list[Certificate] = []

    def expect(chain: Sequence[Certificate]) -> None:
        if key_of_start is not None:
            expect_key(key_of_start)(chain)
        shown[:] = chain[:1]

    host, port = split_address(url)
    # 1
    with HttpClient(
        lambda: dial_cas(host, port), host=host, expect=expect, max_body=MAX_ANSWER, timeout=TIMEOUT
    ) as http:
        # 2
        nonce = random_bytes(32)
        try:
            answer = http.post("/v1/unseal/offer", {"nonce": nonce.hex()})
        except UsageError:
            raise ConflictError(
                "CAS: takes no shares: it is open already, or is no CAS of shares",
                hint="`strongroom cas status` asks it",
            ) from None
        stream, said = http.connect(), bytes_field(answer, "claims")
        # 3
        claims = parse_canonical(said)
        _check(claims, file, shown[0], then)
        # 4
        result = None
        if reference is not None:
            binder = stream.export(EXPORTER_LABEL, ROLE.encode())
            expected = report_data(Kind.SESSION, fresh=nonce, binder=binder, claims=said)
            result = _appraise(answer.get("evidence"), reference, expected, int(clock()))
        # 5
        box = hpke_seal(hex_field(claims, "hpke"), bytes([file.index]) + share, info=share_info(said))
        return http.post("/v1/unseal", {"share": b64(box)}, fresh=True), result


def _check(claims: Mapping[str, Any], file: ShareFile, certificate: Certificate, then: str) -> None:
    if set(claims) != _CLAIMS:
        raise FormatError(f"claims: got {', '.join(sorted(claims))[:200]}, wanted {', '.join(sorted(_CLAIMS))}")
    if text_field(claims, "set") != file.set.name:
        raise BindingError(
            f"claims.set: got {str(claims['set'])[:80]}, and the share is of {file.set.name}",
            hint="this is another CAS than the share is for, or its shares were made anew",
        )
    wanted = {"role": ROLE, "spki": certificate.key.fingerprint, "threshold": file.set.threshold}
    for name, value in wanted.items():
        if claims[name] != value:
            raise BindingError(
                f"claims.{name}: got {str(claims[name])[:80]}, wanted {value}",
                hint="somebody stands between this machine and the CAS; nothing was sent",
            )
    if text_field(claims, "then") != then:
        planned = f"be kept by {printable(claims['then'])}" if claims["then"] else "stay as it is"
        raise BindingError(
            f"claims.then: the root secret would {planned}, wanted {then or 'no change'}",
            hint="if its holders agreed on that, say so in the same words: --allow-rekey 'WAY'",
        )


def _appraise(wire: object, reference: ReferenceValues, expected: bytes, now: int) -> AttestationResult:
    if wire is None:
        raise VerificationError(
            "evidence: the CAS showed none", hint="it runs in no enclave; --without-evidence trusts its machine"
        )
    if not isinstance(wire, dict):
        raise CasError("answer: evidence is no object")
    claims = verify(Evidence.from_wire(wire), now=now, anchors=reference.anchors)
    return appraise(claims, reference, expected_report_data=expected, now=now)
