"""The act of the demo in which a model is larger than its enclaves: cut in parts, and one of them is killed.

`examples/wide_digits.py` makes the model; it is planned and served as `strongroom plan` and `strongroom serve --plan`
do it. Every answer has to be the whole model's, or the demo fails.
"""

from __future__ import annotations

import os
import runpy
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from strongroom.cas.client.address import CasAddress
from strongroom.channel import bind
from strongroom.cli.digits import Digits
from strongroom.cli.examples import example
from strongroom.cli.serve_pipeline import ModelSupervisor, start_pipeline
from strongroom.cli.show import Show
from strongroom.cli.workspace import Home, SealedVault
from strongroom.errors import EnclaveError, StrongroomError
from strongroom.serve.client import Client
from strongroom.serve.plan import Plan
from strongroom.serve.stage import Stage

SCRIPT: Final = "wide_digits.py"
_MEMORY: Final = 9 << 20  # of an enclave, for a model of 13 MB or more
_USERS: Final = 4
_AT_ONCE: Final = 4  # images of a request
_MOST: Final = 400  # images
_KILLED: Final = "part-1"
_BAR: Final = 18  # characters
_APART: Final = 1e-5  # of the largest logit

Array = npt.NDArray[Any]


def served_in_parts(
    show: Show, letter: str, work: Path, digits: Digits, home: Home, address: CasAddress
) -> dict[str, Any]:
    """Play the act in a directory, and return what was seen.

    Raises:
        StrongroomError: a part could not be started, or an answer is missing or wrong.
    """
    with show.act(letter, "a model larger than its enclaves is served in parts, and one of them is killed") as act:
        show.doing("making a wide network")
        model: bytes = runpy.run_path(str(example(SCRIPT)))["network"](digits.train_images, digits.train_labels)
        images = digits.test_input()[:_MOST]
        with ExitStack() as resources:
            whole = Stage.load(model, name="whole")
            wanted = whole.infer({"image": images})["logits"]
            sealed = SealedVault.at(work / "wide.vault")
            with sealed.create() as opened:
                opened.write_bytes("wide.onnx", model)
                opened.commit()
            plan = _plan(show, work, model)
            show.doing("launching a front door and the parts")
            listener = resources.enter_context(bind("127.0.0.1", 0))
            supervisor = start_pipeline(
                home, address, sealed, "wide.onnx", plan, listener=listener, resources=resources, quiet=True
            )
            try:
                _wait_for(supervisor)
                url = f"https://127.0.0.1:{listener.getsockname()[1]}"
                logits, longest = _load(show, supervisor, url, address, plan, images)
            finally:
                supervisor.stop()
                supervisor.wait()
        right = _compare(show, digits, logits, wanted)
        count = -(-len(images) // _AT_ONCE)
        act.outcome = (
            f"{len(model) / 1e6:.0f} MB of model in {len(plan.stages)} enclaves of {_MEMORY >> 20} MiB; one was killed "
            f"under load: {count} of {count} requests answered, {right / len(images):.2%} of the images right"
        )
        act.protected = (
            "the model, from the machine that serves; each part of it, from the other enclaves; requests, from a kill"
        )
    return {
        "images": len(images),
        "accuracy": right / len(images),
        "parts": len(plan.stages),
        "longest_seconds": longest,
    }


def _plan(show: Show, work: Path, model: bytes) -> Plan:
    """The plan of least latency for these enclaves, told and drawn."""
    from strongroom.serve.graph import load
    from strongroom.serve.plan import Enclaves, Wanted, make, prepare, remembered
    from strongroom.serve.plan.cache import Cache
    from strongroom.serve.plan.draw import draw, write
    from strongroom.serve.plan.transfer import measure as transfer
    from strongroom.serve.plan.words import size

    show.doing("planning: each unit is loaded and run here once")
    prepared = prepare(load(model), memory=_MEMORY)
    threads = len(os.sched_getaffinity(0))
    profile = remembered(prepared.chain, Cache(work / "profiles"), batch=_AT_ONCE, threads=threads)
    plan = make(prepared, profile, Wanted((Enclaves(_MEMORY),), transfer(), shared=1), None)
    write(draw(plan, profile.costs, SCRIPT), work / "plan.svg")
    show.fact(
        f"{len(model):,} bytes of model, sealed; planned for enclaves in which it may take {_MEMORY >> 20} MiB: "
        f"{plan.units} units in {len(plan.stages)} parts, plan {plan.digest[:16]}..."
    )
    for cut in plan.splits:
        show.fact(f"{cut.output} is too large itself: made in {cut.pieces} pieces, by output channel")
    boxes = []
    for number, stage in enumerate(plan.stages, 1):
        share = round(_BAR * stage.memory / _MEMORY)
        boxes.append(
            f"part {number}  units {stage.first}-{stage.last - 1}  [{'#' * share}{'.' * (_BAR - share)}] "
            f"{size(stage.memory)}, hands on {size(stage.sends)}"
        )
    show.draw("\n".join(boxes))
    return plan


def _wait_for(supervisor: ModelSupervisor) -> None:
    while not supervisor.up.wait(0.05):
        if not supervisor.running:
            supervisor.wait()
            raise EnclaveError("pipeline: ended before it served")


def _load(
    show: Show, supervisor: ModelSupervisor, url: str, address: CasAddress, plan: Plan, images: Array
) -> tuple[Array, float]:
    """The answers to all images, asked for by several users while a part is killed; the longest that one waited."""
    policy = supervisor.policy
    show.fact(f"{len(plan.stages) + 1} enclaves are up: a front door without weights, and a part each")
    starts = range(0, len(images), _AT_ONCE)
    answers: dict[int, Array] = {}
    waited: list[float] = []
    some = threading.Event()

    def user(number: int) -> None:
        try:
            with Client(
                url,
                cas_root=address.cas_root,
                policy=policy.name,
                reference=policy.reference,
                model_digest=f"sha256:{plan.model}",
                plan_digest=f"sha256:{plan.digest}",
            ) as client:
                for start in starts[number::_USERS]:
                    began = time.perf_counter()
                    answers[start] = client.predict(images[start : start + _AT_ONCE])["logits"]
                    waited.append(time.perf_counter() - began)
                    if len(answers) > len(starts) // 3:
                        some.set()
        finally:
            some.set()

    with ThreadPoolExecutor(_USERS) as pool:
        asking = [pool.submit(user, number) for number in range(_USERS)]
        some.wait()
        before = len(answers)
        supervisor.signal(_KILLED, signal.SIGKILL)
        _progress(show, lambda: len(answers) / len(starts), lambda: all(each.done() for each in asking))
        for each in asking:
            each.result()
    if len(answers) != len(starts):
        raise StrongroomError(f"demo: {len(answers)} of {len(starts)} requests were answered")
    show.fact(
        f"{_USERS} users ask; SIGKILL to {_KILLED} after {before} of {len(starts)} answers: it starts and attests "
        "again, and is sent what it had not answered"
    )
    show.fact(f"all {len(starts)} requests answered; the longest wait was {max(waited):.1f} s")
    return np.concatenate([answers[start] for start in starts]), max(waited)


def _progress(show: Show, done: Callable[[], float], over: Callable[[], bool]) -> None:
    while not over():
        show.doing(f"{_KILLED} was killed; the others wait for it", done=done())
        time.sleep(0.05)


def _compare(show: Show, digits: Digits, logits: Array, wanted: Array) -> int:
    """How many answers are right. Raises StrongroomError if they are not the whole model's."""
    apart = float(np.abs(logits - wanted).max() / np.abs(wanted).max())
    if apart > _APART or not np.array_equal(logits.argmax(1), wanted.argmax(1)):
        raise StrongroomError(f"answers: {apart:.1e} of the largest logit off the whole model's, wanted {_APART:g}")
    right = int((logits.argmax(1) == digits.test_labels[: len(logits)]).sum())
    how = "equal to the bit" if not apart else f"within {apart:.0e} of the largest"
    show.fact(f"{right} of {len(logits)} images right; every answer is the whole model's, {how}")
    return right
