"""The CAS's log over HTTP: its signed head and proofs for everybody, entries for those whom they concern.

Rules:

- A request that carries a head which the log does not extend is refused before anything else is done, and that refusal
  alone carries no head. All other answers carry the log's.
- Of the entries of others a caller sees hashes only, and those tell nothing: each entry is salted.
- A cosignature is kept if a witness that the CAS was told of made it, over a head that the CAS has signed and still
  extends.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from strongroom.cas.api.bodies import number, read_body
from strongroom.cas.api.callers import owner_key
from strongroom.cas.api.context import Context
from strongroom.cas.api.endpoint import Endpoint, Handler
from strongroom.cas.log_head import HEAD_HEADER, Head
from strongroom.cas.log_note import Note, log_key_id, verify_cas_checkpoint
from strongroom.cas.store import Store
from strongroom.cas.wire import b64, text_field
from strongroom.errors import UnauthorizedError

PAGE = 1000
PROVED_PAGE = 250
"""Entries in one page; with their proofs, of at most 63 hashes each."""


def hold(store: Store, handler: Handler) -> Handler:
    """Hold the CAS to its log: check the caller's head, and tell the log's with the answer.

    Raises (in the handler that it gives):
        RollbackError: the log does not extend what the caller has seen.
    """

    async def held(request: Request) -> Response:
        seen = request.headers.get(HEAD_HEADER)
        if seen is not None:
            store.check_head(Head.parse(seen))
        response = await handler(request)
        response.headers[HEAD_HEADER] = str(store.head())
        return response

    return held


class LogApi:
    def __init__(self, context: Context) -> None:
        self._store, self._authority, self._witnesses = context.store, context.authority, context.witnesses
        self._signed: tuple[Head, Note] | None = None

    def endpoints(self) -> Sequence[Endpoint]:
        return (
            Endpoint(
                "GET", "/v1/log", self.entries, "Entries of the caller's policies", "owner", query=("after", "proofs")
            ),
            Endpoint("GET", "/v1/log/head", self.head, "The log's signed head", "anybody"),
            Endpoint(
                "GET",
                "/v1/log/consistency",
                self.consistency,
                "That one head extends another",
                "anybody",
                query=("from", "to"),
            ),
            Endpoint("POST", "/v1/log/cosignatures", self.cosign, "Leave a witness's cosignature", "anybody"),
        )

    async def entries(self, request: Request) -> Response:
        """One page of the log: what of it belongs to the caller's policies, and where the next page starts."""
        owner = owner_key(request).fingerprint
        after = number(request, "after", 0)
        size = number(request, "proofs") if "proofs" in request.query_params else None
        limit = PAGE if size is None else PROVED_PAGE
        page = self._store.log(after=after, limit=limit)
        full = len(page) == limit
        if size is not None:
            page = [entry for entry in page if entry.number <= size]
        owned = {name for name in {e.policy for e in page} if self._store.owner(name) == owner}
        mine = [entry for entry in page if entry.policy in owned]
        shown = [entry.to_wire() for entry in mine]
        if size is not None:
            proofs = self._store.inclusion([entry.number for entry in mine], size)
            for wire, proof in zip(shown, proofs, strict=True):
                wire["proof"] = _hex(proof)
        more = full and len(page) == limit
        return JSONResponse({"entries": shown, "next": page[-1].number if more else None})

    async def head(self, request: Request) -> Response:
        """The head, signed; the key that signed it; and what witnesses have cosigned lately."""
        head = self._store.head()
        if self._signed is None or self._signed[0] != head:
            self._signed = (head, self._authority.sign_head(head.size, head.root))
        return JSONResponse(
            {
                "checkpoint": str(self._signed[1]),
                "key": b64(self._authority.root_key.spki),
                "witnessed": self._store.cosigned(),
            }
        )

    async def consistency(self, request: Request) -> Response:
        """The proof that the log of one size begins with the log of another."""
        hashes = self._store.consistency(number(request, "from"), number(request, "to"))
        return JSONResponse({"hashes": _hex(hashes)})

    async def cosign(self, request: Request) -> Response:
        """Keep a witness's cosignature."""
        note = Note.parse(text_field(await read_body(request), "note"))
        checkpoint = verify_cas_checkpoint(note, self._authority.cas_root, self._authority.root_key)
        self._store.check_head(Head(checkpoint.size, checkpoint.root))
        own = note.by(checkpoint.origin, log_key_id(self._authority.root_key))
        kept = []
        for witness in self._witnesses:
            time = witness.verify(note)
            if time is not None:
                lines = (*own, *note.by(witness.name, witness.key_id))
                self._store.put_cosigned(str(witness), checkpoint.size, time, str(Note(note.text, lines)))
                kept.append(witness.name)
        if not kept:
            raise UnauthorizedError(
                "note: holds no cosignature of a witness that this CAS knows",
                hint="start the CAS with --witness and the witness's key, which `strongroom cas witness` prints",
            )
        return JSONResponse({"kept": kept})


def _hex(hashes: Sequence[bytes]) -> list[str]:
    return [value.hex() for value in hashes]
