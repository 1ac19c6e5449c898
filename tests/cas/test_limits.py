"""Limits on what one address, or one policy, may ask; and a client that comes back when it is told."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

from strongroom.cas.api.operation import Operation
from strongroom.cas.callers.limits import ADDRESSES, PAGED, REFUSED, Buckets, Limits, network_of
from strongroom.cas.client.address import cas_expectation
from strongroom.cas.log.head import CasHttp, MemoryHead
from strongroom.cas.policy.version import Policy, parse_policy, sign_policy
from strongroom.cas.wire import b64
from strongroom.channel import HttpClient, Identity, Response
from strongroom.crypto import SigningKey
from strongroom.errors import BindingError, MeasurementError, StrongroomError, TooManyRequestsError
from tests.cas.world import MEASURED, cas_in, document, world_in


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_lets_a_burst_through_and_then_its_rate():
    time = Time()
    buckets = Buckets(10, clock=time)
    for _ in range(40):
        assert buckets.wait("a") == 0
        buckets.take("a")
    assert buckets.wait("a") == pytest.approx(0.1)
    assert buckets.wait("b") == 0
    time.now = 0.1
    assert buckets.wait("a") == 0
    time.now = 1000
    for _ in range(40):  # what was not used is not kept beyond the burst
        buckets.take("a")
    assert buckets.wait("a") > 0


def test_what_costs_more_is_waited_for_longer_and_not_for_ever():
    buckets = Buckets(10, clock=Time())
    buckets.take("a", 60)
    assert buckets.wait("a") == pytest.approx(2.1)
    for _ in range(1000):
        buckets.take("a", 60)
    assert buckets.wait("a") == pytest.approx(4.1)


def test_memory_is_bounded_whoever_asks():
    buckets = Buckets(1, clock=Time())
    for number in range(ADDRESSES + 50):
        buckets.take(str(number))
    assert len(buckets) == ADDRESSES


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("127.0.0.1", "loopback"),
        ("127.8.9.1", "loopback"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1%eth0", "2001:db8:1:2::/64"),
        ("testclient", "unknown"),
    ],
)
def test_an_address_stands_for_its_network(address, network):
    assert network_of(address) == network


def test_loopback_is_not_limited_unless_told():
    free, told = Limits.of(1), Limits.of(1, loopback=True)
    for _ in range(100):
        free.check_address("127.0.0.1")
    with pytest.raises(TooManyRequestsError, match="too many from loopback") as error:
        for _ in range(100):
            told.check_address("127.0.0.1")
    assert error.value.seconds == 1
    with pytest.raises(TooManyRequestsError):
        for _ in range(100):
            free.check_address("192.0.2.7")


def test_a_cas_answers_429_and_says_when(tmp_path):
    time = Time()
    limits = Limits(Buckets(20, clock=time), None, loopback=True)
    with (
        cas_in(tmp_path, operation=Operation(limits=limits)) as cas,
        HttpClient(cas.dial, host="cas", expect=cas_expectation(cas.address.cas_root)) as http,
    ):
        answers = [http.request("GET", "/v1/cas") for _ in range(81)]
        assert [answer.status for answer in answers] == [200] * 80 + [429]
        assert answers[-1].headers["retry-after"] == "1"
        with pytest.raises(TooManyRequestsError, match="too many from loopback"):
            answers[-1].expect_ok()
        time.now += 1
        assert http.request("GET", "/v1/cas").status == 200


def test_refused_evidence_costs_more_than_what_is_accepted(tmp_path):
    limits = Limits(Buckets(1000, clock=Time()), None, loopback=True)
    assert limits.addresses is not None
    with cas_in(tmp_path, operation=Operation(limits=limits)) as cas, world_in(cas) as world:

        def cost(**changes: object) -> float:
            assert limits.addresses is not None
            before = limits.addresses._kept["loopback"][0]
            with world.enclave(**changes) as enclave, suppress(MeasurementError):
                enclave.attest()
            return before - limits.addresses._kept["loopback"][0]

        accepted = cost()
        assert cost(registers=MEASURED | {"rtmr1": bytes(48)}) - accepted >= REFUSED - 1


def test_what_is_long_or_refused_or_paged_costs_more(tmp_path):
    limits = Limits(Buckets(10_000, clock=Time()), None, loopback=True)
    key = SigningKey.generate()
    text = document(key, name="acme/large", vendor_root="sha256:" + "0" * 64, more="# " + "x" * 100_000 + "\n")
    with cas_in(tmp_path, operation=Operation(limits=limits)) as cas, cas.owner(key) as client:
        put, get = client._put, client._http.get
        forged = {"text": text, "signature": b64(bytes(64))}

        def cost(ask: Callable[[], object]) -> float:
            assert limits.addresses is not None
            before = limits.addresses._kept["loopback"][0]
            ask()
            return before - limits.addresses._kept["loopback"][0]

        def refused() -> None:
            with pytest.raises(StrongroomError):
                put("/v1/policies/acme/large", forged)

        get("/v1/cas")
        assert cost(lambda: get("/v1/cas")) == 1
        assert 97 < cost(refused) - REFUSED < 105
        assert 97 < cost(lambda: client.apply(text)) < 110
        assert cost(lambda: get("/v1/log")) == PAGED


def test_a_policy_that_nobody_signed_is_not_parsed(tmp_path, monkeypatch):
    parsed: list[str] = []

    def parse(text: str) -> Policy:
        parsed.append(text)
        return parse_policy(text)

    monkeypatch.setattr("strongroom.cas.api.policies.parse_policy", parse)
    key = SigningKey.generate()
    text = document(key, vendor_root="sha256:" + "0" * 64)
    path = "/v1/policies/acme/train"
    with cas_in(tmp_path) as cas, cas.owner(key) as client:
        for signature in (b"", bytes(64), sign_policy(text, SigningKey.generate())):
            with pytest.raises(StrongroomError):
                client._put(path, {"text": text, "signature": b64(signature)})
        assert parsed == []
        client._put(path, {"text": text, "signature": b64(sign_policy(text, key))})
        assert parsed == [text]


def test_a_policy_pays_for_what_succeeds_so_that_strangers_shut_nobody_out(tmp_path):
    time = Time()
    limits = Limits(None, Buckets(1, clock=time), loopback=True)
    with cas_in(tmp_path, operation=Operation(limits=limits)) as cas, world_in(cas) as world, world_in(cas) as other:
        for _ in range(8):
            with (
                world.enclave(registers=MEASURED | {"rtmr1": bytes(48)}) as stranger,
                pytest.raises(MeasurementError),
            ):
                stranger.attest()
        for _ in range(4):
            with world.enclave() as enclave:
                enclave.attest()
        with world.enclave() as enclave, pytest.raises(TooManyRequestsError, match=f"policy {world.name}"):
            enclave.attest()
        with other.enclave() as enclave:
            enclave.attest()
        time.now += 1
        with world.enclave() as enclave:
            enclave.attest()


@dataclass
class Busy(CasHttp):
    """A client whose CAS answers 429 so many times."""

    times: int = 0
    after: str = "2"
    slept: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(
            lambda: pytest.fail("not dialled"),  # type: ignore[arg-type, return-value]
            host="cas",
            expect=lambda chain: None,
            heads=MemoryHead(),
            max_body=1,
            timeout=1,
            identity=Identity.fresh("x", now=dt.datetime.now(dt.UTC)),
            sleep=self.slept.append,
        )

    def ask(self, monkeypatch: pytest.MonkeyPatch) -> int:
        def answer(_: HttpClient, *__: object, **___: object) -> Response:
            self.times -= 1
            if self.times < 0:
                return Response(200, {}, b"{}")
            return Response(429, {"retry-after": self.after}, b"{}")

        monkeypatch.setattr(HttpClient, "request", answer)
        return self._patient("GET", "/v1/cas", body=b"", headers={}, fresh=False).status


@pytest.mark.parametrize(
    ("times", "after", "status", "slept"),
    [
        (0, "2", 200, []),
        (1, "2", 200, [2]),
        (2, "2", 200, [2, 2]),
        (3, "2", 429, [2, 2]),
        (1, "11", 429, []),
        (1, "", 429, []),
        (1, "-1", 429, []),
        (1, "9" * 400, 429, []),
        (1, "Wed, 21 Oct 2026 07:28:00 GMT", 429, []),
    ],
)
def test_a_client_comes_back_when_it_is_told_if_that_is_soon(monkeypatch, times, after, status, slept):
    client = Busy(times, after)
    assert (client.ask(monkeypatch), client.slept) == (status, slept)


def test_an_attestation_counts_for_the_policy_that_its_nonce_was_asked_for(tmp_path):
    limits = Limits(None, Buckets(1, clock=Time()), loopback=True)
    with cas_in(tmp_path, operation=Operation(limits=limits)) as cas, world_in(cas) as victim, world_in(cas) as other:
        for _ in range(8):
            with other.enclave() as enclave:
                nonce = bytes.fromhex(str(enclave.http.post("/v1/nonce", {"policy": victim.name})["nonce"]))
                claims = enclave.claims()
                with pytest.raises(BindingError, match="is not the one that the nonce was asked for"):
                    enclave.show(enclave.evidence(nonce, claims), claims)
        with victim.enclave() as enclave:
            enclave.attest()
