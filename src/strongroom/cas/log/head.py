"""The highest head that a client has seen of a CAS's log: remembered, sent with every request, and compared.

A CAS whose database was put back to an older state, or forked, does not extend what its clients have seen. It says so
itself, 409, since every request carries the client's head. The client does not take its word for it: a higher head is
remembered in the place of the old one only with the proof that it extends it, so that a CAS which lies to its client
is caught at each of its lies, not once.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from strongroom.cas.files import replace
from strongroom.cas.log.tree import EMPTY_ROOT, read_hashes, verify_consistency
from strongroom.channel import Expect, HttpClient, Identity, Response, TlsStream
from strongroom.errors import ChannelError, FormatError, RollbackError

HEAD_HEADER = "strongroom-head"
"""Of requests: the highest head that the caller has seen. Of answers: the log's head."""

_JSON = {"content-type": "application/json"}
PROOF_HEADER = "strongroom-proof"
"""Of answers: that the log's head extends the request's, if it is larger; hashes in hexadecimal, with commas."""

HEAD_TEXT = re.compile(r"(0|[1-9][0-9]{0,17}):([0-9a-f]{64})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Head:
    """The log's first `size` entries, and the root that stands for them. In text: ``<size>:<64 hex digits>``."""

    size: int
    root: bytes

    def __str__(self) -> str:
        return f"{self.size}:{self.root.hex()}"

    @classmethod
    def parse(cls, text: str) -> Head:
        """Raises FormatError unless `text` is the text form of a head."""
        match = HEAD_TEXT.fullmatch(text)
        if match is None:
            raise FormatError(f"head: got {text[:90]!r}, wanted <size>:<64 hex digits>")
        return cls(int(match[1]), bytes.fromhex(match[2]))


NO_ENTRIES = Head(0, EMPTY_ROOT)
"""The head of an empty log, which every log extends."""


class HeadMemory(Protocol):
    """Where the highest head is remembered."""

    def read(self) -> Head:
        """The highest head, `NO_ENTRIES` before the first."""

    def advance(self, head: Head) -> None:
        """Remember a head that was proved to extend the one remembered."""

    @property
    def hint(self) -> str | None:
        """What its owner does who knows why the CAS went back."""


class MemoryHead:
    """For one process's life."""

    hint = None

    def __init__(self) -> None:
        self._head = NO_ENTRIES
        self._lock = threading.Lock()

    def read(self) -> Head:
        return self._head

    def advance(self, head: Head) -> None:
        with self._lock:
            if head.size > self._head.size:
                self._head = head


class FileHead:
    """In a file of mode 0600, for one CAS. Two processes that write at once may leave the lower of their two heads.

    Args:
        path: its directory is made if it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def hint(self) -> str | None:
        return f"if you put an older database back yourself, remove {self.path}"

    def read(self) -> Head:
        """Raises FormatError if the file is something else."""
        try:
            with self.path.open("rb") as file:
                text = file.read(200).decode("ascii", "replace")
        except FileNotFoundError:
            return NO_ENTRIES
        try:
            return Head.parse(text.removesuffix("\n"))
        except FormatError as error:
            raise FormatError(f"{self.path}: {error.message}", hint=self.hint) from None

    def advance(self, head: Head) -> None:
        if head.size > self.read().size:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace(self.path, f"{head}\n".encode())


Ask = Callable[[str, Mapping[str, object]], dict[str, object]]
"""POST a JSON object to a path on one connection; the answer's. Raises what the CAS reports."""
Greeting = Callable[[TlsStream, Ask], None]
"""What is done on each new connection before the first request."""

_PATIENCE = 10
"""Seconds that a client waits at most where a CAS says that it is asked too much."""
_TRIES = 3


class CasHttp(HttpClient):
    """An HTTP client of one CAS that holds it to its log, and comes back later where the CAS says when.

    Args:
        heads: where the highest head is remembered; the others are those of `HttpClient`.
        greetings: done in order on each connection, once the CAS is known to be the one that is meant.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        dial: Callable[[], socket.socket],
        *,
        host: str,
        expect: Expect,
        heads: HeadMemory,
        max_body: int,
        timeout: float,
        identity: Identity | None = None,
        greetings: Sequence[Greeting] = (),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(dial, host=host, expect=expect, identity=identity, max_body=max_body, timeout=timeout)
        self._heads = heads
        self._greetings, self._sleep = greetings, sleep

    def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | Sequence[bytes | memoryview] = b"",
        headers: Mapping[str, str] | None = None,
        fresh: bool = False,
    ) -> Response:
        """As `HttpClient.request`.

        Raises:
            RollbackError: the log of the CAS is no extension of what was seen of it; the CAS says so, or its answer, or
                its proof.
        """
        seen = self._heads.read()
        carried = {**(headers or {}), HEAD_HEADER: str(seen)}
        response = self._patient(method, path, body=body, headers=carried, fresh=fresh)
        text = response.headers.get(HEAD_HEADER)
        if text is None:
            self._check_refusal(response)
            return response
        head = Head.parse(text)
        if head.size < seen.size or (head.size == seen.size and head.root != seen.root):
            raise RollbackError(
                f"log: the CAS's head is {head.size} entries, and it had {seen.size}, or others", hint=self._heads.hint
            )
        if 0 < seen.size < head.size:
            brought = response.headers.get(PROOF_HEADER)
            if brought is None:
                self._prove(seen, head, fresh=fresh)
            else:
                self._verify(seen, head, read_hashes(brought.split(",") if brought else []))
        self._heads.advance(head)
        return response

    def connect(self) -> TlsStream:
        """As `HttpClient.connect`, with the greetings."""
        if self._stream is not None:
            return self._stream
        stream = super().connect()

        def ask(path: str, value: Mapping[str, object]) -> dict[str, object]:
            body = json.dumps(value).encode()
            return self._exchange(stream, "POST", path, [body], _JSON).expect_ok().json()

        try:
            for greet in self._greetings:
                greet(stream, ask)
        except BaseException:
            self.close()
            raise
        return stream

    def _patient(
        self,
        method: str,
        path: str,
        *,
        body: bytes | Sequence[bytes | memoryview],
        headers: Mapping[str, str],
        fresh: bool,
    ) -> Response:
        """Ask, and where the CAS says that it is too much, at most twice again when it says, if that is soon."""
        for left in reversed(range(_TRIES)):
            response = super().request(method, path, body=body, headers=headers, fresh=fresh)
            after = response.headers.get("retry-after", "")
            if response.status != 429 or not left or not (after.isascii() and after.isdigit() and len(after) < 4):
                break
            if int(after) > _PATIENCE:
                break
            self._sleep(int(after))
        return response

    def _prove(self, old: Head, new: Head, *, fresh: bool) -> None:
        path = f"/v1/log/consistency?from={old.size}&to={new.size}"
        response = super().request("GET", path, headers={HEAD_HEADER: str(old)}, fresh=fresh)
        if HEAD_HEADER not in response.headers:
            self._check_refusal(response)
        self._verify(old, new, read_hashes(response.expect_ok().json().get("hashes")))

    def _verify(self, old: Head, new: Head, proof: Sequence[bytes]) -> None:
        try:
            verify_consistency(old.size, old.root, new.size, new.root, proof)
        except RollbackError as error:
            error.hint = "; ".join(filter(None, (error.hint, self._heads.hint)))
            raise

    def _check_refusal(self, response: Response) -> None:
        """An answer without a head: what the CAS says of the caller's head, or of a request that it did not read."""
        if 200 <= response.status < 300:
            raise ChannelError("answer: says nothing of the log's head", hint="is the CAS of an older version?")
        if response.status == 409:
            try:
                response.expect_ok()
            except RollbackError as error:
                error.hint = "; ".join(filter(None, (error.hint, self._heads.hint)))
                raise
