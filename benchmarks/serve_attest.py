"""Attestation of a service: once for all users, or for each. And what a naive service does for a request.

- A running `strongroom serve` with a small network, and its users, which share the cores. A new user has nothing: no
  connection, no appraisal, and nothing that an earlier verification left in this process. Its first verified answer is
  from its first packet to the array: TCP and TLS twice, the service's document, every signature in it, the appraisal,
  the model's metadata, the request.
- Reused: the service's one report, which the document holds. Standard, as services did before: the enclave also makes a
  report over the user's nonce and connection (`predict --fresh`).
- On the server's side counts the processor's time of all of the service's processes, on the user's side that of this
  one, of a user that only appraises.
- Temper's figures (Li et al.): 573.68 ms in all, of it 462.43 on the server, and reused 143.45, of it 30.48. Its
  reports are SGX's. Ours here are simulated: one takes a signature, where a TEE's takes milliseconds to a second.
- A naive service starts an enclave for a request: the command, the boot and the enclave's own attestation, loading,
  the user's attestation, computing, and, where the network outgrows its 94 MiB, paging: how much longer a process with
  such a limit takes (`serve_paging.py`), as root.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import peers
from benchmarks.enclave_runs import Runs, runs
from benchmarks.harness import Bench, Goal
from benchmarks.serve_groups import swapping
from benchmarks.serve_models import exported
from benchmarks.serve_paging import LIMIT, Planned, asking
from benchmarks.serve_runs import Arrays, inputs_of, pinned, processor_seconds, service
from benchmarks.serving import SMALL, image, network

FIRST = "a new user's first verified answer, p50"
LATER = "a later answer, by the same without an appraisal"
REPORTS = "reports made for 1,000 users"
NAIVE = "naive service / ours, ResNet50, a request"

GOALS: Sequence[Goal] = (
    Goal(FIRST, 15, "ms", "at most"),
    Goal(LATER, 1.1, "x", "at most"),
    Goal(REPORTS, 2, "reports", "at most"),  # one, and another if it is renewed meanwhile
    Goal(NAIVE, 10, "x", "at least", full_only=True),
)
TEMPER = {"standard": (462.43, 573.68), "reused": (30.48, 143.45)}
_USERS = 1000
_TINY = dataclasses.replace(SMALL, width=8)


def measure(bench: Bench) -> None:
    """Measure every goal that `bench` wants."""
    told: dict[str, Any] = {}
    with pinned():
        if bench.wants(FIRST, LATER, REPORTS):
            with runs("onnxruntime", "onnx") as place:
                told |= _attestation(bench, place)
        if bench.wants(NAIVE):
            with runs("onnxruntime", "onnx") as place:
                told |= _naive(bench, place)
    if bench.plots and told:
        (bench.plots / "serve-attest.json").write_text(json.dumps(told, indent=2) + "\n")
        draw(told, bench.plots / "serve-attest.png")


def _attestation(bench: Bench, place: Runs) -> dict[str, Any]:
    model = place.directory / "model.onnx"
    model.write_bytes(network(_TINY))
    inputs = {"image": image(_TINY)}
    with service(place, model) as running:
        first = _first(running, inputs)
        bench.measure(FIRST, bench.timed(first), rounds=60, warmup=5)
        if bench.wants(LATER):
            _later(bench, running, inputs)
        told = {}
        for way in TEMPER:
            told[way] = _sides(running, fresh=way == "standard", users=30 if bench.quick else 200)
            server, user, whole = told[way].values()
            theirs, in_all = TEMPER[way]
            bench.say(
                f"{way}: server {server:.2f} ms, user {user:.2f} ms, in all {whole:.2f} ms from connecting "
                f"(Temper: {theirs} and {in_all - theirs:.2f}, in all {in_all})"
            )
        if bench.wants(REPORTS):
            bench.record(REPORTS, _reports(running, inputs, _USERS))
    return told


def forget() -> None:
    """What this process has verified, as if it were another user's."""
    from strongroom.attest.verify import dcap, dcap_chain
    from strongroom.crypto import chains

    dcap._answers.clear()
    dcap_chain._check_qe_report.cache_clear()
    chains._issued.cache_clear()


def _first(running: Any, inputs: Arrays) -> Callable[[], None]:
    make = running.clients()

    def once() -> None:
        forget()
        with make() as client:
            client.predict(inputs)

    return once


def _later(bench: Bench, running: Any, inputs: Arrays) -> None:
    """An answer of a user that has appraised, beside the same request over a connection that is only encrypted."""
    from strongroom.channel import HttpClient
    from strongroom.serve.tensors import InferRequest, header_length, parse_response, write_request

    host, _, port = running.url.removeprefix("https://").rpartition(":")
    with (
        running.client() as client,
        HttpClient.to(host, int(port), expect=lambda chain: None, max_body=1 << 24) as http,
    ):

        def bare() -> None:
            message = write_request(InferRequest(inputs, {}, binary=True))
            answer = http.request("POST", "/v2/models/model/infer", body=message.pieces, headers=message.headers)
            parse_response(answer.expect_ok().body, header_length(answer.headers["inference-header-content-length"]))

        def many(action: Callable[[], object]) -> Callable[[], object]:
            return lambda: [action() for _ in range(50)]

        bench.compare(
            LATER,
            bench.timed(many(lambda: client.predict(inputs)), per=50),
            bench.timed(many(bare), per=50),
            peer_name="no appraisal",
            unit="ms",
        )


def _sides(running: Any, *, fresh: bool, users: int) -> dict[str, float]:
    """Milliseconds of one attestation: the server's and the user's processor time, and from connecting to the end."""
    make, walls = running.clients(fresh=fresh), []
    for turn in range(users + 3):
        if turn == 3:  # the first ones warm up
            server, user = processor_seconds(running.process), time.process_time()
        forget()
        began = time.perf_counter()
        with make() as client:
            client.appraise()
        walls.append(1000 * (time.perf_counter() - began))
    spent = processor_seconds(running.process) - server, time.process_time() - user
    return {
        "server": 1000 * spent[0] / users,
        "user": 1000 * spent[1] / users,
        "whole": statistics.median(walls[3:]),
    }


def _reports(running: Any, inputs: Arrays, users: int) -> int:
    """How many of the service's documents so many users were shown, each of whom has an answer."""
    make, seen = running.clients(), set()
    for _ in range(users):
        with make() as client:
            client.predict(inputs)
            seen.add(client.appraise().expires)
    return len(seen)


def _naive(bench: Bench, place: Runs) -> dict[str, Any]:
    """One request of a service that is started for it, and one of a service that runs."""
    model, inputs = exported("ResNet50"), inputs_of(exported("ResNet50"))
    with service(place, model):
        pass  # the first run measures files and compiles
    began = time.perf_counter()
    with service(place, model) as running, running.clients()() as client:
        forget()
        asked = time.perf_counter()
        client.appraise()
        appraised = time.perf_counter()
        client.predict(inputs)
        naive = 1000 * (time.perf_counter() - began)
        ours = statistics.median(_once(client, inputs) for _ in range(9))
    told = {
        "start and attest": 1000 * running.attested,
        "load": 1000 * (running.seconds - running.attested),
        "user's attestation": 1000 * (appraised - asked),
        "compute": ours,
        "paging": _paging(bench, place.directory, inputs),
    }
    bench.say("naive service, a request: " + ", ".join(f"{what} {ms:.0f} ms" for what, ms in told.items()))
    bench.record(NAIVE, (naive + told["paging"]) / ours)
    return {"naive": told, "ours": ours}


def _once(client: Any, inputs: Arrays) -> float:
    began = time.perf_counter()
    client.predict(inputs)
    return 1000 * (time.perf_counter() - began)


def _paging(bench: Bench, place: Path, inputs: Arrays) -> float:
    """Milliseconds by which a request takes longer in 94 MiB; 0, and a line, where there can be no such limit."""
    planned = Planned.of("ResNet50")
    try:
        with swapping(place):
            took = []
            for limit in (LIMIT, None):
                with asking(planned.raw, planned.one, place, inputs, limit=limit) as ask:
                    ask()
                    took.append(statistics.median(ask() for _ in range(5)))
    except peers.UnavailableError as error:
        bench.say(f"the naive service does not page: {error}")
        return 0.0
    return max(0.0, took[0] - took[1])


def draw(told: dict[str, Any], path: Path) -> None:
    """Bars: attestation, standard and reused, beside Temper's; and a naive request's parts."""
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for place, way in enumerate(TEMPER):
        if way in told:
            server, user, _ = told[way].values()
            left.bar(place - 0.2, server, 0.38, color="C0")
            left.bar(place - 0.2, user, 0.38, bottom=server, color="C1")
        theirs, whole = TEMPER[way]
        left.bar(place + 0.2, theirs, 0.38, color="C0", alpha=0.5)
        left.bar(place + 0.2, whole - theirs, 0.38, bottom=theirs, color="C1", alpha=0.5)
    left.set_xticks([0, 1], list(TEMPER))
    left.set_yscale("log")
    left.set_ylabel("ms: server (blue) and user; ours left, Temper's right")
    if "naive" in told:
        bottom = 0.0
        for what, ms in told["naive"].items():
            right.bar(0, max(ms, 0), 0.6, bottom=bottom, label=f"{what}, {ms:.0f} ms")
            bottom += max(ms, 0)
        right.bar(1, told["ours"], 0.6, color="black", label=f"ours, {told['ours']:.0f} ms")
        right.set_xticks([0, 1], ["naive", "running"])
        right.set_ylabel("ms a request, ResNet50")
        right.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
