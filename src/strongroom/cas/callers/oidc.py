"""People whom an OpenID Connect issuer vouches for: its tokens, verified under the keys that it publishes.

Rules:

- A token counts if one of the issuers that the operator named signed it, for the audience that the operator named, and
  its times hold by the CAS's clock. What is missing refuses.
- Algorithms are those below, each under a key of its own kind: never `none`, never a shared secret, and never what the
  token says of its key beside the key's identifier.
- Issuers are asked over TLS for at most so many bytes, follow no redirection, and are asked again for an unknown key at
  most once in `REFETCH_SECONDS`: strangers' tokens make a CAS ask nobody more often.

Sources: OpenID Connect Discovery 1.0, sections 3 and 4; Core 1.0, section 3.1.3.7; RFC 7517, 7519, 8725.
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from strongroom.cas.callers.administrators import Principal
from strongroom.cas.policy.rights import ISSUER, SUBJECT
from strongroom.errors import CasError, FormatError, MissingDependencyError, UnauthorizedError, UsageError, printable

if TYPE_CHECKING:
    from jwt import PyJWK

ALGORITHMS = ("RS256", "ES256", "EdDSA")
MAX_TOKEN = 16_384
MAX_METADATA = 65_536
MAX_KEYS = 262_144
_MOST_KEYS = 64
SKEW = 60
"""Seconds by which an issuer's clock may be off."""
MAX_LIFETIME = 86_400
"""Seconds for which a token counts at most, whatever it says."""
REFETCH_SECONDS = 60
KEEP_SECONDS = 3600
"""For how long an issuer's keys are used before it is asked again."""
_ASK_SECONDS = 10.0
_RSA_BITS = range(2048, 8193)

Fetch = Callable[[str, int], "asyncio.Future[bytes] | Any"]
"""GET a URL, at most so many bytes; raises CasError."""


class Authenticator(Protocol):
    """Whoever tells from a token who bears it."""

    async def authenticate(self, token: str, *, now: int) -> tuple[Principal, int]:
        """Who it is, and until when that stands (seconds since 1970).

        Raises:
            FormatError: it is no token.
            UnauthorizedError: it proves nothing to this CAS.
            CasError: its issuer could not be asked.
        """


@dataclass
class _Issuer:
    """What is known of an issuer's keys: by identifier, since when, and when it was asked last."""

    keys: dict[str, PyJWK] = field(default_factory=dict)
    fetched: float = float("-inf")
    asked: float = float("-inf")
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class OidcAuthenticator:
    """Verifies tokens of some issuers for one audience.

    Args:
        issuers: their addresses, exactly as tokens say them.
        audience: what tokens must be for: this CAS's name, or its client's, at the issuers.
        fetch: asks an issuer; by default `https_fetch()`.
        monotonic: a clock for how old fetched keys are.

    Raises:
        UsageError: an address is not https, or the audience is empty.
        MissingDependencyError: the extra `oidc` is not installed.
    """

    def __init__(
        self,
        issuers: Sequence[str],
        audience: str,
        *,
        fetch: Fetch | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        _jwt()
        for issuer in issuers:
            if not ISSUER.fullmatch(issuer):
                raise UsageError(f"--oidc: got {printable(issuer[:200])!r}, wanted an issuer's https:// address")
        if not issuers or not audience:
            raise UsageError(
                "--oidc, --oidc-audience: one is useless without the other",
                hint="the audience is what the issuer's tokens say in `aud`",
            )
        self._issuers = {issuer: _Issuer() for issuer in issuers}
        self._audience = audience
        self._fetch = fetch or https_fetch()
        self._monotonic = monotonic

    async def authenticate(self, token: str, *, now: int) -> tuple[Principal, int]:
        # 1. A token of a form and an algorithm that are taken at all.
        header, unverified = _parts(token)
        algorithm, kid = header.get("alg"), header.get("kid")
        if algorithm not in ALGORITHMS:
            raise UnauthorizedError(f"token: alg is {_word(algorithm)}, wanted one of {', '.join(ALGORITHMS)}")
        if not isinstance(kid, str) or not 0 < len(kid) <= 256:
            raise UnauthorizedError("token: names no key (kid)", hint="the issuer must name the key that signs")
        if "crit" in header:
            raise UnauthorizedError("token: has critical extensions, of which none is known")
        if str(header.get("typ", "JWT")).lower() not in ("jwt", "at+jwt", "application/at+jwt"):
            raise UnauthorizedError(f"token: its type is {_word(header.get('typ'))}, wanted JWT or at+jwt")
        # 2. Of an issuer that the operator named.
        name = unverified.get("iss")
        issuer = self._issuers.get(name) if isinstance(name, str) else None
        if issuer is None:
            raise UnauthorizedError(
                f"token: its issuer is {_word(name)}, wanted {', '.join(self._issuers)}",
                hint="the CAS's operator names issuers: `strongroom cas start --oidc`",
            )
        # 3. Signed by that issuer's key.
        key = await self._key(str(name), issuer, kid)
        claims = _verified(token, key, str(algorithm))
        # 4. For this CAS, now, of a person.
        return self._judge(claims, str(name), now)

    def _judge(self, claims: Mapping[str, Any], issuer: str, now: int) -> tuple[Principal, int]:
        if claims.get("iss") != issuer:
            raise UnauthorizedError("token: its issuer changed between two readings")
        audiences = claims.get("aud")
        audiences = [audiences] if isinstance(audiences, str) else audiences
        if not isinstance(audiences, list) or self._audience not in audiences:
            raise UnauthorizedError(
                f"token: it is for {_word(claims.get('aud'))}, wanted {self._audience}",
                hint="get a token for this CAS's audience",
            )
        # Core 3.1.3.7, steps 4 and 5: of a token for several, the party that it was issued to must be known.
        if (len(audiences) > 1 or "azp" in claims) and claims.get("azp") != self._audience:
            raise UnauthorizedError(f"token: it was issued to {_word(claims.get('azp'))}, wanted {self._audience}")
        expires, issued = _seconds(claims, "exp"), _seconds(claims, "iat")
        begins = _seconds(claims, "nbf") if "nbf" in claims else issued
        if now >= expires:
            raise UnauthorizedError(f"token: expired {now - expires} seconds ago", hint="get a new one")
        if max(begins, issued) > now + SKEW:
            raise UnauthorizedError("token: is not valid yet", hint="is the CAS's clock right?")
        if now - issued > MAX_LIFETIME:
            raise UnauthorizedError(f"token: is older than {MAX_LIFETIME} seconds", hint="get a new one")
        subject = claims.get("sub")
        if not isinstance(subject, str) or not SUBJECT.fullmatch(subject):
            raise UnauthorizedError("token: names no subject of 1 to 255 ASCII characters")
        return Principal(issuer=issuer, subject=subject), min(expires, issued + MAX_LIFETIME)

    async def _key(self, name: str, issuer: _Issuer, kid: str) -> PyJWK:
        if kid in issuer.keys and self._monotonic() - issuer.fetched <= KEEP_SECONDS:
            return issuer.keys[kid]  # it need not wait for what another token's key is looked for
        async with issuer.lock:
            moment = self._monotonic()
            old = moment - issuer.fetched > KEEP_SECONDS
            if (old or kid not in issuer.keys) and moment - issuer.asked > REFETCH_SECONDS:
                issuer.asked = moment
                issuer.keys = await self._ask(name)
                issuer.fetched = self._monotonic()
            elif old:
                raise CasError(
                    f"issuer {name}: could not be asked for its keys lately",
                    hint=f"try again in {REFETCH_SECONDS} seconds; log in by key meanwhile",
                )
            if kid not in issuer.keys:
                raise UnauthorizedError(
                    f"token: {name} has no key {_word(kid)}",
                    hint=f"a new key is looked for once in {REFETCH_SECONDS} seconds: try again, or get a new token",
                )
            return issuer.keys[kid]

    async def _ask(self, name: str) -> dict[str, PyJWK]:
        """An issuer's keys by identifier, those that it may sign with."""
        where = name.removesuffix("/") + "/.well-known/openid-configuration"
        metadata = _json(await self._fetch(where, MAX_METADATA), where)
        # Discovery, section 4.3: else one issuer could speak for another.
        if metadata.get("issuer") != name:
            raise UnauthorizedError(f"issuer {name}: calls itself {_word(metadata.get('issuer'))}")
        address = metadata.get("jwks_uri")
        if not isinstance(address, str) or not address.startswith("https://") or len(address) > 2000:
            raise UnauthorizedError(f"issuer {name}: says no https:// address of its keys")
        found = _json(await self._fetch(address, MAX_KEYS), address).get("keys")
        if not isinstance(found, list) or len(found) > _MOST_KEYS:
            raise UnauthorizedError(f"issuer {name}: publishes no list of at most {_MOST_KEYS} keys")
        keys: dict[str, PyJWK] = {}
        twice = set()
        for each in found:
            key = _usable(each)
            if key is not None:
                if each["kid"] in keys:
                    twice.add(each["kid"])
                keys[each["kid"]] = key
        return {kid: key for kid, key in keys.items() if kid not in twice}


def https_fetch(ca: Path | None = None) -> Fetch:
    """Asks over HTTPS.

    Args:
        ca: of issuers with a certificate authority of their own, PEM; by default the system's.

    Raises:
        MissingDependencyError: the extra `oidc` is not installed.
        UsageError: the file holds no certificate.
    """
    try:
        import httpx
    except ImportError:
        raise _missing("httpx") from None
    try:
        context = ssl.create_default_context(cafile=None if ca is None else str(ca))
    except (OSError, ssl.SSLError):
        raise UsageError(f"--oidc-ca: {ca} holds no certificate in PEM") from None

    async def fetch(url: str, limit: int) -> bytes:
        raw = bytearray()
        try:
            async with (
                asyncio.timeout(_ASK_SECONDS),
                httpx.AsyncClient(verify=context, follow_redirects=False, trust_env=True) as client,
                client.stream("GET", url, headers={"accept": "application/json"}) as answer,
            ):
                if answer.status_code != 200:
                    raise CasError(f"issuer: {url[:200]} answered {answer.status_code}, wanted 200")
                async for piece in answer.aiter_bytes():
                    raw += piece
                    if len(raw) > limit:
                        raise CasError(f"issuer: {url[:200]} answered with more than {limit} bytes")
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError) as error:
            raise CasError(
                f"issuer: {url[:200]} could not be asked: {printable(type(error).__name__)}",
                hint="can the CAS reach it, and is its certificate one that the CAS trusts? --oidc-ca names another CA",
            ) from None
        return bytes(raw)

    return fetch


def _jwt() -> Any:
    try:
        import jwt
    except ImportError:
        raise _missing("PyJWT") from None
    return jwt


def _missing(package: str) -> MissingDependencyError:
    return MissingDependencyError(
        f"{package}: is not installed, and --oidc needs it", hint="pip install 'strongroom[oidc]'"
    )


def _parts(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and claims of a token, of which nothing is verified. Raises FormatError."""
    if not token.isascii() or len(token) > MAX_TOKEN or token.count(".") != 2:
        raise FormatError(f"token: wanted a signed JWT of at most {MAX_TOKEN} characters")
    try:
        header, claims = (json.loads(base64.urlsafe_b64decode(part + "==")) for part in token.split(".")[:2])
    except (ValueError, RecursionError):
        header = claims = None
    if not isinstance(header, dict) or not isinstance(claims, dict):
        raise FormatError("token: wanted a signed JWT (RFC 7519) in its compact form")
    return header, claims


def _verified(token: str, key: PyJWK, algorithm: str) -> dict[str, Any]:
    """Its claims, signed by that key. Their times are judged by the CAS's clock, elsewhere."""
    jwt = _jwt()
    if key.algorithm_name != algorithm:
        raise UnauthorizedError(f"token: alg is {algorithm}, and its key is for {key.algorithm_name}")
    unjudged = {f"verify_{claim}": False for claim in ("exp", "nbf", "iat", "aud", "iss", "sub", "jti")}
    try:
        claims = jwt.decode(token, key.key, algorithms=[algorithm], options={"verify_signature": True, **unjudged})
    except (jwt.PyJWTError, ValueError, RecursionError):
        raise UnauthorizedError("token: its signature is not its issuer's") from None
    return dict(claims)


def _usable(wire: object) -> PyJWK | None:
    """A key of a JWK set, if it is one that may verify here; an issuer may publish others."""
    jwt = _jwt()
    if not isinstance(wire, dict) or not isinstance(wire.get("kid"), str) or wire.get("use", "sig") != "sig":
        return None
    if not isinstance(wire.get("key_ops", ["verify"]), list) or "verify" not in wire.get("key_ops", ["verify"]):
        return None
    algorithm = {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA"}.get(str(wire.get("kty")))
    if algorithm is None or wire.get("alg", algorithm) != algorithm or "d" in wire:
        return None
    if (algorithm, wire.get("crv")) not in {("RS256", None), ("ES256", "P-256"), ("EdDSA", "Ed25519")}:
        return None
    try:
        key = jwt.PyJWK(wire, algorithm)
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    return key if algorithm != "RS256" or key.key.key_size in _RSA_BITS else None


def _json(raw: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise CasError(f"issuer: {where[:200]} answered something else than a JSON object")
    return value


def _seconds(claims: Mapping[str, Any], name: str) -> int:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1 << 40:  # nor NaN
        raise UnauthorizedError(f"token: {name} is missing, or no time")
    return int(value)


def _word(value: object) -> str:
    return printable(str(value)[:200]) if value is not None else "missing"
