"""People of an issuer: tokens that are taken, tokens that are not, and keys that rotate."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Iterator

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.cas.api.operation import Operation
from strongroom.cas.callers.oidc import KEEP_SECONDS, MAX_TOKEN, REFETCH_SECONDS, OidcAuthenticator, https_fetch
from strongroom.crypto import SigningKey
from strongroom.errors import CasError, FormatError, UnauthorizedError, UsageError
from strongroom.testing.oidc import Issuer, b64url, running_issuer, signed
from tests.cas.world import PROGRAM, Cas, World, cas_in, world_in

AUDIENCE = "strongroom-cas"
NOW = 1_800_000_000
URL = "https://issuer.example"


# Over the wire


@pytest.fixture(scope="module")
def issuer_and_cas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Issuer, Cas]]:
    directory = tmp_path_factory.mktemp("oidc")
    with running_issuer(directory) as (issuer, ca):
        authenticator = OidcAuthenticator([issuer.url], AUDIENCE, fetch=https_fetch(ca))
        with cas_in(directory, operation=Operation(authenticator=authenticator)) as cas:
            yield issuer, cas


@pytest.fixture
def issuer(issuer_and_cas: tuple[Issuer, Cas]) -> Issuer:
    return issuer_and_cas[0]


@pytest.fixture
def world(issuer_and_cas: tuple[Issuer, Cas]) -> Iterator[World]:
    """A policy that a person may store secrets under."""
    issuer, cas = issuer_and_cas
    person = f'[[administrators]]\nname = "p"\noidc = "{issuer.url}"\nsubject = "alice"\nmay = ["secrets", "log"]\n'
    with world_in(cas) as made:
        made.renew(more=PROGRAM + person)
        yield made


def test_a_person_does_what_the_policy_lets_them_and_the_log_says_who(issuer, world):
    token = issuer.token("alice", AUDIENCE, now=world.cas.clock.now)
    with world.cas.bearer(token) as client:
        client.put_secret(world.name, "token", b"new")
        (mine,) = client.policies()
        assert mine["rights"] == ["secrets", "log"]
        entry = client.log()[-1]
        assert json.loads(entry["detail"]) == {"name": "token", "by": f"{issuer.url} alice"}
    token = issuer.token("bob", AUDIENCE, now=world.cas.clock.now)
    denied = pytest.raises(UnauthorizedError, match=f"the caller is {issuer.url} bob")
    with world.cas.bearer(token) as client, denied:
        client.put_secret(world.name, "token", b"x")


def test_a_person_signs_no_policy(issuer, world):
    token = issuer.token("alice", AUDIENCE, now=world.cas.clock.now)
    with world.cas.bearer(token) as client:
        with pytest.raises(UsageError, match="a token signs nothing"):
            client.apply(world.text())
        body = json.dumps({"text": world.text(), "signature": ""}).encode()
        answer = client._http.request(
            "PUT", f"/v1/policies/{world.name}", body=body, headers={"content-type": "application/json"}
        )
        assert (answer.status, "signs nothing" in answer.json()["error"]) == (403, True)


def test_a_login_ends_with_its_token(issuer, world):
    before = world.cas.clock.now
    with world.cas.bearer(issuer.token("alice", AUDIENCE, now=before)) as client:
        client.put_secret(world.name, "token", b"new")
        world.cas.clock.now = before + 600
        with pytest.raises(UnauthorizedError, match="login: the token has expired"):
            client.put_secret(world.name, "token", b"x")


def test_an_issuer_that_is_not_trusted_tls_is_not_asked_twice(tmp_path):
    with running_issuer(tmp_path) as (issuer, _):
        asked = OidcAuthenticator([issuer.url], AUDIENCE)  # of the system's authorities, none issued its certificate
        for says in ("could not be asked: ConnectError", "could not be asked for its keys lately"):
            with pytest.raises(CasError, match=says):
                asyncio.run(asked.authenticate(issuer.token("alice", AUDIENCE, now=NOW), now=NOW))
        assert issuer.asked == []


# The authenticator alone

CLAIMS = {"iss": URL, "sub": "alice", "aud": AUDIENCE, "iat": NOW, "exp": NOW + 600}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from([URL, AUDIENCE]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


class Fetched:
    """An issuer's answers without a network, and a clock."""

    def __init__(self) -> None:
        self.issuer, self.asked, self.time, self.raw = Issuer(URL), 0, 0.0, b""
        self.authenticator = OidcAuthenticator([URL], AUDIENCE, fetch=self.fetch, monotonic=lambda: self.time)

    async def fetch(self, url: str, limit: int) -> bytes:
        self.asked += 1
        if self.raw:
            return self.raw
        if url.endswith("openid-configuration"):
            return json.dumps({"issuer": URL, "jwks_uri": f"{URL}/keys"} | self.issuer.metadata).encode()
        return json.dumps({"keys": list(self.issuer.keys.values())}).encode()

    def __call__(self, token: str, now: int = NOW) -> tuple[str, int]:
        who, until = asyncio.run(self.authenticator.authenticate(token, now=now))
        return str(who), until

    def token(self, **changes: object) -> str:
        changes = {"subject": "alice", "audience": AUDIENCE} | changes
        return self.issuer.token(changes.pop("subject"), changes.pop("audience"), now=NOW, **changes)


@pytest.fixture
def fetched() -> Fetched:
    return Fetched()


def test_a_token_says_who_and_until_when(fetched):
    assert fetched(fetched.token()) == (f"{URL} alice", NOW + 600)
    assert fetched(fetched.token(audience=[AUDIENCE, "other"], azp=AUDIENCE)) == (f"{URL} alice", NOW + 600)
    assert fetched(fetched.token(exp=NOW + 10**6))[1] == NOW + 86_400
    assert fetched.asked == 2


REFUSED = {
    "another audience": ({"audience": "other"}, "it is for other, wanted strongroom-cas"),
    "no audience": ({"aud": None}, "it is for missing"),
    "for several, issued to another": ({"audience": [AUDIENCE, "x"], "azp": "x"}, "it was issued to x"),
    "for several, issued to nobody": ({"audience": [AUDIENCE, "x"]}, "it was issued to missing"),
    "another issuer": ({"iss": "https://evil.example"}, "its issuer is https://evil.example, wanted"),
    "no issuer": ({"iss": None}, "its issuer is missing"),
    "an issuer that is no text": ({"iss": ["x"]}, "its issuer is"),
    "expired": ({"exp": NOW}, "expired 0 seconds ago"),
    "no expiry": ({"exp": None}, "exp is missing"),
    "an expiry that is no number": ({"exp": "9999999999"}, "exp is missing, or no time"),
    "an expiry that is infinite": ({"exp": float("inf")}, "exp is missing, or no time"),
    "no time of issue": ({"iat": None}, "iat is missing"),
    "issued in the future": ({"iat": NOW + 61}, "is not valid yet"),
    "not valid yet": ({"nbf": NOW + 61}, "is not valid yet"),
    "too old": ({"iat": NOW - 86_401}, "is older than 86400 seconds"),
    "no subject": ({"sub": None}, "names no subject"),
    "an empty subject": ({"sub": ""}, "names no subject"),
    "a subject with a control character": ({"sub": "alice\n"}, "names no subject"),
    "no key": ({"header": {"kid": None}}, "names no key"),
    "a key that is not": ({"header": {"kid": "key-9"}}, "has no key key-9"),
    "critical extensions": ({"header": {"crit": ["b64"]}}, "critical extensions"),
    "a logout token": ({"header": {"typ": "logout+jwt"}}, "its type is logout"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_token_that_proves_nothing_is_refused(fetched, case):
    changes, says = REFUSED[case]
    with pytest.raises(UnauthorizedError, match=says):
        fetched(fetched.token(**changes))


@pytest.mark.parametrize("alg", ["none", "None", "HS256", "HS512", "RS512", "ES384", "", None, 5])
def test_other_algorithms_are_refused_before_anybody_is_asked(fetched, alg):
    with pytest.raises(UnauthorizedError, match="alg is"):
        fetched(fetched.token(header={"alg": alg}))
    assert fetched.asked == 0


def test_a_public_key_is_no_shared_secret(fetched):
    header, claims = {"alg": "HS256", "kid": fetched.issuer.kid}, {"iss": URL, "sub": "alice", "aud": AUDIENCE}
    begun = ".".join(b64url(json.dumps(part).encode()) for part in (header, claims | {"iat": NOW, "exp": NOW + 60}))
    mac = hmac.digest(fetched.issuer.key.public.spki, begun.encode(), "sha256")
    forged = f"{begun}.{b64url(mac)}"
    with pytest.raises(UnauthorizedError, match="alg is HS256"):
        fetched(forged)


def test_another_s_signature_is_refused(fetched):
    header, claims, signature = fetched.token().split(".")
    other = signed(SigningKey.generate(), {"alg": "ES256", "kid": "key-1"}, {"iss": URL})
    for forged in (other, f"{header}.{claims}.{signature[:-4]}AAAA", f"{header}.{claims}."):
        with pytest.raises(UnauthorizedError, match="its signature is not its issuer's"):
            fetched(forged)


@pytest.mark.parametrize(
    "text", ["", "a.b", "a.b.c", "..", "é.b.c", "x" * (MAX_TOKEN + 1), "e30.W10.", "bnVsbA.e30.AA"]
)
def test_what_is_no_token_is_refused(fetched, text):
    with pytest.raises((FormatError, UnauthorizedError), match="token"):
        fetched(text)


@settings(max_examples=100, deadline=None)
@given(
    header=st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "x"]), JSON, max_size=4),
    claims=st.one_of(JSON, st.dictionaries(st.sampled_from([*CLAIMS, "nbf", "azp", "x"]), JSON, max_size=6)),
    broken=st.booleans(),
)
def test_whatever_a_token_says_it_is_refused_in_words_or_is_alice_s(header, claims, broken):
    fetched = Fetched()
    said = claims if broken or not isinstance(claims, dict) else CLAIMS | claims
    token = signed(fetched.issuer.key, {"alg": "ES256", "kid": "key-1"} | header, said)
    try:
        who, until = fetched(token)
    except (FormatError, UnauthorizedError):
        return
    assert isinstance(said, dict) and who == f"{URL} {said['sub']}" and NOW < until <= NOW + 86_400


def test_keys_of_other_kinds_count_for_their_own_algorithm(fetched):
    keys = {
        "RS256": rsa.generate_private_key(public_exponent=65537, key_size=2048),
        "EdDSA": ed25519.Ed25519PrivateKey.generate(),
    }
    algorithms = {"RS256": jwt.algorithms.RSAAlgorithm, "EdDSA": jwt.algorithms.OKPAlgorithm}
    for alg, key in keys.items():
        jwk = json.loads(algorithms[alg].to_jwk(key.public_key())) | {"kid": alg}
        jwk.pop("key_ops", None)
        fetched.issuer.keys[alg] = jwk
    claims = {"iss": URL, "sub": "alice", "aud": AUDIENCE, "iat": NOW, "exp": NOW + 60}
    for alg, key in keys.items():
        assert fetched(jwt.encode(claims, key, algorithm=alg, headers={"kid": alg}))[0] == f"{URL} alice"
    with pytest.raises(UnauthorizedError, match="alg is EdDSA, and its key is for RS256"):
        fetched(jwt.encode(claims, keys["EdDSA"], algorithm="EdDSA", headers={"kid": "RS256"}))


def test_keys_that_may_not_sign_are_left_out(fetched):
    good = dict(fetched.issuer.keys["key-1"])
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505
    other = ec.generate_private_key(ec.SECP384R1())
    fetched.issuer.keys = {
        "enc": good | {"kid": "enc", "use": "enc"},
        "ops": good | {"kid": "ops", "key_ops": ["encrypt"]},
        "weak": json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(weak.public_key())) | {"kid": "weak"},
        "p384": json.loads(jwt.algorithms.ECAlgorithm.to_jwk(other.public_key())) | {"kid": "p384"},
        "oct": {"kty": "oct", "k": "AAAA", "kid": "oct"},
        "broken": good | {"kid": "broken", "x": "AAAA"},
        "one": good | {"kid": "twice"},
        "two": good | {"kid": "twice"},
        "nobody": {k: v for k, v in good.items() if k != "kid"},
        "list": [],
    }
    for kid in ("enc", "ops", "weak", "p384", "oct", "broken", "twice"):
        with pytest.raises(UnauthorizedError, match="has no key"):
            fetched(fetched.token(header={"kid": kid}))
    assert fetched.asked == 2  # a key that is not there is looked for once


def test_a_new_key_is_found_and_strangers_make_nobody_ask_more_often(fetched):
    fetched(fetched.token())
    fetched.issuer.rotate()
    for _ in range(3):
        with pytest.raises(UnauthorizedError, match="has no key key-2"):
            fetched(fetched.token())
    assert fetched.asked == 2
    fetched.time = REFETCH_SECONDS + 1
    assert fetched(fetched.token())[0] == f"{URL} alice"
    assert fetched.asked == 4
    fetched.time += KEEP_SECONDS + 1
    fetched(fetched.token())  # after an hour they are asked for anyway
    assert fetched.asked == 6


def test_a_login_waits_for_nobody_else_s_key(fetched):
    fetched(fetched.token())
    known, unknown = fetched.token(), fetched.token(header={"kid": "stranger"})
    fetched.time = REFETCH_SECONDS + 1

    async def both():
        answers, asked, fetch = asyncio.Event(), asyncio.Event(), fetched.authenticator._fetch

        async def slowly(url, limit):
            asked.set()
            await answers.wait()
            return await fetch(url, limit)

        fetched.authenticator._fetch = slowly
        stranger = asyncio.ensure_future(fetched.authenticator.authenticate(unknown, now=NOW))
        await asked.wait()
        who, _ = await fetched.authenticator.authenticate(known, now=NOW)
        answers.set()
        with pytest.raises(UnauthorizedError, match="has no key stranger"):
            await stranger
        return str(who)

    assert asyncio.run(both()) == f"{URL} alice"


@pytest.mark.parametrize(
    ("raw", "metadata", "says"),
    [
        (b"[]", {}, "something else than a JSON object"),
        (b"{", {}, "something else than a JSON object"),
        (b"", {"issuer": "https://other.example"}, "calls itself https://other.example"),
        (b"", {"jwks_uri": "http://issuer.example/keys"}, "says no https:// address of its keys"),
        (b"", {"jwks_uri": None}, "says no https:// address of its keys"),
        (b'{"issuer": "https://issuer.example", "jwks_uri": "https://issuer.example", "keys": 3}', {}, "no list"),
    ],
)
def test_an_issuer_that_answers_nonsense_vouches_for_nobody(fetched, raw, metadata, says):
    fetched.raw, fetched.issuer.metadata = raw, metadata
    with pytest.raises((CasError, UnauthorizedError), match=says):
        fetched(fetched.token())


def test_an_issuer_s_redirection_is_not_followed(tmp_path):
    with running_issuer(tmp_path) as (issuer, ca):
        issuer.redirect = f"{issuer.url}/keys"
        asked = OidcAuthenticator([issuer.url], AUDIENCE, fetch=https_fetch(ca))
        with pytest.raises(CasError, match="answered 307, wanted 200"):
            asyncio.run(asked.authenticate(issuer.token("alice", AUDIENCE, now=NOW), now=NOW))


@pytest.mark.parametrize(
    ("issuers", "audience"), [([], AUDIENCE), ([URL], ""), (["http://issuer.example"], AUDIENCE), (["x"], AUDIENCE)]
)
def test_issuers_are_https_and_have_an_audience(issuers, audience):
    with pytest.raises(UsageError, match="--oidc"):
        OidcAuthenticator(issuers, audience, fetch=Fetched().fetch)
