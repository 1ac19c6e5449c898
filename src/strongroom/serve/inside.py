"""A service's enclave, from boot to the last answer: models out of a sealed vault, evidence renewed, requests served.

The boot configuration's command lists the models to serve: paths in the vault `model`, each served under the name of
its file without ``.onnx``. A first word may require their lineage (`lineage.requirement`).
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath

from strongroom.attest.evidence import Evidence
from strongroom.cas.wire import RESULT_LIFETIME
from strongroom.channel import Server
from strongroom.crypto import Certificate
from strongroom.enclave.boot import Booted, main
from strongroom.errors import ServeError, StrongroomError, UsageError
from strongroom.lineage.requirement import LineageReader, Requirement
from strongroom.serve.app import ServiceApp
from strongroom.serve.attestation import ServiceAttestation
from strongroom.serve.stage import Stage
from strongroom.serve.weights import inline_weights

MODEL_VAULT = "model"
_RETRY_SECONDS = 10
_log = logging.getLogger("strongroom.serve")


class Attestation:
    """The service's attestation document, renewed before it expires.

    Until the first one, and when the CAS cannot be had for so long that the last one expires, there is none, and the
    service says that it is not ready.
    """

    def __init__(self, booted: Booted, models: Mapping[str, str]) -> None:
        self._booted = booted
        self._models = models
        self._document: dict[str, object] = {}
        self._expires = 0.0
        self._ended = threading.Event()
        self._renew()
        self._thread = threading.Thread(target=self._keep_renewing, name="attestation", daemon=True)
        self._thread.start()

    def __call__(self) -> Mapping[str, object]:
        if time.monotonic() >= self._expires:
            raise ServeError("attestation: has expired, and the CAS cannot be had", hint="try again later")
        return self._document

    def close(self) -> None:
        self._ended.set()
        self._thread.join()

    def _renew(self) -> None:
        started = time.monotonic()
        result = self._booted.session.certify_service(self._models)
        chain = [Certificate(der) for der in result.cas_chain]
        document = ServiceAttestation(
            Evidence.from_wire(result.evidence), result.claims, result.time_token, result.result, (chain[0], chain[1])
        )
        self._document = document.to_wire()
        self._expires = started + RESULT_LIFETIME

    def _keep_renewing(self) -> None:
        wait = RESULT_LIFETIME / 2
        while not self._ended.wait(wait):
            try:
                self._renew()
                wait = RESULT_LIFETIME / 2
            except StrongroomError as error:
                _log.warning("attestation not renewed: %s", error.message)
                self._booted.control.event("notice", text=f"attestation not renewed: {error.message}")
                wait = _RETRY_SECONDS


def run(booted: Booted) -> int:
    """Serve until told to stop."""
    stages = load_stages(booted)
    attestation = Attestation(booted, {name: f"sha256:{stage.digest}" for name, stage in stages.items()})
    app = ServiceApp(stages, attestation)
    identity = booted.session.serving_identity()
    server = Server(app, booted.control.ask_socket("listener"), identity)
    booted.control.event("serving", models=sorted(stages), key=identity.key.public.fingerprint)
    try:
        server.run()
    finally:
        attestation.close()
        app.close()
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
    requirement, paths = Requirement.split(booted.config.command)
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
