"""Whatever bytes arrive, the parsers of Intel's and Azure's evidence give a value or an error of ours."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.azure import from_coco, parse_azure, parse_hcl_report
from strongroom.attest.parse.collateral import parse_collateral, parse_qe_identity, parse_tcb_info
from strongroom.attest.parse.dcap import parse_quote, unpadded
from strongroom.attest.parse.pck import parse_platform
from strongroom.attest.verify import verify
from strongroom.attest.verify.dcap_chain import follow
from strongroom.errors import StrongroomError
from tests.attest.azure import Vm
from tests.attest.intel import NOW, QUOTING, Intel, sgx_body, td_body

VECTORS = Path(__file__).parents[1] / "vectors"
INTEL = Intel(quoting=QUOTING["tdx"])
QUOTES = [
    INTEL.quote(sgx_body(), version=3),
    INTEL.quote(td_body()),
    INTEL.quote(td_body(service_td=bytes(48)), version=5),
]
COLLATERAL = INTEL.collateral(sgx=False)
PARTS = json.loads(COLLATERAL)
VM = Vm(intel=INTEL)
SHOWN = VM.shown()
EVIDENCE = VM.evidence(SHOWN)
COCO = json.loads((VECTORS / "azure-vtpm" / "az-tdx-vtpm_evidence-v1.json").read_text())

HONEST = verify(EVIDENCE, now=NOW, anchors=INTEL.anchors())

fuzz = settings(max_examples=100, deadline=None)
less = settings(max_examples=40, deadline=None)
edits = st.lists(
    st.tuples(st.sampled_from(["set", "insert", "cut"]), st.integers(0, 9999), st.binary(min_size=1, max_size=6)),
    min_size=1,
    max_size=3,
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def damaged(raw: bytes, changes: list[tuple[str, int, bytes]]) -> bytes:
    for how, place, piece in changes:
        at = len(raw) * place // 10000
        raw = raw[:at] + (b"" if how == "cut" else piece) + raw[at + (0 if how == "insert" else len(piece)) :]
    return raw


@fuzz
@given(st.sampled_from(QUOTES), edits)
def test_damaged_quotes_are_read_or_refused(quote, changes):
    raw = damaged(quote, changes)
    for read in (unpadded, lambda raw: follow(parse_quote(raw), INTEL.root, now=NOW, intel=False)):
        with suppress(StrongroomError):
            read(raw)


@fuzz
@given(st.binary(max_size=60) | edits.map(lambda changes: damaged(INTEL.extension, changes)))
def test_extensions_are_read_or_refused(extension):
    class Certificate:
        def extension(self, _oid: str) -> bytes:
            return extension

    with suppress(StrongroomError):
        parse_platform(Certificate())


@fuzz
@given(edits)
def test_damaged_endorsements_are_read_or_refused(changes):
    with suppress(StrongroomError):
        parse_collateral(damaged(COLLATERAL, changes))
    for name, parse in (("tcb_info", parse_tcb_info), ("qe_identity", parse_qe_identity)):
        with suppress(StrongroomError):
            parse(damaged(PARTS[name].encode(), changes).decode("utf-8", "replace"))


@fuzz
@given(st.sampled_from(["tcb_info", "qe_identity"]), st.data())
def test_members_of_any_type_are_read_or_refused(name, data):
    document = json.loads(PARTS[name])
    member = data.draw(st.sampled_from(sorted(document)))
    text = json.dumps(document | {member: data.draw(anything)})
    with suppress(StrongroomError):
        (parse_tcb_info if name == "tcb_info" else parse_qe_identity)(text)


@fuzz
@given(edits)
def test_damaged_hcl_reports_are_read_or_refused(changes):
    with suppress(StrongroomError):
        parse_hcl_report(damaged(SHOWN.hcl_report, changes))


@less
@given(st.sampled_from(["hcl_report", "message", "signature", "td_quote"]), edits)
def test_damaged_azure_evidence_says_the_same_or_is_refused(part, changes):
    with suppress(StrongroomError):
        shown = replace(SHOWN, **{part: damaged(getattr(SHOWN, part), changes)})
        assert verify(VM.evidence(shown), now=NOW, anchors=INTEL.anchors()) == HONEST


@fuzz
@given(st.binary(max_size=200) | edits.map(lambda changes: damaged(EVIDENCE.quote, changes)))
def test_azure_evidence_has_one_spelling(raw):
    with suppress(StrongroomError):
        assert parse_azure("azure-tdx", raw).to_bytes() == raw


@less
@given(st.dictionaries(st.sampled_from(sorted(COCO)), anything) | st.just({}), st.dictionaries(st.text(), anything))
def test_coco_evidence_of_any_form_is_read_or_refused(changes, more):
    for document in (COCO | changes, COCO | {"tpm_quote": COCO["tpm_quote"] | more}, more):
        with suppress(StrongroomError):
            assert isinstance(from_coco(document), Evidence)
