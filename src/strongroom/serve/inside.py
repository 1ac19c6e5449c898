"""A service's enclave, from boot to the last answer: models out of a sealed vault, evidence renewed, requests served.

The boot configuration's command lists the models to serve: paths in the vault `model`, each served under the name of
its file without ``.onnx``. A first word may require their lineage (`lineage.requirement`), or say that this is one of
the parts of a pipeline, or its front door (`pipeline.document`).
"""

from __future__ import annotations

import functools
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from strongroom.attest.evidence import Evidence
from strongroom.cas.client.enclave import EnclaveSession
from strongroom.cas.client.renewal import Renewal
from strongroom.cas.wire import RESULT_LIFETIME
from strongroom.channel import Server
from strongroom.crypto import Certificate
from strongroom.enclave.boot import Booted, main
from strongroom.enclave.confine import become
from strongroom.enclave.lifeline import Lifeline
from strongroom.errors import RevokedError, StrongroomError, UsageError
from strongroom.lineage.requirement import LineageReader, Requirement
from strongroom.serve.attestation import ServiceAttestation, session_claims

if TYPE_CHECKING:
    from strongroom.serve.app import Served
    from strongroom.serve.pipeline.document import Pipeline

MODEL_VAULT = "model"
_HANDSHAKE_SECONDS = 10.0
_IDLE_SECONDS = 7 * 86400.0  # that a part waits for requests on one link; the front door hangs up long before
_log = logging.getLogger("strongroom.serve")


class Attestation:
    """What the service shows of itself: a document for everybody, renewed in time, and evidence for one client.

    There is no document once the CAS has refused a new one, or could not be had for so long that the last one expired:
    the service then says why, and that it is not ready.

    Args:
        session: of the service's enclave.
        models: digest, ``sha256:<hex>``, of each model served, by name.
        plan: that of the plan by which a model is served in parts.
        tell: is given a line about each renewal that failed.
        on_end: as `Renewal` has it.
        clock: seconds that only go forward.

    Raises:
        StrongroomError: the first document cannot be had.
    """

    def __init__(
        self,
        session: EnclaveSession,
        models: Mapping[str, str],
        *,
        plan: str | None = None,
        tell: Callable[[str], None],
        on_end: Callable[[StrongroomError], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session = session
        self._models, self._plan = models, plan
        self.renewal = Renewal(self._renew, lifetime=self._renew(), tell=tell, on_end=on_end, clock=clock)

    def document(self) -> Mapping[str, object]:
        """What `ServiceApp` shows to everybody."""
        self.renewal.check()
        return self._document.to_wire()

    def session(self, nonce: bytes, binder: bytes) -> Mapping[str, object]:
        """Evidence for one client's nonce, on its own channel: `ServiceApp`'s `session`."""
        self.renewal.check()
        return self._session.evidence_for(session_claims(self._document.claims), nonce=nonce, binder=binder)

    def _renew(self) -> int:
        """A new document; the seconds for which it stands, which are the lease's."""
        if self._session.lease_left < self._session.lease_seconds / 2:
            self._session.renew()
        lifetime = min(RESULT_LIFETIME, math.ceil(self._session.lease_left))
        result = self._session.certify_service(self._models, plan=self._plan)
        leaf, root = (Certificate(der) for der in result.cas_chain)
        evidence = Evidence.from_wire(result.evidence)
        self._document = ServiceAttestation(evidence, result.claims, result.time_token, result.result, (leaf, root))
        return lifetime


def run(booted: Booted) -> int:
    """Serve until told to stop."""
    # NumPy's OpenBLAS starts threads when it is imported, with `onnx` for one, and privileges are a thread's own.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    from strongroom.serve.pipeline.document import of_command

    found = of_command(booted.command)
    if found is not None:
        pipeline, number = found
        return _run_part(booted, pipeline, number) if number else _run_front(booted, pipeline)
    models = read_models(booted)
    # Whoever breaks the runtime with a model, or a request, finds nothing here that only boot may do.
    become(booted.control, booted.config, booted.layout)
    from strongroom.serve.stage import Stage

    stages = {name: Stage.load(models.pop(name), name=name) for name in list(models)}
    return _serve(booted, stages, {name: stage.digest for name, stage in stages.items()})


def _run_part(booted: Booted, pipeline: Pipeline, number: int) -> int:
    """Answer the front door until told to stop."""
    from strongroom.channel import Channel, TlsChannel, accept
    from strongroom.serve.pipeline import part

    with booted.open_vault(MODEL_VAULT) as vault:
        model = vault.read_bytes(part.MODEL)
    become(booted.control, booted.config, booted.layout)
    stage = part.load(pipeline, number, model)
    del model
    session, listener = booted.session, booted.control.ask_socket("listener")

    def greet(sock: socket.socket) -> Channel:
        sock.settimeout(_HANDSHAKE_SECONDS)
        stream = accept(sock, expect=session.expect_policy(pipeline.front), identity=session.linking_identity())
        return TlsChannel(stream, "front door", seconds=_IDLE_SECONDS)

    def end() -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    with Lifeline(session, tell=functools.partial(_tell, booted)) as lifeline:
        booted.control.event("part", number=number, digest=stage.digest)
        lifeline.hold(end)
        part.serve(pipeline, number, stage, listener, greet, tell=functools.partial(_tell, booted))
        lifeline.release()
        lifeline.check()
    return 0


def _run_front(booted: Booted, pipeline: Pipeline) -> int:
    """Take requests through the parts until told to stop."""
    from strongroom.channel import Channel, TlsChannel, connect
    from strongroom.serve.pipeline.link import Link
    from strongroom.serve.pipeline.model import DEADLINE_SECONDS, PipelineModel

    become(booted.control, booted.config, booted.layout)
    session = booted.session

    def dial(number: int) -> Channel:
        sock = booted.control.ask_socket("dial", peer=f"part-{number}")
        sock.settimeout(_HANDSHAKE_SECONDS)
        expect = session.expect_policy(pipeline.parts[number - 1].policy)
        stream = connect(sock, expect=expect, identity=session.linking_identity())
        return TlsChannel(stream, f"part {number}", seconds=DEADLINE_SECONDS)

    tell = functools.partial(_tell, booted)
    numbers = range(1, len(pipeline.parts) + 1)
    links = [Link(pipeline, number, functools.partial(dial, number), tell=tell) for number in numbers]
    model = PipelineModel(pipeline, links)
    try:
        digests, plan = {pipeline.name: model.digest}, f"sha256:{pipeline.plan}"
        return _serve(booted, {pipeline.name: model}, digests, plan=plan, workers=model.at_once)
    finally:
        model.close()


def _tell(booted: Booted, text: str) -> None:
    _log.warning("%s", text)
    booted.control.event("notice", text=text)


def _serve(
    booted: Booted,
    served: Mapping[str, Served],
    digests: Mapping[str, str],
    *,
    plan: str | None = None,
    workers: int = 1,
) -> int:
    """Answer clients until told to stop, or revoked.

    Args:
        digests: of the models, in hexadecimal digits.
        plan: as `Attestation` has it.
        workers: how many requests are worked on at once.
    """
    from strongroom.serve.app import ServiceApp

    tell = functools.partial(_tell, booted)
    revoked: list[StrongroomError] = []

    def end(error: StrongroomError) -> None:
        """Once it is revoked, whoever has appraised this service is answered no more: its connections are closed."""
        if isinstance(error, RevokedError):
            revoked.append(error)
            server.stop()

    models = {name: f"sha256:{value}" for name, value in digests.items()}
    attestation = Attestation(booted.session, models, plan=plan, tell=tell, on_end=end)
    app = ServiceApp(served, attestation.document, session=attestation.session, workers=workers)
    identity = booted.session.serving_identity()
    server = Server(app, booted.control.ask_socket("listener"), identity)
    watch = booted.session.watch(attestation.renewal.revoke)
    booted.control.event("serving", models=sorted(served), key=identity.key.public.fingerprint)
    attestation.renewal.start()
    watch.start()
    try:
        server.run()
    finally:
        watch.close()
        attestation.renewal.close()
        app.close()
    if revoked:
        raise revoked[0]
    return 0


def read_models(booted: Booted) -> dict[str, bytes]:
    """The models that the boot configuration names, with all their weights, by the names that they are served as.

    Raises:
        UsageError: one of them is not in the vault, or two would have the same name.
        ModelFormatError: one keeps weights where they cannot be taken from.
        AttestationError, TamperedError: lineage is required, and that of a model, or of a file with weights of it, is
            missing or does not convince.
    """
    from strongroom.serve.weights import inline_weights

    models: dict[str, bytes] = {}
    requirement, paths = Requirement.split(booted.command)
    with booted.open_vault(MODEL_VAULT) as vault:
        for path in paths:
            name = PurePosixPath(path).name.removesuffix(".onnx")
            if path not in vault:
                raise UsageError(
                    f"model: {path} is not in the vault", hint=f"it holds: {', '.join(vault.files()[:20]) or 'nothing'}"
                )
            if name in models:
                raise UsageError(f"model: two would be served as {name}")
            read = LineageReader(requirement, vault.read_bytes) if requirement else vault.read_bytes
            models[name] = inline_weights(read(path), _beside(read, path))
            if requirement is not None:
                booted.control.event("notice", text=f"model {name}: its lineage is as required")
    return models


def _beside(read: Callable[[str], bytes], path: str) -> Callable[[str], bytes]:
    folder = PurePosixPath(path).parent
    return lambda name: read(str(folder / name))


if __name__ == "__main__":
    sys.exit(main(run))
