"""What somebody who holds a model, its statement, or another key may try: no lineage comes of it."""

from __future__ import annotations

import base64
import json

import pytest

from strongroom.attest.binding import canonical
from strongroom.crypto import SigningKey
from strongroom.errors import (
    BindingError,
    ExpiredError,
    MeasurementError,
    SimulatedEnclaveError,
    StrongroomError,
    TamperedError,
    VerificationError,
)
from strongroom.lineage.requirement import LineageReader, Requirement
from strongroom.lineage.verify import Lineage, verify_lineage
from tests.lineage.world import DATA, MEASUREMENT, MODEL, NOW, POLICY, VENDOR, Cas, content, tree

CAS = Cas()
OTHER_CAS = Cas()


def verify(raw, data=MODEL, **options):
    return verify_lineage(raw, content(data), **{"cas_root": CAS.root} | options)


def test_an_honest_statement_is_believed_and_compared():
    lineage = verify(CAS.signed())
    assert (lineage.output.name, lineage.by.policy_version, lineage.run.mirrors[0].resumes.count) == (
        "model.onnx",
        3,
        1,
    )
    lineage.require_policy([POLICY], digest=lineage.by.policy_digest)
    lineage.require_measurement([MEASUREMENT])
    assert lineage.require_data(DATA, "data.vault").name == "data"


def test_every_bit_of_the_model_counts():
    raw = CAS.signed()
    for place in range(len(MODEL) * 8):
        changed = bytearray(MODEL)
        changed[place // 8] ^= 1 << place % 8
        with pytest.raises(TamperedError, match="its lineage says"):
            verify(raw, bytes(changed))


def test_a_statement_of_another_model_is_refused():
    other = content(b"another model")
    raw = CAS.signed(name="other.onnx", sha256=other.sha256.hex(), blake3=other.blake3.hex())
    with pytest.raises(TamperedError, match=r"other\.onnx: sha256"):
        verify(raw)


def test_both_digests_must_be_the_models():
    other = content(b"another model")
    for change in ({"sha256": other.sha256.hex()}, {"blake3": other.blake3.hex()}):
        with pytest.raises(TamperedError, match=next(iter(change))):
            verify(CAS.signed(**change))


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_every_byte_of_the_envelope_counts_or_says_nothing():
    """A change is refused, or leaves exactly what was said: envelopes are JSON, with spaces and a key's hint."""
    raw = CAS.signed()
    honest = verify(raw)
    for place in range(0, len(raw), 7):
        changed = bytearray(raw)
        changed[place] ^= 1
        try:
            lineage = verify(bytes(changed))
        except StrongroomError:
            continue
        assert lineage == honest


def edited(raw, edit):
    document = json.loads(raw)
    payload = json.loads(base64.b64decode(document["payload"]))
    edit(payload["predicate"])
    document["payload"] = base64.b64encode(canonical(payload)).decode()
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    "edit",
    [
        lambda p: p["buildDefinition"]["internalParameters"].update(measurement="00" * 48),
        lambda p: p["buildDefinition"]["internalParameters"].update(tee="tdx"),
        lambda p: p["buildDefinition"]["externalParameters"]["policy"].update(version=4),
        lambda p: p["buildDefinition"]["resolvedDependencies"][0]["digest"].update(strongroomTree="00" * 32),
        lambda p: p["buildDefinition"]["resolvedDependencies"].pop(),
        lambda p: p["runDetails"]["byproducts"][0]["annotations"]["resumes"].update(listed=[]),
        lambda p: p["runDetails"]["metadata"].update(finishedOn="2020-01-01T00:00:00Z"),
    ],
    ids=["measurement", "tee", "policy_version", "data", "data_left_out", "resumes", "time"],
)
def test_an_edited_statement_is_refused(edit):
    with pytest.raises(VerificationError, match="signature"):
        verify(edited(CAS.signed(tee="simulated"), edit), allow_simulated=VENDOR)


def test_another_cas_is_not_believed():
    with pytest.raises(VerificationError, match="CAS root"):
        verify(OTHER_CAS.signed())
    # Saying that it is the one does not help, nor does showing the root's certificate beside another leaf.
    with pytest.raises(VerificationError, match="CAS root"):
        verify(OTHER_CAS.sign(CAS.statement().to_bytes()))
    document = json.loads(OTHER_CAS.sign(CAS.statement().to_bytes()))
    document["signatures"][0]["x5c"][1] = base64.b64encode(CAS.authority.certificate.der).decode()
    with pytest.raises(VerificationError, match="not issued"):
        verify(json.dumps(document).encode())


def test_an_enclave_of_the_same_cas_cannot_sign_for_it():
    """Every enclave has a certificate of the same root for its TLS key; only the CAS's own leaf may state lineage."""
    key = SigningKey.generate()
    raw = CAS.sign(CAS.statement().to_bytes(), key=key, uri="spiffe://strongroom/acme/train")
    with pytest.raises(VerificationError, match="CAS certificate"):
        verify(raw)


def test_the_root_or_a_self_made_leaf_cannot_stand_in():
    document = json.loads(CAS.signed())
    document["signatures"][0]["x5c"] = document["signatures"][0]["x5c"][1:] * 2
    with pytest.raises(VerificationError, match="signature"):
        verify(json.dumps(document).encode())


def test_a_leaf_counts_only_for_its_own_time():
    raw = CAS.sign(CAS.statement(signed=NOW + 7200).to_bytes(), lifetime=3600)
    with pytest.raises(ExpiredError, match="not valid at"):
        verify(raw)
    with pytest.raises(ExpiredError, match="not valid at"):
        verify(CAS.signed(signed=NOW - 86_400))


def test_what_the_cas_signs_for_other_purposes_is_no_lineage():
    with pytest.raises(VerificationError, match="of type"):
        verify(CAS.sign(CAS.statement().to_bytes(), kind="application/json"))
    with pytest.raises(VerificationError, match="statement: got"):
        verify(CAS.sign(b"{}"))


def test_a_run_for_another_cas_or_policy_is_refused():
    for boot in ({"cas_root": OTHER_CAS.root, "policy": POLICY}, {"cas_root": CAS.root, "policy": "acme/x"}, {}):
        with pytest.raises(VerificationError, match=r"boot\.(cas_root|policy)"):
            verify(CAS.signed(boot=boot))
    with pytest.raises(VerificationError, match="CAS is"):
        verify(CAS.signed(cas_root=OTHER_CAS.root, boot={"cas_root": CAS.root, "policy": POLICY}))


def test_a_simulated_enclave_counts_only_if_its_vendor_is_named():
    raw = CAS.signed(tee="simulated")
    with pytest.raises(SimulatedEnclaveError, match="no simulated enclave"):
        verify(raw)
    with pytest.raises(SimulatedEnclaveError, match="vendor root"):
        verify(raw, allow_simulated="sha256:" + "00" * 32)
    assert verify(raw, allow_simulated=VENDOR).by.tee == "simulated"


def test_another_policy_version_program_or_data_set_is_refused():
    lineage = verify(CAS.signed())
    with pytest.raises(BindingError, match="wanted acme/other"):
        lineage.require_policy(["acme/other"])
    with pytest.raises(BindingError, match="none is named"):
        lineage.require_policy([])
    with pytest.raises(BindingError, match="version 3"):
        lineage.require_policy([POLICY], digest="sha256:" + "00" * 32)
    with pytest.raises(MeasurementError):
        lineage.require_measurement(["00" * 48])
    with pytest.raises(TamperedError, match=r"swapped\.vault holds"):
        lineage.require_data(tree(images=b"0124", labels=b"01"), "swapped.vault")


def test_lineage_cannot_be_had_without_verification():
    honest = verify(CAS.signed())
    with pytest.raises(TypeError, match="only verify_lineage"):
        Lineage(honest.output, honest.run, honest.by)


def files(**contents):
    def read(path):
        try:
            return contents[path]
        except KeyError:
            raise FileNotFoundError(path) from None

    return read


def statement_of(data, **changes):
    found = content(data)
    return CAS.signed(sha256=found.sha256.hex(), blake3=found.blake3.hex(), **changes)


def test_a_service_reads_nothing_whose_lineage_is_missing_or_of_another_run():
    held = {"m": b"graph", "m.lineage.json": statement_of(b"graph", name="m"), "w": b"weights"}
    read = LineageReader(Requirement(CAS.root), files(**held))
    assert read("m") == b"graph"
    with pytest.raises(VerificationError, match=r"w has no lineage, wanted w\.lineage\.json"):
        read("w")
    held["w.lineage.json"] = statement_of(b"weights", name="w", invocation="00" * 16)
    read = LineageReader(Requirement(CAS.root), files(**held))
    assert read("m") == b"graph"
    with pytest.raises(VerificationError, match="another run"):
        read("w")
    held["w.lineage.json"] = statement_of(b"weights", name="w")
    read = LineageReader(Requirement(CAS.root), files(**held))
    assert (read("m"), read("w")) == (b"graph", b"weights")


def test_a_requirement_of_policies_is_kept():
    held = {"m": b"graph", "m.lineage.json": statement_of(b"graph", name="m")}
    assert LineageReader(Requirement(CAS.root, (POLICY,)), files(**held))("m") == b"graph"
    with pytest.raises(BindingError):
        LineageReader(Requirement(CAS.root, ("acme/other",)), files(**held))("m")


def test_no_output_of_a_run_stands_in_for_another():
    """An early checkpoint, say, in the place of the best one: both have a lineage of the same run."""
    held = {"m/net": b"graph", "m/w": b"an early checkpoint"}
    held["m/net.lineage.json"] = statement_of(b"graph", name="m/net")
    held["m/w.lineage.json"] = statement_of(held["m/w"], name="early/w")
    read = LineageReader(Requirement(CAS.root), files(**held))
    read("m/net")
    with pytest.raises(VerificationError, match="m/w is what the run wrote as early/w, wanted m/w"):
        read("m/w")
    held["m/net.lineage.json"] = statement_of(b"graph", name="early/net")
    with pytest.raises(VerificationError, match="m/net is what the run wrote as early/net, wanted m/net"):
        LineageReader(Requirement(CAS.root), files(**held))("m/net")


def test_a_model_that_was_moved_wants_its_weights_where_the_run_wrote_them_beside_it():
    held = {"/tmp/net": b"graph", "/tmp/sub/w": b"weights"}
    held["/tmp/sub/w.lineage.json"] = statement_of(b"weights", name="deep/sub/w")

    def reader():
        read = LineageReader(Requirement(CAS.root), files(**held))
        read.found["/tmp/net"] = verify(statement_of(b"graph", name="deep/model"), b"graph")
        return read

    assert reader()("/tmp/sub/w") == b"weights"
    held["/tmp/sub/w.lineage.json"] = statement_of(b"weights", name="sub/w")
    with pytest.raises(VerificationError, match="wanted deep/sub/w"):
        reader()("/tmp/sub/w")


def test_what_lay_in_an_output_vault_stands_for_no_data_unless_it_is_named():
    lineage = verify(CAS.signed())
    with pytest.raises(TamperedError, match=r"empty\.vault holds .* the lineage names data "):
        lineage.require_data(tree(), "empty.vault")
    assert lineage.require_data(tree(), "empty.vault", name="out").name == "out"
    with pytest.raises(TamperedError, match="names out "):
        lineage.require_data(DATA, "data.vault", name="out")
    with pytest.raises(TamperedError, match="names no other"):
        lineage.require_data(DATA, "data.vault", name="other")
