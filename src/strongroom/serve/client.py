"""The client: it appraises a service, pins its key, and only then sends an input.

Invariants:

- An input leaves over a connection only after that connection showed the key of an appraised service, and before that
  appraisal expires. A connection whose key is another is closed before a byte of a request is sent.
- The connection over which a service is appraised carries the request for its attestation document, nothing else.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import quote, urlsplit

import numpy as np
import numpy.typing as npt

from strongroom.attest.appraise import ReferenceValues
from strongroom.attest.binding import EXPORTER_LABEL, FRESH_SIZE
from strongroom.attest.evidence import Evidence
from strongroom.channel import HttpClient, Response, expect_key
from strongroom.crypto import Certificate, random_bytes
from strongroom.errors import (
    AttestationError,
    ChannelError,
    FormatError,
    MeasurementError,
    PeerIdentityError,
    ServeError,
    StrongroomError,
    UsageError,
)
from strongroom.serve.attestation import (
    ATTESTATION_PATH,
    SESSION_ROLE,
    VERSION,
    AppraisedService,
    ServiceAttestation,
    appraise_service,
    appraise_session,
)
from strongroom.serve.tensors import (
    DATATYPES,
    HEADER,
    Array,
    InferRequest,
    Message,
    TensorInfo,
    check_fits,
    header_length,
    parse_response,
    write_request,
)
from strongroom.serve.wire import a_list, an_object, read_json

_TIMEOUT = 60.0
_MAX_DOCUMENT = 4 << 20
_MAX_ANSWER = 1 << 30
_MAX_IDLE = 16
_RENEW_AHEAD = 120  # a service renews its document halfway through 10 minutes
_RENEW_PAUSE = 10
_PORT = 443
_T = TypeVar("_T")


class Client:
    """Predicts with a model in an enclave that it has appraised. May be used from several threads at once.

    Nothing is sent before the first call. A request whose connection breaks is made once more, an appraisal too: it may
    be computed twice, and is answered once. Two minutes before the appraisal expires the service is appraised again,
    and inputs of other threads go on. Inputs wait where it has expired, or the service came back with another key.

    Args:
        url: ``https://host:port`` of the service.
        cas_root: ``sha256:<hex>``, the fingerprint of the root key of the CAS that the service must belong to.
        policy: ``namespace/name`` of the policy that the service must run under.
        reference: which enclaves to accept; or what gives that, asked at each appraisal, as where the policy may have
            a new version when the service is updated.
        model: which of the service's models; None takes its only one.
        model_digest: ``sha256:<hex>`` of the model's bytes; None leaves the choice of model to the policy's owner.
        plan_digest: ``sha256:<hex>`` of the plan by which the model must be served in parts; None takes any, and none.
        fresh: whether the enclave must also make evidence for this client's nonce and channel, at each appraisal. It
            takes a report's time, and shows that the enclave is there now, not only that it was within 20 minutes.
        timeout: seconds for each wait on the network.
        clock: gives seconds since 1970.
    """

    def __init__(
        self,
        url: str,
        *,
        cas_root: str,
        policy: str,
        reference: ReferenceValues | Callable[[], ReferenceValues],
        model: str | None = None,
        model_digest: str | None = None,
        plan_digest: str | None = None,
        fresh: bool = False,
        timeout: float = _TIMEOUT,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._host, self._port = _address(url)
        self._cas_root = cas_root
        self._policy = policy
        self._reference = _asked(reference)
        self._model = model
        self._model_digest, self._plan_digest = model_digest, plan_digest
        self._fresh = fresh
        self._timeout = timeout
        self._clock = clock
        self._lock = threading.Lock()
        self._service: AppraisedService | None = None
        self._renew_at = 0.0
        self._renewing = threading.Lock()
        self._idle: list[tuple[str, HttpClient]] = []
        self._numbers = itertools.count(1)
        # By the model's digest, which the appraisal vouches for.
        self._infos: dict[str, dict[str, TensorInfo]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the idle connections; a later call makes new ones."""
        with self._lock:
            idle, self._idle = self._idle, []
        for _, http in idle:
            http.close()

    def appraise(self) -> AppraisedService:
        """The service, appraised now if it is not or no longer.

        Raises:
            AttestationError: it does not convince, or no longer does.
            ChannelError: it cannot be reached, or does not speak the protocol.
        """
        with self._lock:
            service, now = self._service, self._clock()
            if service is None or now >= service.expires:
                self._service = None
                return self._keep(self._once_more(self._appraise))
            if now < self._renew_at:
                return service
        # One thread sees to it; the others go on with what has not expired.
        if not self._renewing.acquire(blocking=False):
            return service
        try:
            return self._renew(service)
        finally:
            self._renewing.release()

    def _renew(self, service: AppraisedService) -> AppraisedService:
        try:
            renewed = self._appraise()
        except AttestationError:
            # Whoever is there now is not to be trusted any more.
            with self._lock:
                if self._service is service:
                    self._service = None
            raise
        except StrongroomError:
            # It is away, or busy. What it showed before stands until it expires.
            with self._lock:
                self._renew_at = self._clock() + _RENEW_PAUSE
            return service
        with self._lock:
            return self._keep(renewed)

    def _keep(self, service: AppraisedService) -> AppraisedService:
        self._service = service
        self._renew_at = max(service.expires - _RENEW_AHEAD, self._clock() + _RENEW_PAUSE)
        return service

    def predict(
        self, inputs: Mapping[str, npt.ArrayLike] | npt.ArrayLike, *, outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Run the model on `inputs`.

        Args:
            inputs: arrays by name, or the one array of a model with one input. What NumPy calls a same-kind conversion
                (float64 to float32, say) is made; any other difference from the model's types is an error.
            outputs: the names wanted; None for all.

        Returns:
            Arrays by name.

        Raises:
            AttestationError: the service does not convince; no input was sent.
            ServeError: inputs or outputs do not fit the model, or the service is busy or fails.
            ChannelError: the connection failed, and again when the request was made once more.
        """
        number = str(next(self._numbers))
        request = InferRequest(self._fit(inputs), dict.fromkeys(outputs or (), True), binary=True, id=number)
        answer = self._ask("POST", "/infer", write_request(request)).expect_ok()
        response = parse_response(answer.body, header_length(answer.headers.get(HEADER)))
        if response.id != request.id:
            raise ChannelError(
                "answer: is to another request", hint="the service, or what stands before it, mixes them up"
            )
        return dict(response.outputs)

    def metadata(self) -> dict[str, object]:
        """What the service says of the model: the protocol's model metadata."""
        return self._ask("GET", "").expect_ok().json()

    def ready(self) -> bool:
        """Whether the service, appraised, says that the model can be asked.

        Raises:
            AttestationError, ChannelError: as `appraise`.
        """
        return self._ask("GET", "/ready").status == 200

    def _appraise(self) -> AppraisedService:
        shown: list[Certificate] = []

        def note(chain: Sequence[Certificate]) -> None:
            shown.append(chain[0])

        reference = self._reference()
        # Any key may show a document; over this connection goes nothing but the request for it. `fresh` keeps both on
        # one connection: the document must name the key of the very connection that it came over.
        with HttpClient.to(self._host, self._port, expect=note, max_body=_MAX_DOCUMENT, timeout=self._timeout) as http:
            http.connect()
            answer = http.request("GET", ATTESTATION_PATH, fresh=True).expect_ok()
            document = ServiceAttestation.from_wire(read_json(answer.body, "attestation document"))
            service = appraise_service(
                document,
                peer=shown[-1],
                cas_root=self._cas_root,
                policy=self._policy,
                reference=reference,
                now=int(self._clock()),
            )
            if self._fresh:
                service = self._appraise_session(http, service, document, reference)
        digest = service.models[self._name(service)]
        if self._model_digest not in (None, digest):
            raise MeasurementError(f"model {self._name(service)}: got {digest}, wanted {self._model_digest}")
        if self._plan_digest not in (None, service.plan):
            raise MeasurementError(f"plan: got {service.plan or 'none'}, wanted {self._plan_digest}")
        return service

    def _appraise_session(
        self, http: HttpClient, service: AppraisedService, document: ServiceAttestation, reference: ReferenceValues
    ) -> AppraisedService:
        nonce = random_bytes(FRESH_SIZE)
        answer = http.post(ATTESTATION_PATH, {"nonce": nonce.hex()}, fresh=True)
        wire = an_object(answer, "session evidence", required=("version", "evidence"))
        if type(wire["version"]) is not int or wire["version"] != VERSION:
            raise FormatError(f"session evidence: got version {wire['version']!r:.20}, wanted {VERSION}")
        return appraise_session(
            service,
            document,
            Evidence.from_wire(wire["evidence"]),
            nonce=nonce,
            binder=http.connect().export(EXPORTER_LABEL, SESSION_ROLE.encode()),
            reference=reference,
            now=int(self._clock()),
        )

    def _name(self, service: AppraisedService) -> str:
        """The name of the model to ask."""
        names = ", ".join(service.models)
        if self._model is None:
            if len(service.models) != 1:
                raise UsageError(f"model: got none, wanted one of {names}")
            return names
        if self._model not in service.models:
            raise ServeError(f"model: got {self._model!r}, wanted one of {names}")
        return self._model

    def _ask(self, method: str, action: str, message: Message | None = None) -> Response:
        """One request about the model, which changes nothing there."""
        return self._once_more(lambda: self._ask_once(method, action, message))

    def _once_more(self, ask: Callable[[], _T]) -> _T:
        """What `ask` gives, which is called once more if its connection breaks."""
        began = time.monotonic()
        try:
            return ask()
        except PeerIdentityError:
            raise
        except ChannelError:
            # What was silent for so long would be so again.
            if time.monotonic() - began >= self._timeout:
                raise
        return ask()

    def _ask_once(self, method: str, action: str, message: Message | None) -> Response:
        """Over a connection that is pinned to the key of the service as last appraised."""
        for last in (False, False, True):
            service = self.appraise()
            http = self._take(service.key)
            body, headers = (message.pieces, message.headers) if message else ((), {})
            try:
                return http.request(
                    method, f"/v2/models/{quote(self._name(service))}{action}", body=body, headers=headers
                )
            except PeerIdentityError:
                # The service has another key now, as after a restart. Nothing was sent to it; ask who it is. It may be
                # about to get another one just then, as in an update.
                with self._lock:
                    if self._service is service:
                        self._service = None
                if last:
                    raise
            finally:
                # After an error it has closed itself, and would make a new connection, checked like the first.
                self._give_back(service.key, http)
        raise AssertionError("unreachable")

    def _take(self, key: str) -> HttpClient:
        stale = []
        with self._lock:
            while self._idle:
                pinned, http = self._idle.pop()
                if pinned == key:
                    break
                stale.append(http)
            else:
                http = HttpClient.to(
                    self._host, self._port, expect=expect_key(key), max_body=_MAX_ANSWER, timeout=self._timeout
                )
        for other in stale:
            other.close()
        return http

    def _give_back(self, key: str, http: HttpClient) -> None:
        with self._lock:
            if len(self._idle) < _MAX_IDLE:
                self._idle.append((key, http))
                return
        http.close()

    def _fit(self, inputs: Mapping[str, npt.ArrayLike] | npt.ArrayLike) -> dict[str, Array]:
        """The inputs as arrays that the model takes."""
        infos = self._input_infos()
        if not isinstance(inputs, Mapping):
            if len(infos) != 1:
                raise ServeError(f"inputs: got one array, wanted {', '.join(infos)} by name")
            inputs = dict.fromkeys(infos, inputs)
        unknown = [name for name in inputs if name not in infos]
        missing = [name for name in infos if name not in inputs]
        if unknown or missing:
            raise ServeError(f"inputs: got {', '.join(inputs) or 'none'}, wanted {', '.join(infos)}")
        return {name: _convert(value, infos[name]) for name, value in inputs.items()}

    def _input_infos(self) -> dict[str, TensorInfo]:
        service = self.appraise()
        digest = service.models[self._name(service)]
        known = self._infos.get(digest)
        if known is None:
            listed = a_list(self.metadata().get("inputs"), "model metadata inputs")
            known = self._infos[digest] = {info.name: info for info in map(TensorInfo.from_wire, listed)}
        return known


def _asked(reference: ReferenceValues | Callable[[], ReferenceValues]) -> Callable[[], ReferenceValues]:
    return (lambda: reference) if isinstance(reference, ReferenceValues) else reference


def _convert(value: npt.ArrayLike, info: TensorInfo) -> Array:
    array, wanted = np.asarray(value), DATATYPES[info.datatype]
    if array.dtype != wanted and np.can_cast(array.dtype, wanted, "same_kind"):
        array = array.astype(wanted)
    check_fits(array, info)
    return array


def _address(url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        port = parts.port or _PORT
    except ValueError:
        parts, port = urlsplit(""), 0
    if parts.scheme != "https" or not parts.hostname or parts.path not in ("", "/") or parts.query:
        raise UsageError(f"url: got {url!r}, wanted https://host:port")
    return parts.hostname, port
