"""Evidence completed with what its vendor signed: what is asked for, which source is used, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from strongroom.attest.endorsements import (
    Bundle,
    Cache,
    Endorsement,
    Services,
    Sources,
    endorsements_for,
    gather,
    wants,
)
from strongroom.attest.endorsements.foreign import endorsements_in
from strongroom.attest.endorsements.gaps import gaps
from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.azure import from_coco
from strongroom.attest.parse.endorsements import Endorsements, parse_endorsements
from strongroom.attest.verify import verify
from strongroom.attest.verify.anchors import AMD_INTERMEDIATES, VENDORS
from strongroom.crypto.chains import RevocationList, VendorCertificate, pem_certificates
from strongroom.crypto.keys import SigningKey
from strongroom.crypto.vendor import Issuer, Validity
from strongroom.errors import ChannelError, ExpiredError, FormatError, UsageError, VerificationError
from tests.attest.vendor_services import KDS, PCS, VendorServices

VECTORS = Path(__file__).parents[1] / "vectors"
DAY = 24 * 60 * 60


@pytest.fixture
def tdx(vector):
    """A real quote without endorsements, those of its time, and that time."""
    found = vector("v4_up_to_date")
    return replace(found.evidence, endorsements=b""), json.loads(found.evidence.endorsements), found.now


@pytest.fixture
def intel(tdx):
    services = VendorServices()
    services.serve_intel(tdx[1], "tdx")
    return services


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


class TestIntel:
    def test_what_is_fetched_verifies(self, tdx, intel):
        evidence, collateral, now = tdx
        complete = endorsements_for(evidence, now=now, transport=intel)
        assert verify(complete, now=now).tcb_status == "UpToDate"
        assert json.loads(complete.endorsements) == collateral
        assert intel.asked == [want.url for want in wants(evidence)]

    def test_the_platform_is_read_from_the_quote(self):
        quote = (VECTORS / "dcap-sgx" / "sgx_v3_icx_automata.quote.bin").read_bytes()
        assert [want.url.removeprefix(PCS) for want in wants(Evidence("sgx", quote, b""))][:3] == [
            "/sgx/certification/v4/tcb?fmspc=00606A000000&update=standard",
            "/sgx/certification/v4/qe/identity?update=standard",
            "/sgx/certification/v4/pckcrl?ca=platform&encoding=der",
        ]

    @pytest.mark.parametrize("path", ["", "/", "/sgx/certification/v4", "/sgx/certification/v4/"])
    def test_a_caching_service_stands_in(self, tdx, path):
        evidence, collateral, now = tdx
        pccs = VendorServices()
        base = "https://pccs.example:8081"
        pccs.serve_intel(collateral, "tdx", base=base, root_crl=f"{base}/sgx/certification/v4/rootcacrl")
        # It gives the root's list out in hexadecimal digits, and may name the chain's header as version 3 did.
        pccs.serve(f"{base}/sgx/certification/v4/rootcacrl", collateral["root_ca_crl"].encode())
        for url, answer in pccs.answers.items():
            headers = {name.replace("tcb-info", "sgx-tcb-info"): value for name, value in answer.headers.items()}
            pccs.answers[url] = replace(answer, headers=headers)
        complete = endorsements_for(evidence, now=now, transport=pccs, services=Services.caching(base + path))
        assert json.loads(complete.endorsements) == collateral

    def test_what_is_signed_is_kept_byte_for_byte(self, tdx, intel):
        evidence, collateral, now = tdx
        url = wants(evidence)[0].url
        spaced = f' {{ "signature" : "{collateral["tcb_info_signature"]}" ,\n "tcbInfo" : {collateral["tcb_info"]} }}\n'
        intel.answers[url] = replace(intel.answers[url], body=spaced.encode())
        assert json.loads(endorsements_for(evidence, now=now, transport=intel).endorsements) == collateral

    def test_what_evidence_carries_is_replaced(self, tdx, intel, vector):
        evidence, collateral, now = tdx
        old = replace(evidence, endorsements=vector("v4_debug").evidence.endorsements)
        assert json.loads(endorsements_for(old, now=now, transport=intel).endorsements) == collateral

    def test_an_answer_about_another_platform_is_refused_and_not_kept(self, tdx, intel, vector, cache):
        evidence, _, now = tdx
        other = json.loads(vector("v5_no_matching_tcb").evidence.endorsements)
        misled = VendorServices()
        misled.serve_intel(other, "tdx")
        tcb = wants(evidence)[0]
        intel.answers[tcb.url] = next(answer for url, answer in misled.answers.items() if "/tcb?" in url)
        with pytest.raises(ChannelError, match=r"api.trustedservices.intel.com answers with something else: .*90C06F"):
            endorsements_for(evidence, now=now, transport=intel, cache=cache)
        assert cache.get(tcb.name) is None

    def test_an_answer_without_its_signers_chain_is_refused(self, tdx, intel):
        evidence, _, now = tdx
        url = wants(evidence)[1].url
        intel.answers[url] = replace(intel.answers[url], headers={})
        with pytest.raises(ChannelError, match="intel/tdx/qe: wanted a chain of its signer's"):
            endorsements_for(evidence, now=now, transport=intel)

    def test_what_comes_early_is_asked_for_and_named_apart(self, tdx):
        early = wants(tdx[0], services=Services(intel_early=True))
        assert [want.name for want in early[:2]] == ["intel/tdx/tcb/B0C06F000000/early", "intel/tdx/qe/early"]
        assert all(want.url.endswith("update=early") for want in early[:2])

    def test_services_are_asked_by_https(self):
        with pytest.raises(UsageError, match="wanted an https:// URL"):
            Services(intel="http://pccs.example")

    def test_a_quote_that_does_not_parse_asks_nobody(self, tdx, intel):
        evidence, _, now = tdx
        with pytest.raises(FormatError):
            endorsements_for(replace(evidence, quote=evidence.quote[:700]), now=now, transport=intel)
        assert intel.asked == []


class TestAmd:
    NOW = 1_751_624_191  # when the revocation list is in force

    @pytest.fixture
    def report(self) -> bytes:
        return (VECTORS / "sev-snp" / "milan_v2.report.bin").read_bytes()

    @pytest.fixture
    def leaf(self) -> bytes:
        return (VECTORS / "sev-snp" / "milan_v2.leaf.der").read_bytes()

    @pytest.fixture
    def kds(self, report, leaf) -> VendorServices:
        services = VendorServices()
        vcek = wants(Evidence("snp", report, b""), product="Milan")[0]
        services.serve(vcek.url, leaf)
        chain = [*AMD_INTERMEDIATES["Milan"], VENDORS.amd["Milan"]]
        pem = "".join(each.pem() for each in chain if "VLEK" not in each.subject)
        services.serve(f"{KDS}/vcek/v1/Milan/cert_chain", pem.encode())
        services.serve(f"{KDS}/vcek/v1/Milan/crl", (VECTORS / "amd-kds" / "milan.crl.pem").read_bytes())
        return services

    def test_what_is_fetched_verifies(self, report, kds):
        complete = endorsements_for(Evidence("snp", report, b""), now=self.NOW, transport=kds)
        claims = verify(complete, now=self.NOW)
        assert (claims.product, claims.attributes["revocation"], claims.revocation) == ("Milan", "lists", "checked")

    def test_it_is_verified_again_whoever_served_it(self, report, kds):
        """A list that another key signed under AMD's name: fetched, and refused."""
        forged = Issuer("ARK-Milan", SigningKey.generate()).revocation_list(Validity(self.NOW - DAY, self.NOW + DAY))
        kds.serve(f"{KDS}/vcek/v1/Milan/crl", forged)
        complete = endorsements_for(Evidence("snp", report, b""), now=self.NOW, transport=kds)
        with pytest.raises(VerificationError, match="revocation list"):
            verify(complete, now=self.NOW)

    def test_a_report_that_tells_no_product_is_tried_as_each(self, report, kds):
        endorsements_for(Evidence("snp", report, b""), now=self.NOW, transport=kds)
        assert not any("Genoa" in url for url in kds.asked)
        kds.answers.clear()
        kds.asked.clear()
        with pytest.raises(VerificationError, match="no certificate of this chip at this TCB for Milan or Genoa"):
            endorsements_for(Evidence("snp", report, b""), now=self.NOW, transport=kds)
        assert [url.split("/")[5] for url in kds.asked] == ["Milan", "Genoa"]

    def test_a_certificate_that_came_along_is_not_asked_for(self, report, leaf, kds):
        carried = Endorsements((VendorCertificate(leaf),)).to_bytes()
        complete = endorsements_for(Evidence("snp", report, carried), now=self.NOW, transport=kds)
        assert kds.asked == [f"{KDS}/vcek/v1/Milan/cert_chain", f"{KDS}/vcek/v1/Milan/crl"]
        assert parse_endorsements(complete.endorsements).certificates[0].der == leaf

    def test_one_for_another_tcb_is(self, report, leaf, kds):
        newer = bytearray(report)
        newer[0x180] += 1  # the boot loader's number in REPORTED_TCB
        carried = Endorsements((VendorCertificate(leaf),)).to_bytes()
        with pytest.raises(VerificationError, match="no certificate of this chip at this TCB"):
            endorsements_for(Evidence("snp", bytes(newer), carried), now=self.NOW, transport=kds)
        assert "blSPL=4&teeSPL=0&snpSPL=8&ucodeSPL=115" in kds.asked[0]

    def test_turin_has_eight_bytes_of_chip_and_another_order(self, report):
        turin = bytearray(report)
        turin[0:4] = (5).to_bytes(4, "little")
        turin[0x180:0x188] = bytes([1, 2, 3, 4, 0, 0, 0, 200])
        turin[0x188:0x18B] = bytes([0x1A, 0x02, 0x01])
        turin[0x1A0:0x1E0] = bytes(range(1, 9)) + bytes(56)
        vcek, chain, crl = wants(Evidence("snp", bytes(turin), b""))
        assert vcek.url == (f"{KDS}/vcek/v1/Turin/0102030405060708?fmcSPL=1&blSPL=2&teeSPL=3&snpSPL=4&ucodeSPL=200")
        assert vcek.name == "amd/Turin/vcek/0102030405060708/1-2-3-4-200"
        assert (chain.url, crl.url) == (f"{KDS}/vcek/v1/Turin/cert_chain", f"{KDS}/vcek/v1/Turin/crl")

    def test_files_alone_make_a_bundle_and_a_list_by_its_issuer_is_for_both_keys(self, report, leaf):
        crl = (VECTORS / "amd-kds" / "milan.crl.pem").read_bytes()
        bundle = Bundle([*endorsements_in(leaf, now=self.NOW), *endorsements_in(crl, now=self.NOW)])
        lists = {each.name for each in bundle if each.name.endswith("/crl")}
        assert lists == {"amd/Milan/vcek/crl", "amd/Milan/vlek/crl"}
        complete = endorsements_for(Evidence("snp", report, b""), now=self.NOW, bundle=bundle)
        assert verify(complete, now=self.NOW).attributes["revocation"] == "lists"
        assert gaps(bundle) == ()

    def test_without_a_list_and_a_network_revocation_is_not_checked(self, report, leaf, kds):
        bundle = Bundle(endorsements_in(leaf, now=self.NOW))
        (gap,) = gaps(bundle)
        assert (gap.name, f"{KDS}/vcek/v1/Milan/crl" in gap.means) == ("amd/Milan/vcek/crl", True)
        complete = endorsements_for(Evidence("snp", report, b""), now=self.NOW, bundle=bundle)
        assert verify(complete, now=self.NOW).attributes["revocation"] == "not checked"
        # Where something may be fetched nothing is left out.
        del kds.answers[f"{KDS}/vcek/v1/Milan/crl"]
        with pytest.raises(VerificationError, match="amd/Milan/vcek/crl: its vendor's service has none"):
            endorsements_for(Evidence("snp", report, b""), now=self.NOW, bundle=bundle, transport=kds)

    def test_a_list_that_came_with_the_evidence_counts_where_the_bundle_has_none(self, report, leaf):
        forged = Issuer("ARK-Milan", SigningKey.generate()).revocation_list(Validity(self.NOW - DAY, self.NOW + DAY))
        carried = Endorsements((VendorCertificate(leaf),), (RevocationList(forged),)).to_bytes()
        complete = endorsements_for(Evidence("snp", report, carried), now=self.NOW, bundle=Bundle())
        with pytest.raises(VerificationError, match="revocation list"):
            verify(complete, now=self.NOW)

    def test_a_list_that_has_ended_is_no_missing_one(self, report, leaf):
        crl = (VECTORS / "amd-kds" / "milan.crl.pem").read_bytes()
        bundle = Bundle([*endorsements_in(leaf, now=self.NOW), *endorsements_in(crl, now=self.NOW)])
        with pytest.raises(ExpiredError, match="amd/Milan/vcek/crl"):
            endorsements_for(Evidence("snp", report, b""), now=1_800_000_000, bundle=bundle)

    def test_somebody_elses_list_is_no_endorsement_by_itself(self):
        theirs = Issuer("ARK-Rome", SigningKey.generate()).revocation_list(Validity(self.NOW - DAY, self.NOW + DAY))
        with pytest.raises(FormatError, match=r"a revocation list of .*CN=ARK-Rome' by itself, wanted one of AMD's"):
            endorsements_in(theirs, now=self.NOW)

    def test_a_hidden_chip_cannot_be_asked_for(self, report, kds):
        hidden = report[:0x1A0] + bytes(64) + report[0x1E0:]
        with pytest.raises(VerificationError, match="CHIP_ID is zero") as caught:
            endorsements_for(Evidence("snp", hidden, b""), now=self.NOW, transport=kds)
        assert "MASK_CHIP_ID" in (caught.value.hint or "")

    def test_a_providers_certificate_comes_with_the_evidence_or_not_at_all(self, report, kds):
        flags = int.from_bytes(report[0x48:0x4C], "little") & ~(7 << 2) | 1 << 2
        provider = report[:0x48] + flags.to_bytes(4, "little") + report[0x4C:]
        with pytest.raises(FormatError, match=r"VLEK.*did not come with it"):
            endorsements_for(Evidence("snp", provider, b""), now=self.NOW, transport=kds)


class TestNvidia:
    def test_the_lists_that_the_devices_chain_names(self, tdx, intel):
        evidence, _, now = tdx
        chain = pem_certificates((VECTORS / "nvidia-gpu" / "hopper_chain.pem").read_bytes())
        device = Evidence("nvidia", bytes(37), Endorsements(chain).to_bytes())
        crl = Issuer("NVIDIA", SigningKey.generate()).revocation_list(Validity(now - DAY, now + DAY))
        for name in ("l1-root", "l2-gh100"):
            intel.serve(f"http://crl.ndis.nvidia.com/crl/{name}.crl", crl)
        complete = endorsements_for(replace(evidence, devices=(device,)), now=now, transport=intel)
        found = parse_endorsements(complete.devices[0].endorsements)
        assert (found.certificates, [each.der for each in found.revocation_lists]) == (chain, [crl, crl])


class TestAzure:
    """A vTPM's evidence is completed for the hardware's report in it."""

    @staticmethod
    def evidence(hardware: str) -> Evidence:
        raw = (VECTORS / "azure-vtpm" / f"az-{hardware}-vtpm_evidence-v1.json").read_bytes()
        return from_coco(json.loads(raw))

    def test_of_tdx(self):
        assert [want.name for want in wants(self.evidence("tdx"))] == [
            "intel/tdx/tcb/00806F050000",
            "intel/tdx/qe",
            "intel/crl/platform",
            "intel/crl/root",
        ]

    def test_of_snp_with_and_without_the_certificate_that_it_brings(self):
        evidence = self.evidence("snp")
        issuers = ["amd/Milan/vcek/chain", "amd/Milan/vcek/crl"]
        assert [want.name for want in wants(evidence)] == issuers
        vcek, *others = [want.name for want in wants(replace(evidence, endorsements=b""))]
        assert vcek.startswith("amd/Milan/vcek/") and others == issuers


class TestOtherKinds:
    @pytest.mark.parametrize("tee", ["nitro", "tpm", "simulated"])
    def test_carry_all_there_is(self, tee):
        evidence = Evidence(tee, b"quote", b"endorsements")
        assert endorsements_for(evidence, now=0) == evidence
        assert wants(evidence) == ()


class TestSources:
    def test_the_cache_saves_requests_for_a_day(self, tdx, intel, cache):
        evidence, _, now = tdx
        first = endorsements_for(evidence, now=now, transport=intel, cache=cache)
        assert endorsements_for(evidence, now=now + DAY, transport=intel, cache=cache) == first
        assert len(intel.asked) == 4
        endorsements_for(evidence, now=now + DAY + 1, transport=intel, cache=cache)
        assert len(intel.asked) == 8

    def test_a_service_that_is_down_does_not_stop_what_still_holds(self, tdx, intel, cache):
        evidence, _, now = tdx
        first = endorsements_for(evidence, now=now, transport=intel, cache=cache)
        intel.down = True
        later = now + 10 * DAY
        assert endorsements_for(evidence, now=later, transport=intel, cache=cache) == first
        # And is not asked again at once, so that nobody waits for it at each verification.
        assert endorsements_for(evidence, now=later + 599, transport=intel, cache=cache) == first
        assert len(intel.asked) == 8
        intel.down = False
        answers, intel.answers = intel.answers, {}  # services have been seen to answer with 404 for a while
        assert endorsements_for(evidence, now=later + 600, transport=intel, cache=cache) == first
        intel.answers, intel.asked = answers, intel.asked[:8]
        endorsements_for(evidence, now=later + 600, transport=intel, cache=cache)
        assert len(intel.asked) == 12
        intel.down = True
        with pytest.raises(
            ExpiredError, match=r"endorsement intel/tdx/tcb/B0C06F000000: holds from .* until 2025-07-19"
        ) as caught:
            endorsements_for(evidence, now=now + 20 * DAY, transport=intel, cache=cache)
        assert "connection refused" in (caught.value.hint or "")

    def test_what_no_longer_holds_is_used_only_for_who_wants_to_hear_of_it(self, tdx, intel, cache):
        evidence, _, now = tdx
        first = endorsements_for(evidence, now=now, transport=intel, cache=cache)
        told: list[str] = []
        later = now + 20 * DAY
        assert endorsements_for(evidence, now=later, cache=cache, on_expired=told.append) == first
        assert [each.split(":")[0] for each in told] == [
            "endorsement intel/tdx/tcb/B0C06F000000",
            "endorsement intel/tdx/qe",
            "endorsement intel/crl/platform",
        ]
        with pytest.raises(ExpiredError):
            verify(first, now=later)

    def test_what_does_not_hold_at_that_time_is_not_kept(self, tdx, intel, cache):
        evidence, _, now = tdx
        with pytest.raises(ExpiredError, match="holds from 2025-06-19") as caught:
            endorsements_for(evidence, now=now - 365 * DAY, transport=intel, cache=cache)
        assert "endorsements of that time" in (caught.value.hint or "")
        assert list(cache.entries()) == []

    def test_what_a_service_does_not_have_is_asked_for_again(self, tdx, intel, cache):
        evidence, _, now = tdx
        url = wants(evidence)[3].url
        missing = intel.answers.pop(url)
        with pytest.raises(VerificationError, match="intel/crl/root: its vendor's service has none"):
            endorsements_for(evidence, now=now, transport=intel, cache=cache)
        intel.answers[url] = missing
        endorsements_for(evidence, now=now, transport=intel, cache=cache)
        assert intel.asked.count(url) == 2 and len(intel.asked) == 5

    def test_a_bundle_is_enough_without_a_network(self, tdx, intel):
        evidence, collateral, now = tdx
        bundle = Bundle(endorsements_in(json.dumps(collateral).encode(), now=now))
        complete = endorsements_for(evidence, now=now, bundle=bundle)
        assert verify(complete, now=now).tcb_status == "UpToDate"
        assert endorsements_for(evidence, now=now, bundle=bundle, transport=intel) == complete
        assert intel.asked == []

    def test_what_is_gathered_where_there_is_a_network_serves_where_there_is_none(self, tdx, intel):
        evidence, _, now = tdx
        gathered = gather(evidence, Sources(transport=intel), now=now)
        assert [each.name for each in gathered] == [want.name for want in wants(evidence)]
        offline = Bundle.from_bytes(Bundle(gathered).to_bytes())
        assert verify(endorsements_for(evidence, now=now, bundle=offline), now=now).tcb_status == "UpToDate"

    def test_without_any_source_it_says_what_is_missing_and_where_it_is(self, tdx):
        evidence, _, now = tdx
        with pytest.raises(FormatError, match="intel/tdx/tcb/B0C06F000000: neither in the bundle nor in the") as caught:
            endorsements_for(evidence, now=now)
        assert f"{PCS}/tdx/certification/v4/tcb?fmspc=B0C06F000000" in (caught.value.hint or "")

    def test_a_bundles_that_no_longer_holds_is_fetched_anew(self, tdx, intel):
        evidence, collateral, now = tdx
        old = Endorsement.read(
            "intel/crl/root",
            Issuer("Intel SGX Root CA", SigningKey.generate()).revocation_list(Validity(now - 9 * DAY, now - DAY)),
            fetched=now - 9 * DAY,
        )
        complete = endorsements_for(evidence, now=now, bundle=Bundle([old]), transport=intel)
        assert json.loads(complete.endorsements) == collateral
