"""A service's enclave, from boot to the last answer: models out of a sealed vault, evidence renewed, requests served.

The boot configuration's command lists the models to serve: paths in the vault `model`, each served under the name of
its file without ``.onnx``. A first word may require their lineage (`lineage.requirement`).
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath

from strongroom.attest.evidence import Evidence
from strongroom.cas.client.enclave import EnclaveSession
from strongroom.cas.client.renewal import Renewal
from strongroom.cas.wire import RESULT_LIFETIME
from strongroom.channel import Server
from strongroom.crypto import Certificate
from strongroom.enclave.boot import Booted, main
from strongroom.errors import RevokedError, StrongroomError, UsageError
from strongroom.lineage.requirement import LineageReader, Requirement
from strongroom.serve.app import ServiceApp
from strongroom.serve.attestation import ServiceAttestation, session_claims
from strongroom.serve.stage import Stage
from strongroom.serve.weights import inline_weights

MODEL_VAULT = "model"
_log = logging.getLogger("strongroom.serve")


class Attestation:
    """What the service shows of itself: a document for everybody, renewed in time, and evidence for one client.

    There is no document once the CAS has refused a new one, or could not be had for so long that the last one expired:
    the service then says why, and that it is not ready.

    Args:
        session: of the service's enclave.
        models: digest, ``sha256:<hex>``, of each model served, by name.
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
        tell: Callable[[str], None],
        on_end: Callable[[StrongroomError], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session = session
        self._models = models
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
        result = self._session.certify_service(self._models)
        leaf, root = (Certificate(der) for der in result.cas_chain)
        evidence = Evidence.from_wire(result.evidence)
        self._document = ServiceAttestation(evidence, result.claims, result.time_token, result.result, (leaf, root))
        return lifetime


def run(booted: Booted) -> int:
    """Serve until told to stop."""
    stages = load_stages(booted)
    digests = {name: f"sha256:{stage.digest}" for name, stage in stages.items()}

    def tell(text: str) -> None:
        _log.warning("%s", text)
        booted.control.event("notice", text=text)

    revoked: list[StrongroomError] = []

    def end(error: StrongroomError) -> None:
        """Once it is revoked, whoever has appraised this service is answered no more: its connections are closed."""
        if isinstance(error, RevokedError):
            revoked.append(error)
            server.stop()

    attestation = Attestation(booted.session, digests, tell=tell, on_end=end)
    app = ServiceApp(stages, attestation.document, session=attestation.session)
    identity = booted.session.serving_identity()
    server = Server(app, booted.control.ask_socket("listener"), identity)
    watch = booted.session.watch(attestation.renewal.revoke)
    booted.control.event("serving", models=sorted(stages), key=identity.key.public.fingerprint)
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


def load_stages(booted: Booted) -> dict[str, Stage]:
    """The models that the boot configuration names, loaded and warm.

    Raises:
        UsageError: one of them is not in the vault, or two would have the same name.
        ModelFormatError: one is not a model that can be run.
        AttestationError, TamperedError: lineage is required, and that of a model, or of a file with weights of it, is
            missing or does not convince.
    """
    stages: dict[str, Stage] = {}
    requirement, paths = Requirement.split(booted.command)
    with booted.open_vault(MODEL_VAULT) as vault:
        for path in paths:
            name = PurePosixPath(path).name.removesuffix(".onnx")
            if path not in vault:
                raise UsageError(
                    f"model: {path} is not in the vault", hint=f"it holds: {', '.join(vault.files()[:20]) or 'nothing'}"
                )
            if name in stages:
                raise UsageError(f"model: two would be served as {name}")
            read = LineageReader(requirement, vault.read_bytes) if requirement else vault.read_bytes
            model = inline_weights(read(path), _beside(read, path))
            stages[name] = Stage.load(model, name=name)
            if requirement is not None:
                booted.control.event("notice", text=f"model {name}: its lineage is as required")
    return stages


def _beside(read: Callable[[str], bytes], path: str) -> Callable[[str], bytes]:
    folder = PurePosixPath(path).parent
    return lambda name: read(str(folder / name))


if __name__ == "__main__":
    sys.exit(main(run))
