"""The OpenAPI document: the copy in the documentation is it, and what clients and a CAS say to each other fits it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema_rs
import pytest

from strongroom.cas.api.openapi import openapi_document
from strongroom.cas.service.app import described
from strongroom.channel import HttpClient
from strongroom.cli.main import main
from strongroom.errors import MeasurementError
from strongroom.sealed import Root
from tests.cas.test_lineage import a_run, outputs
from tests.cas.world import MEASURED

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "cas.openapi.json"
DOCUMENT = described()
OTHER = {name: bytes(48) for name in MEASURED}


def test_the_copy_in_the_documentation_is_the_document():
    """`strongroom cas openapi > docs/reference/cas.openapi.json` makes it anew."""
    assert json.loads(REFERENCE.read_text()) == DOCUMENT


def test_the_command_line_prints_it(capsys):
    assert main(["cas", "openapi"]) == 0
    assert json.loads(capsys.readouterr().out) == DOCUMENT


def test_a_running_cas_gives_it(world):
    assert world.client._http.get("/v1/openapi.json") == DOCUMENT


def operations() -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def test_every_operation_says_what_it_takes_and_gives():
    names = [operation["operationId"] for _, _, operation in operations()]
    assert len(set(names)) == len(names)
    for method, path, operation in operations():
        (answer,) = operation["responses"]["200"]["content"].values()
        assert path == "/v1/openapi.json" or "properties" in answer["schema"] or answer["schema"]["type"] != "object"
        assert ("requestBody" in operation) == (method in ("put", "post"))
        assert {"400", "500"} <= set(operation["responses"])
        named = {parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "path"}
        assert {part.strip("{}") for part in path.split("/") if part.startswith("{")} == named


def test_every_schema_of_it_is_one():
    for _, _, operation in operations():
        for content in operation["responses"]["200"]["content"].values():
            jsonschema_rs.meta.validate(content["schema"])
        for content in operation.get("requestBody", {}).get("content", {}).values():
            jsonschema_rs.meta.validate(content["schema"])
    assert openapi_document([], version="1")["paths"] == {}


def closed(schema: Any) -> Any:
    """The schema without what it leaves open: our own clients and CAS say nothing else."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: closed(each) for name, each in schema.items()}
    return made | ({"additionalProperties": False} if "properties" in made and "type" in made else {})


class Listener:
    """Compares every request of this process's clients, and its answer, with the document."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def check(self, method: str, target: str, body: bytes, answer: Any) -> None:
        asked = urlsplit(target).path.split("/")
        path = next(
            path
            for path in sorted(DOCUMENT["paths"], key=lambda path: path.count("{"))
            if len(asked) == len(path.split("/"))
            and all(a == b or b.startswith("{") for a, b in zip(asked, path.split("/"), strict=True))
        )
        operation = DOCUMENT["paths"][path][method.lower()]
        if answer.status == 200:
            self.seen.add(operation["operationId"])
        if body:
            request = operation["requestBody"]["content"]["application/json"]["schema"]
            jsonschema_rs.validate(request, json.loads(body))
        content = operation["responses"][str(answer.status)]
        if "$ref" in content:
            content = DOCUMENT["components"]["responses"][str(answer.status)]
            schema = DOCUMENT["components"]["schemas"]["Error"]
        else:
            (schema,) = (each["schema"] for each in content["content"].values())
        (media,) = content["content"]
        assert answer.headers["content-type"].partition(";")[0] == media.partition(";")[0]
        if media.endswith("json"):
            jsonschema_rs.validate(closed(schema), json.loads(answer.body))
        for name, header in content.get("headers", {}).items():
            if header.get("required") or name in answer.headers:
                jsonschema_rs.validate(header["schema"], answer.headers[name])


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Listener:
    made, request = Listener(), HttpClient.request

    def heard(self, method, path, *, body=b"", headers=None, fresh=False):
        answer = request(self, method, path, body=body, headers=headers, fresh=fresh)
        made.check(method, path, body if isinstance(body, bytes) else b"".join(body), answer)
        return answer

    monkeypatch.setattr(HttpClient, "request", heard)
    return made


def test_owners_and_enclaves_say_what_the_document_says(world, listener):
    one, two = Root(1, b"\1" * 32), Root(2, b"\2" * 32)
    world.renew()
    world.client.describe()
    world.client.put_secret(world.name, "token", b"other")
    world.client._http.get("/v1/keys")
    world.client.policy_history(world.name)
    with world.session() as session:
        session.attest()
        anchor = session.anchor("out")
        anchor.read(), anchor.advance(None, one), anchor.advance(one, two)
        session.sign_lineage(a_run(world), outputs(1))
    with world.session(policy=world.service(), role="service") as service:
        service.certify_service({"m": "sha256:" + "00" * 32})
    with world.enclave(registers=OTHER) as other, pytest.raises(MeasurementError):
        other.attest()
    world.client.audit()
    assert {
        "get-cas",
        "get-keys",
        "put-policies-namespace-name",
        "get-policies-namespace-name",
        "put-policies-namespace-name-secrets-secret",
        "get-policies-namespace-name-anchors-vault",
        "put-policies-namespace-name-anchors-vault",
        "post-nonce",
        "post-attest",
        "post-time-token",
        "post-service",
        "post-lineage",
        "get-log",
        "get-log-head",
        "get-log-consistency",
    } <= listener.seen
