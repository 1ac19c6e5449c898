"""A CAS completes evidence with its vendor's endorsements: from a bundle, a vendor's service, or not at all."""

from __future__ import annotations

import argparse
import asyncio
import json
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from strongroom.attest import appraise as appraisal
from strongroom.attest.endorsements import Bundle, Cache, Endorsement, Sources, bundle, wants
from strongroom.attest.endorsements.foreign import endorsements_in
from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.endorsements import parse_endorsements
from strongroom.attest.reference import ReferenceValues
from strongroom.attest.verify import verify
from strongroom.cas.enclaves.completion import Completer, Completion
from strongroom.cli.cas import endorsements as cas_endorsements
from strongroom.errors import (
    BindingError,
    CasError,
    ChannelError,
    ExpiredError,
    FormatError,
    UsageError,
    VerificationError,
)
from tests.attest import amd
from tests.attest.vendor_services import VendorServices, served
from tests.cas.world import Clock, cas_in, world_in

TDX = Path(__file__).parents[1] / "vectors" / "tdx"
MOMENT = json.loads((TDX / "cases.json").read_text())["v4_up_to_date"]["now"]
COLLATERAL = (TDX / "v4_up_to_date.collateral.json").read_bytes()
QUOTE = Evidence("tdx", (TDX / "v4_up_to_date.quote.bin").read_bytes(), b"")
MODELS = {"digits": "sha256:" + "ab" * 32}


def accepting(evidence: Evidence, tee: str, now: int) -> dict[str, object]:
    """Reference values for what that evidence says."""
    claims = verify(evidence, now=now)
    return {"tees": [tee], "measurements": [claims.measurement], "weaknesses_allowed": list(claims.weaknesses)}


@dataclass
class Past(Clock):
    """The CAS's clock stands at `now`; but its certificate, for which it is read first, must be valid for clients."""

    certified: bool = False

    def __call__(self) -> float:
        moment, self.certified = self.now if self.certified else time.time(), True
        return moment


@contextmanager
def world_of(directory, complete, reference, moment, **changes):
    """A CAS with `complete`, and a policy of those reference values; its clock stands at `moment`."""
    with (
        cas_in(directory, Past(moment), complete=complete) as cas,
        world_in(cas, **{"reference": reference, "vendor_root": "", "more": ""} | changes) as world,
    ):
        yield world


@pytest.fixture
def refused(tmp_path):
    """What becomes of the recorded quote, which nobody made for the CAS's nonce, at a CAS with that `complete`."""

    def attempt(complete, evidence=QUOTE, moment=MOMENT):
        reference = accepting(replace(QUOTE, endorsements=COLLATERAL), "tdx", MOMENT)
        with world_of(tmp_path / "state", complete, reference, moment) as world, world.enclave() as enclave:
            enclave.nonce()
            with pytest.raises(Exception) as caught:
                enclave.show(evidence, enclave.claims())
            return caught.value, world.refusals()

    return attempt


@pytest.fixture
def file(tmp_path):
    """A bundle's file with what the recorded quote takes."""
    bundle.write(tmp_path / "fleet.json", endorsements_in(COLLATERAL, now=MOMENT))
    return tmp_path / "fleet.json"


def test_without_endorsements_a_quote_is_not_verified(refused):
    error, refusals = refused(None)
    assert isinstance(error, FormatError)
    assert "none came with the tdx evidence" in error.message
    assert "--fetch-endorsements" in error.hint
    assert refusals == []


def test_with_a_bundle_it_comes_to_what_it_is_bound_to(refused, file):
    error, refusals = refused(Completer(Sources(), file))
    assert isinstance(error, BindingError)
    assert "report data" in error.message
    assert refusals == ["binding"]


def test_what_the_prover_brings_does_not_count(refused, file, vector_of_another):
    error, _ = refused(Completer(Sources(), file), replace(QUOTE, endorsements=vector_of_another))
    assert isinstance(error, BindingError)
    error, _ = refused(Completer(Sources(bundle=Bundle())), replace(QUOTE, endorsements=COLLATERAL))
    assert isinstance(error, FormatError)
    assert "nothing may be fetched" in error.message


@pytest.fixture
def vector_of_another():
    return (TDX / "v4_debug.collateral.json").read_bytes()


def test_endorsements_are_fetched_once(refused, tmp_path):
    intel = VendorServices()
    intel.serve_intel(json.loads(COLLATERAL), "tdx")
    complete = Completer(Sources(cache=Cache(tmp_path / "cache"), transport=intel))
    for _ in range(2):
        assert isinstance(refused(complete)[0], BindingError)
    assert intel.asked == [want.url for want in wants(QUOTE)]
    # What is kept still holds when the service is down.
    intel.down = True
    assert isinstance(refused(complete, moment=MOMENT + 2 * 24 * 3600)[0], BindingError)


def test_a_service_that_is_down_is_no_fault_of_the_enclave_s(refused, tmp_path):
    intel = VendorServices()
    intel.serve_intel(json.loads(COLLATERAL), "tdx")
    intel.down = True
    complete = Completer(Sources(cache=Cache(tmp_path / "cache"), transport=intel))
    error, refusals = refused(complete)
    assert (type(error), refusals) == (CasError, [])
    assert "connection refused" in error.message
    assert "attest again" in error.hint
    intel.down = False
    assert isinstance(refused(complete)[0], BindingError)


def test_a_bundle_that_has_ended_is_refused(refused, file):
    error, refusals = refused(Completer(Sources(), file), moment=MOMENT + 60 * 24 * 3600)
    assert (type(error), refusals) == (ExpiredError, ["expired"])


def test_nobody_is_asked_for_a_kind_that_the_policy_does_not_accept(tmp_path):
    intel = VendorServices()
    with (
        cas_in(tmp_path, complete=Completer(Sources(transport=intel))) as cas,
        world_in(cas) as world,
        world.enclave() as enclave,
    ):
        enclave.nonce()
        with pytest.raises(FormatError):
            enclave.show(QUOTE, enclave.claims())
    assert intel.asked == []


def test_a_simulated_enclave_is_complete(tmp_path):
    def complete(evidence, now):
        raise AssertionError("called")

    with cas_in(tmp_path, complete=complete) as cas, world_in(cas) as world, world.session() as session:
        assert session.attest().environment


# A whole exchange, with an AMD of the tests' own: its attester brings the report alone, as configfs-tsm may


FLOOR = "[reference.minimum_tcb.snp]\nbootloader = 4\ntee = 0\nsnp = 27\nmicrocode = 222\n"


class Bare:
    def evidence(self, bound):
        return Evidence("snp", amd.Amd().report(report_data=bound), b"")


def of_amd(*lists):
    """A bundle with its certificates and the one list that its issuer has of chips."""
    own, given = amd.Amd(), Evidence("snp", amd.Amd().report(), b"")
    leaf, chain, crl = (want.name for want in wants(given))
    pem = own.issuer.certificate.pem() + own.root.certificate.pem()
    return [
        Endorsement.read(leaf, own.leaf.certificate.der, fetched=amd.NOW),
        Endorsement.read(chain, pem.encode(), fetched=amd.NOW),
        *(Endorsement.read(crl, each.der, fetched=amd.NOW) for each in lists),
    ]


@pytest.fixture
def trusted(monkeypatch):
    """The tests' AMD in the place of AMD."""
    own = amd.Amd()
    monkeypatch.setattr(ReferenceValues, "anchors", property(lambda self: own.anchors))
    monkeypatch.setitem(appraisal._ROOTS, "snp", frozenset([own.root.certificate.fingerprint]))
    return {"tees": ["snp"], "measurements": [(b"m" * 48).hex()]}


def test_a_report_without_a_certificate_attests_and_its_clients_get_one(trusted, tmp_path):
    bundle.write(tmp_path / "fleet.json", of_amd(amd.Amd().revoking(amd.Amd().issuer)))
    complete = Completer(Sources(), tmp_path / "fleet.json")
    with (
        world_of(tmp_path, complete, trusted, amd.NOW, role="service", more=FLOOR) as world,
        world.session(role="service", attester=Bare()) as session,
    ):
        assert session.attest().certificate
        shown = Evidence.from_wire(session.certify_service(MODELS).evidence)
        claims = verify(shown, now=amd.NOW, anchors=amd.Amd().anchors)
        assert claims.hardware_id == amd.CHIP.hex()
        assert len(parse_endorsements(shown.endorsements).revocation_lists) == 1
        # And so does the client that has evidence made for its own nonce.
        own = Evidence.from_wire(session.evidence_for({"role": "x"}, nonce=bytes(32), binder=b"b" * 32))
        assert own.endorsements == shown.endorsements
        assert own.quote != shown.quote


def test_a_revoked_key_is_refused_whatever_the_prover_brings(trusted, tmp_path):
    own = amd.Amd()
    bundle.write(tmp_path / "fleet.json", of_amd(own.revoking(own.issuer, 3)))

    class Whole:
        def evidence(self, bound):
            return own.evidence((own.revoking(own.issuer),), report_data=bound)

    with (
        world_of(tmp_path, Completer(Sources(), tmp_path / "fleet.json"), trusted, amd.NOW, more=FLOOR) as world,
        world.session(attester=Whole()) as session,
    ):
        with pytest.raises(VerificationError, match="revoked"):
            session.attest()
        assert world.refusals() == ["verification"]


def test_others_are_answered_while_a_vendor_is_slow(trusted, tmp_path):
    asked, answer = threading.Event(), threading.Event()
    own, failures = amd.Amd(), []

    def complete(evidence, now):
        asked.set()
        answer.wait()
        return replace(evidence, endorsements=own.evidence().endorsements)

    with world_of(tmp_path, complete, trusted, amd.NOW, more=FLOOR) as world, world.session(attester=Bare()) as session:

        def attest():
            try:
                session.attest()
            except Exception as error:
                failures.append(error)

        thread = threading.Thread(target=attest)
        thread.start()
        asked.wait()
        assert world.policy.version == 1
        # Decided by the version that is the newest at the end.
        world.renew(reference=trusted, vendor_root="", more=FLOOR)
        answer.set()
        thread.join()
        assert [type(each) for each in failures] == [BindingError]
        assert "policy_digest" in failures[0].message


# The parts


@pytest.fixture
def run():
    return asyncio.run


def test_nobody_waits_longer_than_the_limit_and_threads_stay_few(run):
    answer, calls = threading.Event(), []

    def complete(evidence, now):
        calls.append(now)
        answer.wait()
        return evidence

    async def ask():
        completion = Completion(complete, at_once=1, patience=0.02)
        for now in (1, 2):  # the second finds no thread free
            with pytest.raises(CasError, match=r"endorsements: not had within 0.02 seconds"):
                await completion(QUOTE, now)
        answer.set()
        patient = Completion(complete, at_once=1)
        assert await asyncio.gather(*(patient(QUOTE, now) for now in (3, 4, 5))) == [QUOTE] * 3

    run(ask())
    assert calls == [1, 3, 4, 5]


@pytest.mark.parametrize(("raised", "wanted"), [(ChannelError, CasError), (UsageError, CasError), (ValueError,) * 2])
def test_what_fails_in_a_thread_fails_the_request(run, raised, wanted):
    def complete(evidence, now):
        raise raised("no")

    async def ask():
        completion = Completion(complete, at_once=1)
        for _ in range(2):
            with pytest.raises(wanted, match="no"):
                await completion(QUOTE, 1)

    run(ask())


def test_a_bundle_that_is_replaced_is_read_again(file):
    complete = Completer(Sources(), file)
    assert complete(QUOTE, MOMENT).endorsements
    bundle.write(file, [])
    with pytest.raises(FormatError, match="neither in the bundle"):
        complete(QUOTE, MOMENT)
    bundle.write(file, endorsements_in(COLLATERAL, now=MOMENT))
    assert complete(QUOTE, MOMENT).endorsements
    # One that cannot be read is no reason to stop.
    file.write_bytes(b"{")
    assert complete(QUOTE, MOMENT).endorsements
    file.unlink()
    assert complete(QUOTE, MOMENT).endorsements
    with pytest.raises(UsageError, match="no such file"):
        Completer(Sources(), file)


# The command line


@pytest.fixture
def completer(tmp_path):
    """What `cas start` makes of these arguments."""

    def make(*words):
        parser = argparse.ArgumentParser()
        cas_endorsements.configure(parser)
        return cas_endorsements.completer(parser.parse_args([str(word) for word in words]), tmp_path)

    return make


def test_a_cas_asks_the_caching_service_that_it_is_told_of(completer, tmp_path):
    intel = VendorServices()
    intel.serve_intel(json.loads(COLLATERAL), "tdx", base="", root_crl="/sgx/certification/v4/rootcacrl")
    routes = {path: (each.status, each.headers, each.body) for path, each in intel.answers.items()}
    with served(tmp_path, routes) as (url, cafile):
        complete = completer("--fetch-endorsements", "--pccs", url, "--cafile", cafile)
        assert verify(complete(QUOTE, MOMENT), now=MOMENT).tcb_status == "UpToDate"
    # Nobody answers now. The cache is the CAS's own.
    assert len(list(Cache(tmp_path / "endorsements").entries())) == 4
    assert complete(QUOTE, MOMENT).endorsements


def test_arguments_of_the_command_line(completer, file):
    assert completer() is None
    assert completer("--endorsements", file)(QUOTE, MOMENT).endorsements
    with pytest.raises(UsageError, match="--pccs, --cafile: nothing is fetched"):
        completer("--pccs", "https://x", "--cafile", file, "--endorsements", file)
    with pytest.raises(UsageError, match="service amd: got 'http://x', wanted an https:// URL"):
        completer("--fetch-endorsements", "--kds", "http://x")
    with pytest.raises(FormatError, match="bundle"):
        file.write_bytes(b"no")
        completer("--endorsements", file)
