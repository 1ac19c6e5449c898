"""The front door: the Open Inference Protocol V2 as an ASGI application, and the service's attestation document.

Rules:

- Inference, and the parsing that goes with it, runs in worker threads, so that health answers meanwhile.
- What waits is bounded, in requests and in bytes; beyond that a request is refused at once with 429.
- A request is ended in the midst of its work if its client hangs up, its time is over, or the service ends.
- An error says what the client can act on: never a stack trace, and never what ONNX Runtime says.
- Nothing of a request but its model's name is logged, ever.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import re
import threading
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from strongroom import __version__, channel
from strongroom.attest.binding import EXPORTER_LABEL
from strongroom.errors import FormatError, ServeError, StrongroomError, TooLargeError, UnansweredError
from strongroom.serve.attestation import ATTESTATION_PATH, SESSION_ROLE, VERSION
from strongroom.serve.ending import Ending
from strongroom.serve.residue import clear, replace_numbers
from strongroom.serve.tensors import HEADER, Array, InferResponse, header_length, parse_request, write_response
from strongroom.serve.wire import an_object, read_json, show

MAX_BODY = 64 << 20
MAX_QUEUE = 64
# All bodies in memory together, as a multiple of the longest one; and so all answers that wait to be read.
_BODIES = 4
# An answer is sent in pieces that its reader takes one by one, in this time and a second for each so many bytes.
_PIECE = 1 << 18
_SEND_SECONDS, _SEND_BYTES = 60.0, 1 << 18
_BODY_SECONDS = 60.0
_ANSWER_SECONDS = 300.0  # from a body to its answer; a model in parts has less
_MAX_NONCE_BODY = 256
_NONCE = re.compile(r"[0-9a-f]{64}")
# Evidence takes a TEE milliseconds to a second, and anybody may ask for it.
_MAX_NONCES = 16

_PATHS = ("/v2", "/v2/health/live", "/v2/health/ready", ATTESTATION_PATH)
_MODEL = re.compile(r"/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?(?:/(?P<action>ready|infer))?")

_log = logging.getLogger("strongroom.serve")

Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
Session = Callable[[bytes, bytes], Mapping[str, object]]


class Served(Protocol):
    """What answers for a model: a `Stage`, or a pipeline of parts. Called from several threads at once."""

    @property
    def version(self) -> str: ...

    def check(self) -> None:
        """Raises StrongroomError while it cannot answer."""

    def infer(
        self, inputs: Mapping[str, Array], wanted: Sequence[str] | None = None, ending: Ending | None = None
    ) -> dict[str, Array]: ...

    def metadata(self) -> dict[str, object]: ...


@dataclass(frozen=True)
class _Answer:
    status: int
    pieces: Sequence[bytes | memoryview] = field(repr=False)
    headers: Mapping[str, str]


class _RefusedError(Exception):
    """Ends a request with this status and error."""

    def __init__(self, status: int, error: StrongroomError, **headers: str) -> None:
        super().__init__(status)
        self.answer = _json(error.to_wire(), status, {name.replace("_", "-"): value for name, value in headers.items()})


class _GoneError(Exception):
    """The client hung up."""


class ServiceApp:
    """Serves stages to clients that appraise before they send. An ASGI application for `strongroom.channel.Server`.

    Args:
        stages: by the name under which each is served.
        attestation: gives the attestation document (`ServiceAttestation.to_wire`); called for every request for it, on
            the event loop, so it must not wait. Raises StrongroomError when there is none: the service is not ready.
        session: gives evidence for a client's nonce and the exporter of its channel, in the role `SESSION_ROLE`; called
            one at a time in a thread of its own. Without it, there is none to be had.
        workers: how many inferences run at once.
        queue: how many more may wait.
        max_body: the longest request body in bytes.
    """

    def __init__(
        self,
        stages: Mapping[str, Served],
        attestation: Callable[[], Mapping[str, object]],
        *,
        session: Session | None = None,
        workers: int = 1,
        queue: int = MAX_QUEUE,
        max_body: int = MAX_BODY,
    ) -> None:
        self._stages = dict(stages)
        self._attestation = attestation
        self._session = session
        self._attesting = ThreadPoolExecutor(1, thread_name_prefix="attestation")
        self._nonces = 0
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="inference")
        self._limit = workers + queue
        self._max_body = max_body
        self._admitted = 0
        self._admission = threading.Lock()
        self._body_bytes = 0
        self._answer_bytes = 0

    def close(self) -> None:
        """Let running inferences end, drop waiting ones, and end the worker threads."""
        self._attesting.shutdown(cancel_futures=True)
        self._pool.shutdown(cancel_futures=True)

    async def __call__(self, scope: Event, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            raise ValueError(f"ASGI scope: got {scope['type']}, wanted http")
        try:
            answer = await self._answer(scope, receive)
        except _GoneError:
            return
        except _RefusedError as refused:
            answer = refused.answer
        except StrongroomError as error:
            answer = _json(error.to_wire(), 400)
        except Exception as error:
            # The type only: what an exception says may quote an input.
            _log.error("request failed: %s", type(error).__name__)
            answer = _json(StrongroomError("internal error").to_wire(), 500)
        # Until its client has read it, or is given up.
        size = sum(map(len, answer.pieces))
        self._answer_bytes += size
        try:
            await _send(send, answer, size)
        finally:
            self._answer_bytes -= size

    async def _answer(self, scope: Event, receive: Receive) -> _Answer:
        path, method = scope["path"], scope["method"]
        match = _MODEL.fullmatch(path)
        if match is not None:
            stage = self._stage(match["model"], match["version"])
            if match["action"] == "infer":
                _allow(method, "POST")
                return await self._infer(match["model"], stage, scope, receive)
            _allow(method, "GET")
            if match["action"] == "ready":
                _check(stage)
                return _json({"name": match["model"], "ready": True})
            return _json(stage.metadata() | {"name": match["model"]})
        if path not in _PATHS:
            raise _missing(f"path: got {path[:200]!r}", hint="GET /v2 is where the protocol begins")
        if path == ATTESTATION_PATH and method == "POST" and self._session is not None:
            return await self._session_evidence(self._session, scope, receive)
        _allow(method, "GET")
        if path == ATTESTATION_PATH:
            return _json(self._document())
        if path == "/v2":
            return _json({"name": "strongroom", "version": __version__, "extensions": ["binary_tensor_data"]})
        if path == "/v2/health/live":
            return _json({"live": True})
        self._document()
        for stage in self._stages.values():
            _check(stage)
        return _json({"ready": True})

    def _document(self) -> Mapping[str, object]:
        try:
            return self._attestation()
        except StrongroomError as error:
            raise _RefusedError(503, error) from None

    async def _session_evidence(self, session: Session, scope: Event, receive: Receive) -> _Answer:
        """Evidence of kind 1 over a client's nonce and the channel that it came over."""
        # Here, since the connection is this thread's.
        binder = channel.tls_info(scope).export(EXPORTER_LABEL, SESSION_ROLE.encode())
        body, more = b"", True
        async with asyncio.timeout(_BODY_SECONDS):
            while more:
                event = await receive()
                if event["type"] == "http.disconnect":
                    raise _GoneError
                body, more = body + event.get("body", b""), event.get("more_body", False)
                if len(body) > _MAX_NONCE_BODY:
                    raise _RefusedError(413, ServeError(f"body: longer than {_MAX_NONCE_BODY} bytes"))
        nonce = an_object(read_json(body, "nonce"), "nonce", required=("nonce",))["nonce"]
        if not isinstance(nonce, str) or not _NONCE.fullmatch(nonce):
            raise FormatError(f"nonce: got {show(nonce)}, wanted 64 lower-case hexadecimal digits")
        if self._nonces >= _MAX_NONCES:
            raise _busy(f"{self._nonces} clients wait for evidence")
        self._nonces += 1
        try:
            make = functools.partial(session, bytes.fromhex(nonce), binder)
            evidence = await asyncio.get_running_loop().run_in_executor(self._attesting, make)
        except StrongroomError as error:
            raise _RefusedError(503, error) from None
        finally:
            self._nonces -= 1
        return _json({"version": VERSION, "evidence": evidence})

    def _stage(self, name: str, version: str | None) -> Served:
        stage = self._stages.get(name)
        if stage is None:
            raise _missing(f"model: got {name[:200]!r}, wanted one of {', '.join(self._stages) or 'none'}")
        if version not in (None, stage.version):
            raise _missing(f"version of model {name}: got {version!r:.60}, wanted {stage.version!r}")
        return stage

    async def _infer(self, name: str, stage: Served, scope: Event, receive: Receive) -> _Answer:
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        encoding = headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise _RefusedError(415, ServeError(f"content-encoding: got {encoding[:60]!r}, wanted none"))
        if sum(key.lower() == HEADER.encode() for key, _ in scope["headers"]) > 1:
            raise FormatError(f"{HEADER}: is there twice")
        json_length = header_length(headers.get(HEADER))
        if int(headers.get("content-length", 0)) > self._max_body:
            raise self._too_long()
        chunks: list[bytes] = []
        try:
            try:
                async with asyncio.timeout(_BODY_SECONDS):
                    await self._receive_body(receive, chunks)
            except TimeoutError:
                raise _RefusedError(408, ServeError(f"body: not complete after {_BODY_SECONDS:.0f} s")) from None
            body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            ending = Ending()
            return await self._run(lambda: _infer(name, stage, body, json_length, ending), receive, chunks, ending)
        finally:
            with self._admission:
                self._body_bytes -= sum(map(len, chunks))

    async def _receive_body(self, receive: Receive, chunks: list[bytes]) -> None:
        """Append the body to `chunks` as it comes; the caller takes its length off the total when done with it."""
        size, more = 0, True
        while more:
            event = await receive()
            if event["type"] == "http.disconnect":
                raise _GoneError
            chunk, more = event.get("body", b""), event.get("more_body", False)
            if not chunk:
                continue
            chunks.append(chunk)
            size += len(chunk)
            with self._admission:
                self._body_bytes += len(chunk)
            if size > self._max_body:
                raise self._too_long()
            if self._body_bytes > _BODIES * self._max_body:
                raise _busy("too many bytes of requests in memory")

    async def _run(self, job: Callable[[], _Answer], receive: Receive, chunks: list[bytes], ending: Ending) -> _Answer:
        """Do it in a worker thread; if the client hangs up before its turn comes, do not.

        Args:
            chunks: the request's body. Emptied when a thread has it, and counted until that is done with it.
            ending: of the job's work, which is told when nobody waits for it any more.
        """
        with self._admission:
            if self._admitted >= self._limit:
                raise _busy(f"{self._admitted} requests are running or waiting")
            self._admitted += 1
        try:
            running = self._pool.submit(self._begin, job)
        except RuntimeError:
            self._release()
            raise _RefusedError(503, ServeError("service: is stopping")) from None
        running.add_done_callback(functools.partial(self._release, sum(map(len, chunks))))
        chunks.clear()
        answer = asyncio.wrap_future(running)
        hung_up = asyncio.ensure_future(_hung_up(receive))
        try:
            await asyncio.wait((answer, hung_up), timeout=_ANSWER_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            if hung_up.done():
                raise _GoneError
            late = UnansweredError(f"service: no answer within the {_ANSWER_SECONDS:g} s that a request has")
            raise _RefusedError(503, late)
        except asyncio.CancelledError:  # the server ends, and has waited for as long as it may
            raise _RefusedError(503, UnansweredError("service: is stopping, and had no answer in time")) from None
        finally:
            hung_up.cancel()
            answer.cancel()
            ending.end()
            # Else an error holds this frame, which holds the error and all that it has of the request.
            del answer, running, job

    def _begin(self, job: Callable[[], _Answer]) -> _Answer:
        if self._answer_bytes > _BODIES * self._max_body:
            raise _busy("too many bytes of answers wait to be read")
        return job()

    def _release(self, size: int = 0, done: Future[_Answer] | None = None) -> None:
        with self._admission:
            self._admitted -= 1
            self._body_bytes -= size

    def _too_long(self) -> _RefusedError:
        return _RefusedError(413, ServeError(f"body: longer than the limit of {self._max_body} bytes"))


def _check(stage: Served) -> None:
    try:
        stage.check()
    except StrongroomError as error:
        raise _RefusedError(503, error, retry_after="1") from None


def _infer(name: str, stage: Served, body: bytes, json_length: int | None, ending: Ending) -> _Answer:
    """From a request's body to its answer, in a worker thread."""
    request = parse_request(body, json_length)
    try:
        outputs = stage.infer(request.inputs, list(request.outputs) or None, ending)
    except UnansweredError as error:
        raise _RefusedError(503, error, retry_after="1") from None
    except TooLargeError as error:
        raise _RefusedError(413, error) from None
    binary = request.outputs or dict.fromkeys(outputs, request.binary)
    try:
        message = write_response(InferResponse(outputs, name, stage.version, request.id), binary)
    finally:
        clear((*request.inputs.values(), *outputs.values()))
        replace_numbers()
    return _Answer(200, message.pieces, message.headers)


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send(send: Send, answer: _Answer, length: int) -> None:
    """Send it; of what its client does not read in time, no more. The server then ends the connection."""
    headers = [(name.encode(), value.encode()) for name, value in answer.headers.items()]
    headers.append((b"content-length", str(length).encode()))
    try:
        async with asyncio.timeout(_SEND_SECONDS + length / _SEND_BYTES):
            await send({"type": "http.response.start", "status": answer.status, "headers": headers})
            left = length
            for piece in answer.pieces:
                view = memoryview(piece)
                for start in range(0, max(1, len(view)), _PIECE):
                    part = view[start : start + _PIECE]
                    left -= len(part)
                    if part or not length:
                        await send({"type": "http.response.body", "body": part, "more_body": left > 0})
    except TimeoutError:
        return


def _json(value: Mapping[str, object], status: int = 200, headers: Mapping[str, str] | None = None) -> _Answer:
    raw = json.dumps(value, separators=(",", ":")).encode()
    return _Answer(status, [raw], {"content-type": "application/json", **(headers or {})})


def _allow(method: str, allowed: str) -> None:
    if method != allowed:
        raise _RefusedError(405, ServeError(f"method: got {method[:20]}, wanted {allowed}"), allow=allowed)


def _missing(message: str, hint: str | None = None) -> _RefusedError:
    return _RefusedError(404, ServeError(message, hint=hint))


def _busy(reason: str) -> _RefusedError:
    return _RefusedError(429, ServeError(f"service: busy, {reason}", hint="try again in a moment"), retry_after="1")
