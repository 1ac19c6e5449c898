"""The API under what schemathesis makes of its own OpenAPI document: hostile requests, and answers that are as it says.

Each request goes to a CAS that runs, through its TLS, as an owner whose policy is there, as somebody without a key, and
as an enclave that has attested. Each operation gets the same few requests every time, and in `make test-all` many more
that nobody has tried before: hypothesis prints how to try again what fails.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterator

import hypothesis
import pytest
import requests
import schemathesis
import urllib3
from schemathesis import GenerationMode
from schemathesis.checks import (
    content_type_conformance,
    negative_data_rejection,
    not_a_server_error,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from strongroom.cas import EnclaveSession
from strongroom.cas.api import leases
from strongroom.cas.service.app import described
from strongroom.cas.unseal.locked import LockedCas
from strongroom.cas.unseal.share_files import ShareSet
from strongroom.channel import HttpClient, Identity, Server, bind
from tests.cas.world import Cas, cas_in, world_in

_CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
_ANY = hypothesis.settings(
    deadline=None, database=None, print_blob=True, suppress_health_check=list(hypothesis.HealthCheck)
)
_FEW = hypothesis.settings(_ANY, max_examples=6, derandomize=True)
_MANY = hypothesis.settings(_ANY, max_examples=int(os.environ.get("STRONGROOM_FUZZ", "50")), derandomize=False)
AMOUNTS = [pytest.param(_FEW, id="few"), pytest.param(_MANY, id="many", marks=pytest.mark.slow)]


class Through(requests.adapters.BaseAdapter):
    """requests' way to a CAS over a client of ours, of which an enclave's session attests whenever it is to."""

    def __init__(self, client: EnclaveSession | HttpClient) -> None:
        super().__init__()
        self._client = client

    def send(self, request, **_):  # type: ignore[no-untyped-def, override]
        body = request.body or b""
        headers = {name: value for name, value in request.headers.items() if name.lower() in ("content-type", "accept")}
        given = self._client.request(
            request.method,
            request.path_url,
            body=body.encode() if isinstance(body, str) else body,
            headers={name: value.decode() if isinstance(value, bytes) else value for name, value in headers.items()},
        )
        answer = requests.Response()
        answer.status_code, answer.url, answer.request, answer._content = given.status, request.url, request, given.body
        answer.headers.update(given.headers)
        answer.raw = urllib3.HTTPResponse(body=given.body, headers=dict(given.headers), status=given.status)
        return answer

    def close(self) -> None:
        self._client.close()


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cas]:
    """A CAS of these tests' own: they leave much in it. Nobody waits for news."""
    with pytest.MonkeyPatch.context() as patch, cas_in(tmp_path_factory.mktemp("fuzzed")) as cas:
        patch.setattr(leases, "MAX_WAIT", 0)
        yield cas


@pytest.fixture(scope="module")
def callers(fuzzed: Cas, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[requests.Session]]:
    """An owner's, nobody's, and an enclave's, to the CAS whose root they check."""
    directory = tmp_path_factory.mktemp("callers")
    with world_in(fuzzed) as world, world.enclave() as enclave, world.session() as attested:
        root = directory / "root.pem"
        root.write_bytes(enclave.stream.peer[-1].pem())
        identity = Identity.of_key(world.owner, "owner", now=dt.datetime.now(dt.UTC))
        own = directory / "owner.pem"
        world.owner.save(own)
        (directory / "owner.crt").write_bytes(identity.chain[0].pem())
        sessions = [requests.Session(), requests.Session(), requests.Session()]
        sessions[0].cert = (str(directory / "owner.crt"), str(own))
        for session in sessions:
            session.verify, session.trust_env = str(root), False
        sessions[2].mount("https://", Through(attested))
        yield sessions
        for session in sessions:
            session.close()


FOUND = [found.ok() for found in schemathesis.openapi.from_dict(described()).get_all_operations()]
SEALED = [operation for operation in FOUND if operation.path.startswith("/v1/unseal")]
OPERATIONS = [operation for operation in FOUND if operation not in SEALED]


@pytest.mark.parametrize("amount", AMOUNTS)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
@pytest.mark.parametrize("mode", GenerationMode, ids=lambda mode: mode.value)
def test_no_request_brings_an_answer_that_is_not_documented(operation, mode, amount, fuzzed, callers):
    if mode is GenerationMode.NEGATIVE and not (operation.body or any(operation.iter_parameters())):
        return  # nothing can be wrong with it

    # A session wants to know the log's head with every answer.
    asking = callers if "headers" in operation.definition.raw["responses"]["200"] else callers[:2]

    @amount
    @hypothesis.given(operation.as_strategy(generation_mode=mode))
    def ask(case):
        for session in asking:
            answer = case.call(base_url=fuzzed.address.url, session=session, verify=session.verify)
            assert "Traceback" not in answer.text
            # An enclave's session says itself what head it has seen.
            checks = _CHECKS if session is not callers[2] else [c for c in _CHECKS if c is not negative_data_rejection]
            case.validate_response(answer, checks=checks)

    ask()


@pytest.fixture(scope="module")
def sealed() -> Iterator[requests.Session]:
    """A way to a CAS that waits for shares."""
    identity, shares = Identity.fresh("sealed", now=dt.datetime.now(dt.UTC)), ShareSet(2, bytes(32), (bytes(32),) * 3)
    application = LockedCas(shares, identity).application()
    with Server(application, bind("127.0.0.1", 0), identity) as server, requests.Session() as session:
        session.mount("https://", Through(HttpClient.to("127.0.0.1", server.port, expect=lambda chain: None)))
        yield session


@pytest.mark.parametrize("amount", AMOUNTS)
@pytest.mark.parametrize("operation", SEALED, ids=lambda operation: operation.label)
def test_no_request_brings_a_sealed_cas_to_answer_otherwise(operation, amount, sealed):
    @amount
    @hypothesis.given(operation.as_strategy())
    def ask(case):
        answer = case.call(base_url="https://cas", session=sealed)
        assert "Traceback" not in answer.text
        case.validate_response(answer, checks=_CHECKS)

    ask()
