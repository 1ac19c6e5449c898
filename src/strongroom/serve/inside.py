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
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from strongroom.attest.evidence import Evidence
from strongroom.cas.client.enclave import EnclaveSession
from strongroom.cas.client.renewal import Renewal
from strongroom.cas.wire import RESULT_LIFETIME
from strongroom.channel import Server
from strongroom.crypto import Certificate
from strongroom.enclave.boot import Booted, main
from strongroom.enclave.cleared import clears
from strongroom.enclave.confine import become
from strongroom.enclave.lifeline import Lifeline
from strongroom.errors import FormatError, RevokedError, StrongroomError, UsageError
from strongroom.lineage.requirement import LineageReader, Requirement
from strongroom.serve.attestation import ServiceAttestation, session_claims

if TYPE_CHECKING:
    from strongroom.serve.app import Served
    from strongroom.serve.pipeline.document import Pipeline

MODEL_VAULT = "model"
_HANDSHAKE_SECONDS = 10.0
_DRAIN_SECONDS = 10
_TURN_SECONDS = 0.5  # between two looks whether it was revoked while it waits
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

    if not clears():
        _tell(booted, "memory: what is freed here stays as it was until it is used again, which glibc could prevent")
    requirement, words = Requirement.split(booted.command)
    found = of_command(words[:3] if requirement else words)
    if found is not None:
        pipeline, number = found
        if not number:
            return _run_front(booted, pipeline, requirement, words[3:])
        if requirement is not None:
            raise FormatError("command: lineage is the front door's to check, not a part's")
        return _run_part(booted, pipeline, number)
    models = read_models(booted)
    # Whoever breaks the runtime with a model, or a request, finds nothing here that only boot may do.
    become(booted.control, booted.config, booted.layout)
    from strongroom.serve.session import at_once
    from strongroom.serve.stage import Stage

    stages = {name: Stage.load(models.pop(name), name=name) for name in list(models)}
    digests = {name: stage.digest for name, stage in stages.items()}
    return _serve(booted, lambda: stages, digests, workers=at_once())


def _run_part(booted: Booted, pipeline: Pipeline, number: int) -> int:
    """Answer the front door until told to stop."""
    from strongroom.channel import Channel, TlsChannel, accept
    from strongroom.serve.pipeline import part
    from strongroom.serve.pipeline.place import watch

    with booted.open_vault(MODEL_VAULT) as vault:
        model = vault.read_bytes(part.MODEL)
    become(booted.control, booted.config, booted.layout)
    stage = part.load(pipeline, number, model)
    del model
    session, listener = booted.session, booted.control.ask_socket("listener")

    def greet(sock: socket.socket) -> Channel:
        watch(sock)
        sock.settimeout(_HANDSHAKE_SECONDS)
        stream = accept(sock, expect=session.expect_policy(pipeline.front), identity=session.linking_identity())
        booted.control.event("linked")
        return TlsChannel(stream, "front door", seconds=_IDLE_SECONDS)

    def end() -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    with Lifeline(session, tell=functools.partial(_tell, booted)) as lifeline:
        booted.control.event("part", number=number, digest=stage.digest)
        lifeline.hold(end)
        left = functools.partial(booted.control.event, "unlinked")
        part.serve(pipeline, number, stage, listener, greet, tell=functools.partial(_tell, booted), left=left)
        lifeline.release()
        lifeline.check()
    return 0


def _run_front(booted: Booted, pipeline: Pipeline, requirement: Requirement | None, words: Sequence[str]) -> int:
    """Take requests through the parts until told to stop.

    Args:
        requirement: of the lineage of the model that the parts are of; `words` then say where it is.
    """
    from strongroom.channel import Channel, TlsChannel, connect
    from strongroom.serve.pipeline.link import Link
    from strongroom.serve.pipeline.model import DEADLINE_SECONDS, PipelineModel, at_once
    from strongroom.serve.pipeline.origin import Origin

    origin = Origin.of_words(requirement, words) if requirement is not None else None
    whole = b""
    if origin is not None:
        with booted.open_vault(MODEL_VAULT) as vault:
            whole = origin.read(vault)
    become(booted.control, booted.config, booted.layout)
    if origin is not None:
        origin.check(pipeline, whole)
        booted.control.event("notice", text=f"model {pipeline.name}: its lineage is as required, the parts are its own")
    del whole
    session = booted.session

    def dial(number: int) -> Channel:
        sock = booted.control.ask_socket("dial", peer=f"part-{number}")
        sock.settimeout(_HANDSHAKE_SECONDS)
        expect = session.expect_policy(pipeline.parts[number - 1].policy)
        stream = connect(sock, expect=expect, identity=session.linking_identity())
        return TlsChannel(stream, f"part {number}", seconds=_HANDSHAKE_SECONDS)  # then as `Patience` has it

    def serving() -> Mapping[str, Served]:
        # Not before its turn: a part has one link for each enclave, and it is the present front door's.
        tell = functools.partial(_tell, booted)
        numbers = range(1, len(pipeline.parts) + 1)
        links = [Link(pipeline, number, functools.partial(dial, number), tell=tell) for number in numbers]
        made.append(PipelineModel(pipeline, links))
        return {pipeline.name: made[0]}

    made: list[PipelineModel] = []
    try:
        digests, plan = {pipeline.name: pipeline.model}, f"sha256:{pipeline.plan}"
        return _serve(
            booted, serving, digests, plan=plan, workers=at_once(pipeline), in_turn=True, drain=round(DEADLINE_SECONDS)
        )
    finally:
        for model in made:
            model.close()


def _tell(booted: Booted, text: str) -> None:
    _log.warning("%s", text)
    booted.control.event("notice", text=text)


def _serve(
    booted: Booted,
    serving: Callable[[], Mapping[str, Served]],
    digests: Mapping[str, str],
    *,
    plan: str | None = None,
    workers: int = 1,
    in_turn: bool = False,
    drain: int = _DRAIN_SECONDS,
) -> int:
    """Answer clients until told to stop, or revoked.

    Args:
        serving: gives the models, once they are to be served.
        digests: of the models, in hexadecimal digits.
        plan: as `Attestation` has it.
        workers: how many requests are worked on at once.
        in_turn: be attested and wait for the host to say that it is this service's turn to accept; end if it never is.
        drain: seconds for which requests under way are waited for at the end.
    """
    from strongroom.serve.app import ServiceApp

    tell = functools.partial(_tell, booted)
    revoked: list[StrongroomError] = []

    def end(error: StrongroomError) -> None:
        """Once it is revoked, whoever has appraised this service is answered no more: its connections are closed."""
        if isinstance(error, RevokedError):
            revoked.append(error)
            for each in servers:
                each.stop()

    models = {name: f"sha256:{value}" for name, value in digests.items()}
    servers: list[Server] = []
    attestation = Attestation(booted.session, models, plan=plan, tell=tell, on_end=end)
    identity = booted.session.serving_identity()
    watch = booted.session.watch(attestation.renewal.revoke)
    attestation.renewal.start()
    watch.start()
    turn = booted.control.ask_socket("dial", peer="turn") if in_turn else None
    try:
        if turn is None or _has_turn(booted, turn, revoked):
            served = serving()
            app = ServiceApp(served, attestation.document, session=attestation.session, workers=workers)
            listener = booted.control.ask_socket("listener")
            server = Server(
                app, listener, identity, drain_seconds=drain, ending=lambda: booted.control.event("draining")
            )
            servers.append(server)
            booted.control.event("serving", models=sorted(served), key=identity.key.public.fingerprint)
            if revoked:
                server.stop()
            try:
                server.run()
            finally:
                app.close()
    finally:
        watch.close()
        attestation.renewal.close()
        if turn is not None:
            turn.close()
    if revoked:
        raise revoked[0]
    return 0


def _has_turn(booted: Booted, turn: socket.socket, revoked: list[StrongroomError]) -> bool:
    """Wait until the host says that this service shall accept; whether it is so, and nothing revoked it meanwhile.

    Args:
        turn: stays open as long as it accepts: by its end the host knows that another one may.
    """
    booted.control.event("standby")
    turn.settimeout(_TURN_SECONDS)
    while not revoked:
        try:
            return bool(turn.recv(1))
        except TimeoutError:
            continue
        except OSError:
            break
    return False


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
