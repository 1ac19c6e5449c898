"""What claims say of revocation, so that a policy can require that it was checked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from strongroom.attest.files import read_evidence
from strongroom.attest.verify import verify
from strongroom.attest.verify.revocation import issuers, named_issuers, revocation
from strongroom.crypto import SigningKey
from strongroom.crypto.chains import RevocationList, pem_certificates
from strongroom.crypto.vendor import Issuer, Validity

VECTORS = Path(__file__).parents[1] / "vectors"
ALWAYS = Validity(1_700_000_000, 2_000_000_000)


def lists(*names: str) -> list[RevocationList]:
    return [RevocationList(Issuer(name, SigningKey.generate()).revocation_list(ALWAYS)) for name in names]


@pytest.mark.parametrize(
    ("given", "wanted", "told"),
    [
        ((), ("CN=A",), "not checked"),
        ((), (), "not checked"),
        (("A",), (), "not checked"),
        (("B",), ("CN=A",), "not checked"),
        (("A",), ("CN=A", "CN=B"), "partly"),
        (("A", "A"), ("CN=A", "CN=B"), "partly"),
        (("A", "B"), ("CN=A", "CN=B"), "checked"),
        (("A", "B", "C"), ("CN=A", "CN=B"), "checked"),
        (("A",), ("CN=A", "CN=A"), "partly"),  # one list of two issuers with one name
    ],
)
def test_it_is_checked_by_a_list_of_every_issuer(given, wanted, told):
    found = lists(*given)
    names = {each.issuer.partition("CN=")[2].partition(",")[0]: each.issuer for each in found}
    assert revocation(found, [names.get(name.removeprefix("CN="), name) for name in wanted]) == told


def test_nvidias_lists_are_those_that_its_chain_names():
    chain = pem_certificates((VECTORS / "nvidia-gpu" / "hopper_chain.pem").read_bytes())
    *below, root = chain
    assert issuers(chain, root) == [each.issuer for each in below]
    named = named_issuers(chain, root)
    assert [name.rpartition("CN=")[2] for name in named] == ["NVIDIA GH100 Identity", "NVIDIA Device Identity CA"]
    assert named_issuers(chain[:2], root) == issuers(chain[:2], root)  # which name none


@pytest.mark.parametrize(
    ("name", "more", "now", "told"),
    [
        ("aws-nitro/nitro.b64", (), 1_725_721_200, "none: Amazon"),
        ("sev-snp/milan_v2.report.bin", ("sev-snp/milan_v2.leaf.der",), 1_750_000_000, "not checked"),
        ("nvidia-gpu/hopper_report.hex", ("nvidia-gpu/hopper_chain.pem",), 1_750_000_000, "not checked"),
        ("azure-vtpm/az-snp-vtpm_evidence-v1.json", (), 1_753_175_614, "not checked"),
        ("azure-vtpm/az-tdx-vtpm_evidence-v1.json", (), 1_753_175_614, "not checked"),
        ("dcap-sgx/sgx_v3_phala.quote.bin", ("dcap-sgx/sgx_v3_phala.collateral.json",), None, "checked"),
    ],
)
def test_real_evidence_says_what_came_along(name, more, now, told):
    found = read_evidence((VECTORS / name).read_bytes(), [(VECTORS / each).read_bytes() for each in more]).evidence
    if now is None:
        now = json.loads((VECTORS / "dcap-sgx" / "cases.json").read_text())["sgx_v3_phala"]["now"]
    claims = verify(found, now=now)
    assert claims.revocation.startswith(told)
    assert claims.revocation_checked == (told != "not checked")
    assert not replace(claims, revocation="none").revocation_checked
