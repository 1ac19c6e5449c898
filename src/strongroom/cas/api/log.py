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
from strongroom.cas.api.callers import callers
from strongroom.cas.api.context import Context
from strongroom.cas.api.endpoint import Endpoint, Handler
from strongroom.cas.api.forms import BASE64, HASH, NOTE, NUMBER, TEXT, listed, matching, or_null, table
from strongroom.cas.callers.administrators import Principal
from strongroom.cas.callers.namespaces import Namespaces
from strongroom.cas.log.head import HEAD_HEADER, NO_ENTRIES, PROOF_HEADER, Head
from strongroom.cas.log.note import Note, WitnessKey, log_key_id, verify_cas_checkpoint
from strongroom.cas.start.mode import RESERVED
from strongroom.cas.state.store import Store
from strongroom.cas.wire import b64, text_field
from strongroom.errors import FormatError, UnauthorizedError

PAGE = 1000
PROVED_PAGE = 250
"""Entries in one page; with their proofs, of at most 63 hashes each."""


_ENTRY = {
    "number": NUMBER,
    "time": NUMBER,
    "event": matching("[a-z]+(?:-[a-z]+)*"),
    "policy": TEXT,
    "detail": TEXT,
    "previous": NUMBER,
    "salt": matching("[0-9a-f]{32}"),
    "proof?": listed(HASH),
}


def hold(store: Store, handler: Handler) -> Handler:
    """Hold the CAS to its log: check the caller's head, and tell the log's with the answer.

    Raises (in the handler that it gives):
        RollbackError: the log does not extend what the caller has seen.
    """

    async def held(request: Request) -> Response:
        given = request.headers.getlist(HEAD_HEADER)
        if len(given) > 1:
            raise FormatError(f"{HEAD_HEADER}: given {len(given)} times, wanted once")
        seen = Head.parse(given[0]) if given else NO_ENTRIES
        if given:
            store.check_head(seen)
        response = await handler(request)
        head = store.head()
        response.headers[HEAD_HEADER] = str(head)
        if 0 < seen.size < head.size:
            response.headers[PROOF_HEADER] = ",".join(_hex(store.consistency(seen.size, head.size)))
        return response

    return held


class LogApi:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._store, self._authority, self._witnesses = context.store, context.authority, context.witnesses
        self._namespaces = Namespaces(context.store)
        self._gate, self._now = context.gate, context.now
        self._signed: tuple[Head, tuple[str, ...], Note] | None = None

    def endpoints(self) -> Sequence[Endpoint]:
        return (
            Endpoint(
                "GET",
                "/v1/log",
                self.entries,
                "Entries of the caller's policies",
                "owner",
                query={"after?": NUMBER, "proofs?": NUMBER},
                response={"entries": listed(table(_ENTRY)), "next": or_null(NUMBER)},
            ),
            Endpoint(
                "GET",
                "/v1/log/head",
                self.head,
                "The log's signed head",
                "anybody",
                response={"checkpoint": NOTE, "key": BASE64, "witnessed": listed(NOTE)},
                early=True,
            ),
            Endpoint(
                "GET",
                "/v1/log/consistency",
                self.consistency,
                "That one head extends another",
                "anybody",
                query={"from": NUMBER, "to": NUMBER},
                response={"hashes": listed(HASH)},
                early=True,
            ),
            Endpoint(
                "POST",
                "/v1/log/cosignatures",
                self.cosign,
                "Leave a witness's cosignature",
                "anybody",
                request={"note": NOTE},
                response={"kept": listed(TEXT)},
                early=True,
            ),
        )

    async def entries(self, request: Request) -> Response:
        """One page of the log: what of it belongs to the caller's policies, and where the next page starts."""
        known = callers(self._context, request)
        after = number(request, "after", 0)
        size = number(request, "proofs") if "proofs" in request.query_params else None
        with self._store.reading():
            shown, following = self._page(known, after, size)
        return JSONResponse({"entries": shown, "next": following})

    def _page(
        self, known: Sequence[Principal], after: int, size: int | None
    ) -> tuple[list[dict[str, object]], int | None]:
        limit = PAGE if size is None else PROVED_PAGE
        page = self._store.log(after=after, limit=limit)
        full = len(page) == limit
        if size is not None:
            page = [entry for entry in page if entry.number <= size]
        shown_of = {name for name in {e.policy for e in page} if self._may_see(name, known)}
        mine = [entry for entry in page if entry.policy in shown_of]
        shown = [entry.to_wire() for entry in mine]
        if size is not None:
            proofs = self._store.inclusion([entry.number for entry in mine], size)
            for wire, proof in zip(shown, proofs, strict=True):
                wire["proof"] = _hex(proof)
        more = full and len(page) == limit
        return shown, page[-1].number if more else None

    def _may_see(self, name: str, known: Sequence[Principal]) -> bool:
        """Whether a caller may see the entries of a policy, or of a namespace."""
        keys = {one.key for one in known if one.key}
        if "/" not in name or name == RESERVED:
            found = self._namespaces.get(name) if name != RESERVED else None
            if keys & {*self._namespaces.operators(), *(found.owners if found else ())}:
                return True
        owner = self._store.owner(name)
        if owner is None:
            return False
        if owner in keys:
            return True
        others = self._store.administrators(name)  # of a thousand policies, none of which is to be parsed
        return any("log" in others.get(str(one), ()) for one in known)

    async def head(self, request: Request) -> Response:
        """The head, signed; the key that signed it; and what witnesses have cosigned lately."""
        head, extension = self._store.head(), self._gate.extension
        if self._signed is None or self._signed[:2] != (head, extension):
            self._signed = (head, extension, self._authority.sign_head(head.size, head.root, extension))
        return JSONResponse(
            {
                "checkpoint": str(self._signed[2]),
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
        kept: list[WitnessKey] = []
        for witness in self._witnesses:
            time = witness.verify(note)
            if time is not None:
                lines = (*own, *note.by(witness.name, witness.key_id))
                self._store.put_cosigned(str(witness), checkpoint.size, time, str(Note(note.text, lines)))
                kept.append(witness)
        if not kept:
            raise UnauthorizedError(
                "note: holds no cosignature of a witness that this CAS knows",
                hint="start the CAS with --witness and the witness's key, which `strongroom cas witness` prints",
            )
        self._gate.cosigned(note, kept, now=self._now())
        return JSONResponse({"kept": [witness.name for witness in kept]})


def _hex(hashes: Sequence[bytes]) -> list[str]:
    return [value.hex() for value in hashes]
