"""The bill of materials: CycloneDX by its schema, the same for the same measurement, ours and the program's apart."""

import dataclasses
import json
from pathlib import Path

import pytest

from strongroom.enclave.digests import Digests
from strongroom.enclave.measure import measure
from strongroom.enclave.sbom import boot_closure, components, cyclonedx, lines_of_code, sizes
from tests.enclave import small

SCHEMAS = Path(__file__).parents[1] / "vectors" / "cyclonedx"
OURS = {
    "strongroom-9.dist-info/METADATA": b"Metadata-Version: 2.4\nName: strongroom\nVersion: 9\n"
    b"License-Expression: Apache-2.0\nRequires-Dist: Dep>=1\nRequires-Dist: zoo; extra == 'all'\n",
}
ZOO = {
    "zoo.py": b"Z = 1\n",
    "zoo-1+cpu.dist-info/METADATA": b"Metadata-Version: 2.1\nName: Zoo\nVersion: 1+cpu\nRequires-Dist: dep\n"
    b"Classifier: License :: OSI Approved :: BSD License\nLicense: a text\n of several lines\n",
}


@pytest.fixture
def here(tmp_path):
    here = small.environment(tmp_path / "env")
    small.install(here.site_packages[0], OURS, "strongroom-9.dist-info")
    small.install(here.site_packages[0], ZOO, "zoo-1+cpu.dist-info")
    small.write(here.site_packages[0] / "new.pth", "import zoo\n")
    return here


@pytest.fixture
def measured(here, tmp_path):
    return measure(small.CONFIG, {"job.py": small.write(tmp_path / "job.py")}, here, known=Digests())


def document(measured):
    return cyclonedx(components(measured, "3.11.9"), measured, small.CONFIG)


def test_it_is_cyclonedx(measured):
    schemas = pytest.importorskip("jsonschema_rs", reason="jsonschema_rs validates the schema")
    read = {path.name: json.loads(path.read_text()) for path in SCHEMAS.glob("*.json")}
    registry = schemas.Registry([(f"http://cyclonedx.org/schema/{name}", schema) for name, schema in read.items()])
    validator = schemas.Draft7Validator(read["bom-1.6.SNAPSHOT.schema.json"], registry=registry)
    written = document(measured)
    validator.validate(json.loads(json.dumps(written)))
    assert not validator.is_valid(written | {"specVersion": 7})
    references = [each["bom-ref"] for each in written["components"]]
    references += [inner["bom-ref"] for each in written["components"] for inner in each.get("components", ())]
    references.append(written["metadata"]["component"]["bom-ref"])
    assert len(references) == len(set(references))
    assert {each["ref"] for each in written["dependencies"]} <= set(references)
    assert {ref for each in written["dependencies"] for ref in each["dependsOn"]} <= set(references)


def test_what_a_component_says(measured):
    by_name = {each["name"]: each for each in document(measured)["components"]}
    zoo = by_name["Zoo"]
    assert zoo["purl"] == "pkg:pypi/zoo@1%2Bcpu"
    assert zoo["licenses"] == [{"license": {"name": "BSD License"}}]
    assert by_name["Dep"]["licenses"] == [{"license": {"name": "MIT"}}]
    (part,) = [part for part in measured.parts if part.name == "zoo 1+cpu"]
    assert zoo["hashes"] == [{"alg": "SHA-384", "content": part.digest.hex()}]
    assert {"name": "strongroom:trusted-by", "value": "program"} in zoo["properties"]
    assert {"name": "strongroom:trusted-by", "value": "strongroom"} in by_name["Dep"]["properties"]
    assert {"name": "strongroom:lines-of-code", "value": "3"} in by_name["Dep"]["properties"]
    assert by_name["cpython"]["purl"] == "pkg:generic/cpython@3.11.9"
    assert [inner["name"] for inner in by_name["program"]["components"]] == ["job.py"]
    assert "purl" not in by_name["strongroom-metadata"]


def test_the_same_measurement_is_the_same_document(measured, here, tmp_path):
    again = measure(small.CONFIG, {"job.py": tmp_path / "job.py"}, here, known=Digests())
    assert document(again) == document(measured)
    assert str(tmp_path) not in json.dumps(document(measured)).replace(str(here.executable), "")
    other = dataclasses.replace(small.CONFIG, policy="test/other")
    changed = measure(other, {"job.py": tmp_path / "job.py"}, here, known=Digests())
    assert document(changed)["serialNumber"] != document(measured)["serialNumber"]


def test_ours_and_the_programs_are_counted_apart(measured):
    rows = {each.what.strip(): each for each in sizes(components(measured, "3.11.9"), measured, small.CONFIG)}
    assert rows["what Strongroom needs"].lines == 3
    assert rows["what the program has beside it"].lines == 1
    assert rows["the program"].files == 1
    # The package's six files and the one with its metadata; what is booted imports all but one of them.
    assert (rows["Strongroom"].files, rows["of which booting one imports"].files) == (7, 5)
    total = sum(row.size for name, row in rows.items() if name != "of which booting one imports")
    assert total == sum(part.size for part in measured.parts[:-1])


def test_lines_of_code(tmp_path):
    path = small.write(tmp_path / "x.py", '# no\n\n  # no\n\t\nx = 1  # yes\n"""doc\n\nstring"""\n\f\ny = 2')
    assert lines_of_code(str(path)) == 4
    assert lines_of_code(str(small.write(tmp_path / "x.so", "x\n"))) == 0


def test_imports_are_followed_into_functions_and_not_for_type_checkers(here, tmp_path):
    small.write(
        here.package / "errors.py",
        "if TYPE_CHECKING:\n    import strongroom.mpc\nelse:\n    import strongroom.one\n",
    )
    small.write(here.package / "one.py", "import strongroom.errors, strongroom.nowhere\n")
    found = measure(small.CONFIG, {}, here, known=Digests())
    package = next(part for part in found.parts if part.name == "strongroom")
    names = [entry.name for entry in boot_closure(package.entries, small.CONFIG.entry)]
    assert names == [
        "__init__.py",
        "enclave/__init__.py",
        "enclave/boot.py",
        "enclave/entry.py",
        "errors.py",
        "one.py",
    ]
