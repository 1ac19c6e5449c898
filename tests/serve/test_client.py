"""The client against real services: what it sends, when, and what it does when a service changes."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from strongroom.channel import Identity, Server, bind
from strongroom.errors import (
    BindingError,
    ChannelError,
    ExpiredError,
    FormatError,
    MeasurementError,
    PeerIdentityError,
    ServeError,
    UsageError,
    VerificationError,
)
from strongroom.serve import Client, ServiceApp
from tests.serve.world import MOMENT, NOW, POLICY, Cas, client, double, reference, service, serving, stages, two_by_two

CAS = Cas()
X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture(scope="module")
def running():
    with service(CAS) as server:
        yield server


def test_a_prediction(running):
    with client(running, CAS) as ours:
        assert np.array_equal(ours.predict({"x": X})["y"], X + X)
        assert ours.ready()
        assert ours.metadata()["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]


def test_what_is_converted_and_what_is_not(running):
    with client(running, CAS) as ours:
        for x in ([[1.0, 2.0, 3.0]], [[1, 2, 3]], np.array([[1, 2, 3]], ">f8")):
            assert ours.predict(x)["y"].tolist() == [[2, 4, 6]]
        for x, message in (
            ([[1j, 2, 3]], "wanted one of BOOL"),
            ([["1", "2", "3"]], "wanted one of BOOL"),
            ([[1.0, 2.0]], r"got shape \[1, 2\], wanted \[-1, 3\]"),
            ({"z": X}, "inputs: got z, wanted x"),
            ({}, "inputs: got none, wanted x"),
        ):
            with pytest.raises(ServeError, match=message):
                ours.predict(x)


def test_several_inputs_outputs_and_models():
    both = stages(double=double(), pair=two_by_two())
    with service(CAS, both) as server:
        with client(server, CAS, model="pair") as ours:
            ab = {"a": [2, 3], "b": [4, 5]}
            assert {name: y.tolist() for name, y in ours.predict(ab).items()} == {"total": [6, 8], "product": [8, 15]}
            assert list(ours.predict(ab, outputs=["product"])) == ["product"]
            with pytest.raises(ServeError, match="output 'sum': unknown"):
                ours.predict(ab, outputs=["sum"])
            with pytest.raises(ServeError, match="got one array, wanted a, b by name"):
                ours.predict([1])
        with (
            client(server, CAS) as ours,
            pytest.raises(UsageError, match="model: got none, wanted one of double, pair"),
        ):
            ours.predict(X)
        with client(server, CAS, model="other") as ours, pytest.raises(ServeError, match="model: got 'other'"):
            ours.predict(X)


def test_a_pinned_model_digest(running):
    digest = "sha256:" + stages()["double"].digest
    with client(running, CAS, model_digest=digest) as ours:
        assert ours.ready()
    other = client(running, CAS, model_digest="sha256:" + "0" * 64)
    with other as ours, pytest.raises(MeasurementError, match="model double: got sha256"):
        ours.predict(X)


def test_a_pinned_plan_digest(running):
    digests, ours, other = {"double": "sha256:" + stages()["double"].digest}, "sha256:" + "a" * 64, "sha256:" + "b" * 64
    with service(CAS, attestation=lambda key: CAS.attest(key, digests, claims={"plan": ours})) as in_parts:
        with client(in_parts, CAS, plan_digest=ours) as asks:
            assert asks.ready() and asks.appraise().plan == ours
        with (
            client(in_parts, CAS, plan_digest=other) as asks,
            pytest.raises(MeasurementError, match="plan: got sha256:a"),
        ):
            asks.predict(X)
    with client(running, CAS, plan_digest=ours) as asks, pytest.raises(MeasurementError, match="plan: got none"):
        asks.predict(X)


def test_threads_share_a_client(running):
    with client(running, CAS) as ours, ThreadPoolExecutor(8) as pool:

        def run(i):
            x = np.full((2, 3), i, np.float32)
            return np.array_equal(ours.predict(x)["y"], 2 * x)

        assert all(pool.map(run, range(40)))


def counted(app, counts):
    async def counting(scope, receive, send):
        counts[scope["path"]] = counts.get(scope["path"], 0) + 1
        await app(scope, receive, send)

    return counting


def test_one_appraisal_serves_many_requests_until_it_expires():
    clock, counts, identity = [NOW], {}, Identity.fresh("service", now=MOMENT)
    digests = {"double": "sha256:" + stages()["double"].digest}
    app = ServiceApp(stages(), lambda: CAS.attest(identity.key, digests, now=clock[0]).to_wire())
    with serving(counted(app, counts), identity) as server, client(server, CAS, clock=lambda: clock[0]) as ours:
        for _ in range(3):
            ours.predict(X)
        assert counts["/.well-known/strongroom/attestation"] == 1
        clock[0] += 479
        ours.predict(X)
        assert counts["/.well-known/strongroom/attestation"] == 1
        clock[0] += 1
        ours.predict(X)
        assert counts["/.well-known/strongroom/attestation"] == 2
        assert counts["/v2/models/double"] == 1
    app.close()


def test_an_expired_service_gets_nothing_more():
    clock, counts, identity = [NOW], {}, Identity.fresh("service", now=MOMENT)
    document = CAS.attest(identity.key, {"double": "sha256:" + stages()["double"].digest})
    app = ServiceApp(stages(), document.to_wire)
    with serving(counted(app, counts), identity) as server, client(server, CAS, clock=lambda: clock[0]) as ours:
        ours.predict(X)
        clock[0] += 600
        for _ in range(2):
            with pytest.raises(ExpiredError):
                ours.predict(X)
        assert counts["/v2/models/double/infer"] == 1
    app.close()


def test_a_service_that_comes_back_with_another_key_is_appraised_again():
    with service(CAS) as first:
        ours = client(first, CAS)
        ours.predict(X)
        before, port = ours.appraise().key, first.port
    with restarted(port) as _:
        assert np.array_equal(ours.predict(X)["y"], X + X)
        assert ours.appraise().key != before
    ours.close()


def test_an_appraisal_whose_connection_breaks_is_made_once_more():
    listener, identity = bind("127.0.0.1", 0), Identity.fresh("service", now=MOMENT)
    document = CAS.attest(identity.key, {"double": "sha256:" + stages()["double"].digest})
    server = Server(ServiceApp(stages(), document.to_wire), listener, identity)
    with client(server, CAS) as ours, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ours.predict, X)
        listener.accept()[0].close()  # who answered until now is gone
        with server:
            assert np.array_equal(asked.result()["y"], X + X)


def restarted(port):
    """A service in the place of another one, with a key of its own."""
    identity = Identity.fresh("service", now=MOMENT)
    document = CAS.attest(identity.key, {"double": "sha256:" + stages()["double"].digest})
    return Server(ServiceApp(stages(), document.to_wire), bind("127.0.0.1", port), identity)


def test_a_service_that_comes_back_with_another_key_and_the_old_document_gets_nothing():
    identity, counts = Identity.fresh("service", now=MOMENT), {}
    old = CAS.attest(identity.key, {"double": "sha256:" + stages()["double"].digest})
    with service(CAS, identity=identity) as first:
        ours = client(first, CAS)
        ours.predict(X)
        port = first.port
    app = counted(ServiceApp(stages(), old.to_wire), counts)
    thief = Server(app, bind("127.0.0.1", port), Identity.fresh("thief", now=MOMENT))
    with thief, pytest.raises(BindingError, match="which this connection showed"):
        ours.predict(X)
    assert set(counts) == {"/.well-known/strongroom/attestation"}
    ours.close()


def test_nobody_there():
    nowhere = Client("https://127.0.0.1:1", cas_root=CAS.root, policy=POLICY, reference=reference())
    with nowhere as ours, pytest.raises(ChannelError, match=r"127\.0\.0\.1:1"):
        ours.ready()


def test_a_server_that_has_no_document():
    async def other(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})

    with (
        serving(other) as server,
        client(server, CAS) as ours,
        pytest.raises(FormatError, match="attestation document: is not JSON"),
    ):
        ours.predict(X)


@pytest.mark.parametrize("url", ["http://a:1", "a:1", "https://", "https://a:b", "https://a/x", "https://a?x=1", ""])
def test_urls(url):
    with pytest.raises(UsageError, match="wanted https://host:port"):
        Client(url, cas_root=CAS.root, policy=POLICY, reference=reference())


def test_the_client_needs_no_onnx_runtime():
    code = "import sys; sys.modules.update(onnxruntime=None, onnx=None, torch=None); import strongroom.serve"
    subprocess.run([sys.executable, "-c", code], check=True)


# Appraising again before the end


@pytest.fixture
def renewing():
    """A service whose document, if it gives one, is of the time on its clock."""
    clock, counts, identity = [NOW], {}, Identity.fresh("service", now=MOMENT)
    state = {"error": None, "cas": CAS}

    def document():
        if state["error"] is not None:
            raise state["error"]
        return (
            state["cas"].attest(identity.key, {"double": "sha256:" + stages()["double"].digest}, now=clock[0]).to_wire()
        )

    app = ServiceApp(stages(), document)
    with serving(counted(app, counts), identity) as server, client(server, CAS, clock=lambda: clock[0]) as ours:
        yield ours, clock, counts, state
    app.close()


def test_while_a_service_cannot_show_itself_the_last_appraisal_holds_until_it_expires(renewing):
    ours, clock, counts, state = renewing
    ours.predict(X)
    state["error"] = ServeError("attestation: not now")
    for seconds in (480, 9, 1, 109):  # it is asked again after ten seconds
        clock[0] += seconds
        ours.predict(X)
    assert counts["/.well-known/strongroom/attestation"] == 4
    clock[0] += 1
    with pytest.raises(ServeError, match="not now"):
        ours.predict(X)
    state["error"] = None
    ours.predict(X)


def test_a_service_that_no_longer_convinces_gets_nothing_more_even_before_the_end(renewing):
    ours, clock, counts, state = renewing
    ours.predict(X)
    sent = counts["/v2/models/double/infer"]
    state["cas"] = Cas()
    clock[0] += 480
    for _ in range(2):
        with pytest.raises(VerificationError, match="CAS root"):
            ours.predict(X)
    assert counts["/v2/models/double/infer"] == sent
    state["cas"] = CAS
    ours.predict(X)


def test_one_thread_appraises_again_and_the_others_go_on(renewing):
    ours, clock, counts, _ = renewing
    ours.predict(X)
    clock[0] += 480
    asked, answer = threading.Event(), threading.Event()
    appraise = ours._appraise

    def slow():
        asked.set()
        answer.wait()
        return appraise()

    ours._appraise = slow
    with ThreadPoolExecutor(1) as pool:
        renewal = pool.submit(ours.predict, X)
        asked.wait()
        before = ours.appraise()
        assert np.array_equal(ours.predict(X)["y"], X + X)
        answer.set()
        renewal.result()
    assert ours.appraise().expires == before.expires + 480
    assert counts["/.well-known/strongroom/attestation"] == 2


def test_httpx_pinned_to_the_appraised_key():
    httpx = pytest.importorskip("httpx")
    from strongroom.serve.pinned import PinnedTransport

    with service(CAS) as server:
        ours, url, port = client(server, CAS), f"https://127.0.0.1:{server.port}", server.port
        with httpx.Client(transport=PinnedTransport(ours)) as theirs:
            assert theirs.get(f"{url}/v2/models/double").json()["platform"]
            with service(CAS) as other, pytest.raises(PeerIdentityError):
                theirs.get(f"https://127.0.0.1:{other.port}/v2")
        ours.close()
    with restarted(port), httpx.Client(transport=PinnedTransport(ours)) as theirs:
        ours._service = None
        assert theirs.get(f"{url}/v2/health/live").json() == {"live": True}
    ours.close()
