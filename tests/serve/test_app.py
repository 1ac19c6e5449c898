"""The front door: every endpoint, every refusal, and what happens when much happens at once."""

import asyncio
import contextlib
import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from strongroom import __version__
from strongroom.channel import HttpClient, expect_key
from strongroom.errors import CasUnreachableError
from strongroom.serve import ServiceApp, Stage
from strongroom.serve.tensors import HEADER, InferRequest, parse_response, write_request
from tests.serve.world import ENDLESS, double, serving, stages, turning, two_by_two

BOTH = stages(double=double(), pair=two_by_two())
X = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}


@contextlib.contextmanager
def front_door(loaded=None, attestation=dict, **options):
    app = ServiceApp(loaded or BOTH, attestation, **options)
    try:
        yield app
    finally:
        app.close()


@pytest.fixture
def app():
    with front_door() as app:
        yield app


async def talk(app, method, path, body=b"", headers=(), pieces=None, hang_up=None):
    """One request straight to the application: status, headers, body. `hang_up` is an event that ends it early."""
    events = [
        {"type": "http.request", "body": piece, "more_body": i + 1 < len(pieces or [body])}
        for i, piece in enumerate(pieces or [body])
    ]
    sent = []

    async def receive():
        if events:
            return events.pop(0)
        await (hang_up or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(event):
        sent.append(event)

    raw = [(name.lower().encode(), value.encode()) for name, value in dict(headers).items()]
    await app({"type": "http", "method": method, "path": path, "headers": raw}, receive, send)
    if not sent:
        return None
    answered = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    whole = b"".join(event["body"] for event in sent[1:])
    assert [event.get("more_body", False) for event in sent[1:]] == [True] * (len(sent) - 2) + [False]
    assert answered["content-length"] == str(len(whole))
    return sent[0]["status"], answered, whole


def ask(app, method, path, body=b"", headers=(), **more):
    if isinstance(body, dict):
        body = json.dumps(body).encode()
    status, answered, raw = asyncio.run(talk(app, method, path, body, headers, **more))
    return status, json.loads(raw) if answered["content-type"] == "application/json" else (answered, raw)


def test_the_server_and_its_health(app):
    about = {"name": "strongroom", "version": __version__, "extensions": ["binary_tensor_data"]}
    assert ask(app, "GET", "/v2") == (200, about)
    assert ask(app, "GET", "/v2/health/live") == (200, {"live": True})
    assert ask(app, "GET", "/v2/health/ready") == (200, {"ready": True})


@pytest.mark.parametrize("version", ["", "/versions/1"])
def test_a_model(app, version):
    path = "/v2/models/double" + version
    assert ask(app, "GET", path) == (200, BOTH["double"].metadata())
    assert ask(app, "GET", path + "/ready") == (200, {"name": "double", "ready": True})
    status, answer = ask(app, "POST", path + "/infer", X)
    assert status == 200
    assert answer == {
        "model_name": "double",
        "model_version": "1",
        "outputs": [{"name": "y", "shape": [1, 3], "datatype": "FP32", "data": [2.0, 4.0, 6.0]}],
    }


def test_the_attestation_document():
    with front_door(attestation=lambda: {"claims": "..."}) as app:
        assert ask(app, "GET", "/.well-known/strongroom/attestation") == (200, {"claims": "..."})


def test_without_an_attestation_the_service_lives_and_is_not_ready():
    def none():
        raise CasUnreachableError("cas: nothing answers", hint="is it up?")

    with front_door(attestation=none) as app:
        wire = {"error": "cas: nothing answers", "code": "cas-unreachable", "hint": "is it up?"}
        assert ask(app, "GET", "/v2/health/live")[0] == 200
        assert ask(app, "GET", "/v2/health/ready") == (503, wire)
        assert ask(app, "GET", "/.well-known/strongroom/attestation") == (503, wire)


def test_binary_in_binary_out(app):
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    message = write_request(InferRequest({"x": x}, binary=True, id="q"))
    status, (headers, raw) = ask(
        app, "POST", "/v2/models/double/infer", headers=message.headers, pieces=list(message.pieces)
    )
    assert (status, headers["content-type"]) == (200, "application/octet-stream")
    answer = parse_response(raw, int(headers[HEADER]))
    assert np.array_equal(answer.outputs["y"], 2 * x)
    assert (answer.id, answer.model_name, answer.model_version) == ("q", "double", "1")


def test_binary_in_json_out_and_the_other_way(app):
    ab = {"a": np.array([2, 3]), "b": np.array([4, 5])}
    message = write_request(InferRequest(ab))
    body, path = b"".join(message.pieces), "/v2/models/pair/infer"
    status, answer = ask(app, "POST", path, body, message.headers)
    assert status == 200
    assert {out["name"]: out["data"] for out in answer["outputs"]} == {"total": [6, 8], "product": [8, 15]}
    mixed = write_request(InferRequest(ab, {"product": True, "total": False}), binary=False)
    status, (headers, raw) = ask(app, "POST", path, b"".join(mixed.pieces))
    assert parse_response(raw, int(headers[HEADER])).outputs["product"].tolist() == [8, 15]
    assert json.loads(raw[: int(headers[HEADER])])["outputs"][1]["data"] == [6, 8]


def test_long_answers_go_out_in_pieces(app):
    x = np.ones((20_000, 3), np.float32)
    message = write_request(InferRequest({"x": x}, binary=True))
    _, (headers, raw) = ask(app, "POST", "/v2/models/double/infer", b"".join(message.pieces), message.headers)
    assert np.array_equal(parse_response(raw, int(headers[HEADER])).outputs["y"], 2 * x)


INFER = "/v2/models/double/infer"
ERRORS = [
    ("GET", "/", b"", {}, 404, "path: got '/'"),
    ("GET", "/v2/", b"", {}, 404, "path"),
    ("GET", "/v2/models", b"", {}, 404, "path"),
    ("GET", "/v2/models/double/versions", b"", {}, 404, "path"),
    ("GET", "/v2/models/double/infer/more", b"", {}, 404, "path"),
    ("GET", "/v2/models/triple", b"", {}, 404, "model: got 'triple', wanted one of double, pair"),
    ("POST", "/v2/models/triple/infer", b"{", {}, 404, "model: got 'triple'"),
    ("GET", "/v2/models/double/versions/2", b"", {}, 404, "version of model double: got '2', wanted '1'"),
    ("POST", "/v2", b"", {}, 405, "method: got POST, wanted GET"),
    ("DELETE", "/v2/models/double", b"", {}, 405, "wanted GET"),
    ("GET", INFER, b"", {}, 405, "method: got GET, wanted POST"),
    ("POST", "/.well-known/strongroom/attestation", b"", {}, 405, "wanted GET"),
    ("POST", INFER, b"{", {}, 400, "body: is not JSON"),
    ("POST", INFER, b"{}", {HEADER: "x"}, 400, "wanted a decimal number"),
    ("POST", INFER, {"inputs": [X["inputs"][0] | {"datatype": "FP64"}]}, {}, 400, "got datatype FP64, wanted FP32"),
    ("POST", INFER, {"inputs": [X["inputs"][0] | {"name": "z"}]}, {}, 400, "input 'z': unknown"),
    ("POST", INFER, X | {"outputs": [{"name": "z"}]}, {}, 400, "output 'z': unknown"),
    ("POST", INFER, X, {"content-encoding": "gzip"}, 415, "content-encoding: got 'gzip'"),
    ("POST", INFER, b"", {"content-length": "67108865"}, 413, "longer than the limit of 67108864"),
]


@pytest.mark.parametrize(("method", "path", "body", "headers", "status", "message"), ERRORS)
def test_errors(app, method, path, body, headers, status, message):
    got, wire = ask(app, method, path, body, headers)
    assert got == status
    assert message in wire["error"]
    assert set(wire) <= {"error", "code", "hint"}


def test_a_doubled_header_is_refused(app):
    async def story():
        events, sent = [{"type": "http.request", "body": b"{}"}], []

        async def receive():
            return events.pop()

        async def send(event):
            sent.append(event)

        headers = 2 * [(HEADER.encode(), b"2")]
        await app({"type": "http", "method": "POST", "path": INFER, "headers": headers}, receive, send)
        assert sent[0]["status"] == 400 and b"is there twice" in bytes(sent[1]["body"])

    asyncio.run(story())


def test_405_names_what_is_allowed(app):
    _, headers, _ = asyncio.run(talk(app, "PUT", INFER))
    assert headers["allow"] == "POST"


def test_a_body_that_grows_past_the_limit():
    with front_door(max_body=1000) as app:
        assert ask(app, "POST", INFER, pieces=[bytes(600), bytes(600)])[0] == 413
        assert ask(app, "POST", INFER, X)[0] == 200


class Blocked(Stage):
    """A stage whose inferences wait until they are let go."""

    def __init__(self):
        self.name, self.digest, self.inputs, self.outputs = "m", "00", [], []
        self.started = threading.Semaphore(0)
        self.go = threading.Event()
        self.ran = 0

    def infer(self, inputs, wanted=None, ending=None):
        self.ran += 1
        self.started.release()
        assert self.go.wait(30)
        return dict(inputs)


async def until(condition):
    while not condition():
        await asyncio.sleep(0)


def test_health_answers_while_a_model_runs():
    stage = Blocked()

    async def story():
        running = asyncio.ensure_future(talk(app, "POST", "/v2/models/m/infer", json.dumps(X).encode()))
        await asyncio.to_thread(stage.started.acquire)
        assert (await talk(app, "GET", "/v2/health/live"))[0] == 200
        assert not running.done()
        stage.go.set()
        assert (await running)[0] == 200

    with front_door({"m": stage}) as app:
        asyncio.run(story())


def test_the_queue_is_bounded_and_empties():
    stage = Blocked()

    async def story():
        path, body = "/v2/models/m/infer", json.dumps(X).encode()
        waiting = [asyncio.ensure_future(talk(app, "POST", path, body)) for _ in range(3)]
        await asyncio.to_thread(stage.started.acquire)
        await until(lambda: app._admitted == 3)
        status, headers, raw = await talk(app, "POST", path, body)
        assert (status, headers["retry-after"]) == (429, "1")
        assert "busy" in json.loads(raw)["error"]
        stage.go.set()
        assert [answer[0] for answer in await asyncio.gather(*waiting)] == [200] * 3
        assert (await talk(app, "POST", path, body))[0] == 200

    with front_door({"m": stage}, workers=1, queue=2) as app:
        asyncio.run(story())
        assert app._admitted == 0


def test_bodies_in_memory_are_bounded():
    async def story():
        stuck = [asyncio.ensure_future(half(app)) for _ in range(4)]
        await until(lambda: app._body_bytes == 4000)
        status, _, raw = await talk(app, "POST", INFER, pieces=[b" " * 900, b""])
        assert (status, json.loads(raw)["error"]) == (429, "service: busy, too many bytes of requests in memory")
        for task in stuck:
            task.cancel()
        await asyncio.gather(*stuck, return_exceptions=True)
        assert app._body_bytes == 0

    async def half(app):
        events = [{"type": "http.request", "body": bytes(1000), "more_body": True}]

        async def receive():
            return events.pop() if events else await asyncio.Event().wait()

        await app({"type": "http", "method": "POST", "path": INFER, "headers": []}, receive, None)

    with front_door(max_body=1000) as app:
        asyncio.run(story())


def test_answers_that_nobody_reads_are_bounded_and_let_go(monkeypatch):
    """In pieces, counted until they are sent, and for a time that their length gives."""

    async def story():
        x, sent = np.ones((40_000, 3), np.float32), []
        message = write_request(InferRequest({"x": x}, binary=True))
        headers = [(name.lower().encode(), value.encode()) for name, value in message.headers.items()]
        go = asyncio.Event()

        async def unread():
            events = [{"type": "http.request", "body": b"".join(message.pieces)}]

            async def receive():
                return events.pop() if events else await asyncio.Event().wait()

            async def send(event):
                sent.append(len(event.get("body", b"")))
                await go.wait()

            await app({"type": "http", "method": "POST", "path": INFER, "headers": headers}, receive, send)

        stuck = []
        for _ in range(2):
            stuck.append(asyncio.ensure_future(unread()))
            await until(lambda: len(sent) == len(stuck))
        assert app._answer_bytes > 2 * x.nbytes
        body = json.dumps(X).encode()
        status, _, raw = await talk(app, "POST", INFER, body)
        assert (status, json.loads(raw)["error"]) == (429, "service: busy, too many bytes of answers wait to be read")
        go.set()
        await asyncio.gather(*stuck)
        assert app._answer_bytes == 0 and sum(sent) > 2 * x.nbytes and max(sent) <= 1 << 18
        assert (await talk(app, "POST", INFER, body))[0] == 200

    monkeypatch.setattr("strongroom.serve.app._BODIES", 1)
    with front_door(max_body=600_000) as app:
        asyncio.run(story())


def test_an_answer_is_given_up_whose_client_takes_too_long(monkeypatch):
    monkeypatch.setattr("strongroom.serve.app._SEND_SECONDS", -1.0)

    async def story():
        async def send(event):
            await asyncio.Event().wait()

        await app({"type": "http", "method": "GET", "path": "/v2", "headers": []}, None, send)
        assert app._answer_bytes == 0

    with front_door() as app:
        asyncio.run(story())


def test_a_request_whose_client_hung_up_is_not_run():
    stage = Blocked()

    async def story():
        path, body, gone = "/v2/models/m/infer", json.dumps(X).encode(), asyncio.Event()
        first = asyncio.ensure_future(talk(app, "POST", path, body))
        await asyncio.to_thread(stage.started.acquire)
        second = asyncio.ensure_future(talk(app, "POST", path, body, hang_up=gone))
        await until(lambda: app._admitted == 2)
        gone.set()
        assert await second is None
        assert app._admitted == 1
        stage.go.set()
        assert (await first)[0] == 200

    with front_door({"m": stage}) as app:
        asyncio.run(story())
    assert stage.ran == 1


class Turning:
    """A stage that turns as often as it is asked to."""

    version = "1"

    def __init__(self):
        self.stage, self.started = Stage.load(turning(), name="m"), threading.Event()

    def infer(self, inputs, wanted=None, ending=None):
        self.started.set()
        return self.stage.infer(inputs, wanted, ending)


def turns(count):
    named = {"name": "turns", "shape": [], "datatype": "INT64", "data": [count]}
    return json.dumps({"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [0]}, named]}).encode()


def test_a_run_whose_client_hung_up_is_ended():
    """Else the one worker that there is has no time for anybody else."""
    stage = Turning()

    async def story():
        path, gone = "/v2/models/m/infer", asyncio.Event()
        first = asyncio.ensure_future(talk(app, "POST", path, turns(ENDLESS), hang_up=gone))
        await asyncio.to_thread(stage.started.wait)
        gone.set()
        assert await first is None
        status, _, answer = await talk(app, "POST", path, turns(5))
        assert status == 200 and json.loads(answer)["outputs"][0]["data"] == [5.0]

    with front_door({"m": stage}) as app:
        asyncio.run(story())


def test_a_run_that_outlasts_the_service_is_ended_and_its_client_told():
    stage = Turning()

    async def story():
        asked = asyncio.ensure_future(talk(app, "POST", "/v2/models/m/infer", turns(ENDLESS)))
        await asyncio.to_thread(stage.started.wait)
        asked.cancel()  # as the server does once it has drained for long enough
        status, _, answer = await asked
        assert status == 503 and json.loads(answer)["code"] == "unanswered"

    with front_door({"m": stage}) as app:
        asyncio.run(story())


def test_a_run_whose_time_is_over_is_ended(monkeypatch):
    """A client that stays holds no worker for ever."""
    monkeypatch.setattr("strongroom.serve.app._ANSWER_SECONDS", 0.2)
    with front_door({"m": Turning()}) as app:
        status, wire = ask(app, "POST", "/v2/models/m/infer", turns(ENDLESS))
        assert (status, wire["code"]) == (503, "unanswered") and "within the 0.2 s" in wire["error"]
    assert app._admitted == 0


def test_a_client_that_hangs_up_in_the_middle_of_its_body(app):
    async def story():
        async def receive():
            return {"type": "http.disconnect"}

        await app({"type": "http", "method": "POST", "path": INFER, "headers": []}, receive, None)

    asyncio.run(story())


def test_a_stopping_service_says_so():
    with front_door() as app:
        app.close()
        assert ask(app, "POST", INFER, X)[0] == 503
        assert app._admitted == 0


def test_an_unforeseen_failure_tells_neither_client_nor_log_anything(caplog):
    class Broken(Blocked):
        def infer(self, inputs, wanted=None, ending=None):
            raise RuntimeError(f"secret {inputs}")

    caplog.set_level(logging.DEBUG)
    with front_door({"m": Broken()}) as app:
        status, wire = ask(app, "POST", "/v2/models/m/infer", X)
    assert (status, wire) == (500, {"error": "internal error", "code": "internal"})
    assert "request failed: RuntimeError" in caplog.text
    assert "secret" not in caplog.text


def test_nothing_of_a_request_is_logged(app, caplog):
    caplog.set_level(logging.DEBUG)
    for body in (X, {"inputs": [{"name": "canary", "shape": [1], "datatype": "FP32", "data": [424242]}]}):
        ask(app, "POST", INFER, body)
    ask(app, "POST", INFER, b'{"canary')
    assert not [record for record in caplog.records if record.name.startswith("strongroom")]
    assert "canary" not in caplog.text
    assert "424242" not in caplog.text


def test_only_http():
    with front_door() as app, pytest.raises(ValueError, match="wanted http"):
        asyncio.run(app({"type": "websocket"}, None, None))


def test_over_tls_as_curl_would(app):
    with serving(app) as server, connection(server) as http:
        headers = {"content-type": "application/json", "user-agent": "curl/8"}
        answer = http.request("POST", INFER, body=json.dumps(X).encode(), headers=headers)
        assert answer.status == 200
        assert answer.json()["outputs"][0]["data"] == [2.0, 4.0, 6.0]
        refused = http.request("POST", INFER, body=b"?", headers=headers)
        assert (refused.status, refused.json()["code"]) == (400, "format")
        assert http.request("GET", "/v2/models/double%2Fx").status == 404


def test_a_body_over_the_limit_is_answered_over_tls_and_the_connection_goes_on():
    with front_door(max_body=100_000) as app, serving(app) as server, connection(server) as http:
        assert http.request("POST", INFER, body=bytes(3_000_000)).status == 413
        assert http.request("GET", "/v2/health/live").status == 200


def test_many_clients_at_once_get_each_their_own_answer():
    def run(i):
        x = np.full((1 + i % 7, 3), i, np.float32)
        message = write_request(InferRequest({"x": x}, binary=True))
        with connection(server) as http:
            for _ in range(3):
                answer = http.request("POST", INFER, body=message.pieces, headers=message.headers)
                y = parse_response(answer.body, int(answer.headers[HEADER])).outputs["y"]
                assert np.array_equal(y, 2 * x)
        return True

    with front_door(workers=2) as app, serving(app) as server, ThreadPoolExecutor(8) as pool:
        assert all(pool.map(run, range(24)))


def connection(server):
    return HttpClient.to("127.0.0.1", server.port, expect=expect_key(server_key(server)))


def server_key(server):
    seen = []
    with HttpClient.to("127.0.0.1", server.port, expect=lambda chain: seen.append(chain[0].key.fingerprint)) as http:
        http.connect()
    return seen[0]
