"""The statement and what it is made of: one form, and every other one is refused."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from strongroom.attest.binding import canonical
from strongroom.errors import FormatError
from strongroom.lineage import statement as module
from strongroom.lineage.requirement import Requirement
from strongroom.lineage.resumes import MAX_LISTED, Resume, Resumes
from strongroom.lineage.statement import Output, Run, Statement
from tests.lineage.world import NOW, ROOT, Cas

CAS = Cas()
SPEC = (Path(__file__).parents[2] / "docs" / "spec" / "lineage.md").read_text()


def test_a_statement_comes_back_as_it_was():
    statement = CAS.statement()
    assert Statement.parse(statement.to_bytes()) == statement
    bare = CAS.statement(data=(), mirrors=())
    assert Statement.parse(bare.to_bytes()) == bare


def test_it_is_an_in_toto_statement_with_provenance():
    document = json.loads(CAS.statement().to_bytes())
    assert (document["_type"], document["predicateType"]) == (
        "https://in-toto.io/Statement/v1",
        "https://slsa.dev/provenance/v1",
    )
    (subject,) = document["subject"]
    assert subject["name"] == "model.onnx"
    assert set(subject["digest"]) == {"sha256", "blake3"}
    details = document["predicate"]["runDetails"]
    assert re.fullmatch(r"urn:strongroom:cas:sha256:[0-9a-f]{64}", details["builder"]["id"])
    assert details["metadata"]["finishedOn"] == "2026-09-21T14:13:20Z"


def test_the_specification_names_every_member():
    def names(value):
        if isinstance(value, dict):
            for name, inner in value.items():
                yield name
                yield from names(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from names(inner)

    document = json.loads(CAS.statement(boot={}).to_bytes())
    assert sorted({name for name in names(document) if f"`{name}`" not in SPEC}) == []
    for constant in (module.PAYLOAD_TYPE, module.STATEMENT_TYPE, module.PREDICATE_TYPE, module.BUILD_TYPE):
        assert f"`{constant}`" in SPEC


def at(document, *path):
    for step in path:
        document = document[step]
    return document


@pytest.mark.parametrize(
    ("path", "name", "value"),
    [
        ((), "_type", "https://in-toto.io/Statement/v0.1"),
        ((), "predicateType", "https://slsa.dev/provenance/v0.2"),
        ((), "more", 1),
        ((), "subject", []),
        (("subject", 0), "name", ""),
        (("subject", 0, "digest"), "sha256", "AB" * 32),
        (("subject", 0, "digest"), "md5", "00"),
        (("predicate", "buildDefinition"), "buildType", "https://example.com/other"),
        (("predicate", "buildDefinition", "externalParameters", "policy"), "version", True),
        (("predicate", "buildDefinition", "externalParameters", "policy"), "version", -1),
        (("predicate", "buildDefinition", "internalParameters"), "measurement", "ab"),
        (("predicate", "buildDefinition", "resolvedDependencies", 0, "annotations"), "access", "write-only"),
        (("predicate", "buildDefinition", "resolvedDependencies", 0, "annotations"), "root", "1:ab"),
        (("predicate", "buildDefinition", "resolvedDependencies", 0, "annotations"), "delivery", "by post"),
        (("predicate", "buildDefinition", "resolvedDependencies", 1), "name", "data"),
        (("predicate", "runDetails", "builder"), "id", "https://example.com/builder"),
        (("predicate", "runDetails", "metadata"), "finishedOn", "2026-02-30T00:00:00Z"),
        (("predicate", "runDetails", "metadata"), "invocationId", "1"),
        (("predicate", "runDetails", "byproducts", 0, "digest"), "strongroomRoot", "00" * 32),
        (("predicate", "runDetails", "byproducts", 0, "annotations"), "step", 1 << 60),
    ],
)
def test_another_form_is_refused(path, name, value):
    document = json.loads(CAS.statement().to_bytes())
    at(document, *path)[name] = value
    try:
        raw = canonical(document)
    except FormatError:
        raw = json.dumps(document).encode()
    with pytest.raises(FormatError):
        Statement.parse(raw)


def test_spaces_and_another_order_of_members_are_refused():
    raw = CAS.statement().to_bytes()
    with pytest.raises(FormatError, match="canonical"):
        Statement.parse(raw.replace(b'{"_type"', b'{ "_type"'))
    with pytest.raises(FormatError, match="canonical"):
        Statement.parse(json.dumps(dict(reversed(json.loads(raw).items())), separators=(",", ":")).encode())


def test_what_is_too_long_is_refused():
    with pytest.raises(FormatError, match="at most"):
        CAS.statement(boot={"environment": {"A": "x" * 70_000}}).to_bytes()
    with pytest.raises(FormatError, match="string of at most 1024"):
        Output.from_wire(Output("x" * 1025, "00" * 32, "00" * 32).to_wire())
    many = CAS.statement().run.data[:1] * 257
    with pytest.raises(FormatError, match="at most 256"):
        Run.from_wire(replace(CAS.statement().run, data=many).to_wire())


def test_a_record_of_resumes_keeps_the_newest_and_counts_all():
    record = Resumes()
    for step in range(MAX_LISTED + 5):
        record = record.then(Resume(NOW + step, step, ROOT))
    assert (record.count, record.earlier, record.listed[0].step, record.listed[-1].step) == (261, 5, 5, 260)
    assert Resumes.from_wire(json.loads(json.dumps(record.to_wire()))) == record


@pytest.mark.parametrize(
    "wire",
    [
        None,
        {},
        {"earlier": -1, "listed": []},
        {"earlier": 3, "listed": []},
        {"earlier": 0, "listed": [[1, 2]]},
        {"earlier": 0, "listed": [[1, 2, "root"]]},
        {"earlier": 0, "listed": [[1, True, ROOT]]},
        {"earlier": 0, "listed": [[1.5, 2, ROOT]]},
        {"earlier": 0, "listed": [[1, 2, 3]]},
        {"earlier": 0, "listed": [[1, 2, ROOT]] * 257},
    ],
)
def test_what_is_no_record_of_resumes_is_refused(wire):
    with pytest.raises(FormatError):
        Resumes.from_wire(wire)


def test_a_requirement_is_one_word_of_a_command():
    requirement = Requirement(CAS.root, ("acme/train", "acme/other"), "sha256:" + "00" * 32)
    assert Requirement.split([requirement.to_word(), "a.onnx"]) == (requirement, ["a.onnx"])
    assert Requirement.split(["a.onnx"]) == (None, ["a.onnx"])
    assert Requirement.split([]) == (None, [])


@pytest.mark.parametrize("text", ["", "{}", '{"cas_root":1}', '{"allow_simulated":"","cas_root":"a","policies":"ab"}'])
def test_a_word_that_is_no_requirement_is_refused(text):
    with pytest.raises(FormatError):
        Requirement.split([f"--require-lineage={text}", "a.onnx"])
