"""What an operator, a balancer or an administrator asks of a CAS: whether it is well, and what the caller has in it."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from strongroom import __version__
from strongroom.cas.api.callers import callers
from strongroom.cas.api.context import Context
from strongroom.cas.api.endpoint import Endpoint
from strongroom.cas.api.forms import BOOLEAN, DIGEST, HEAD, NUMBER, OBJECT, POLICY, TEXT, listed, or_null, table
from strongroom.cas.callers.administrators import RIGHTS, Principal
from strongroom.cas.log.note import Note, WitnessKey
from strongroom.errors import DatabaseError, StrongroomError

_SCANNED = 200
"""Policies that one request looks at, whosever they are."""

_WITNESS = {"name": TEXT, "size": or_null(NUMBER), "age": or_null(NUMBER)}
_PEER = {"answers": BOOLEAN, "size": or_null(NUMBER), "age": or_null(NUMBER)}
_STATUS = {
    "service": TEXT,
    "version": TEXT,
    "cas_root": DIGEST,
    "time": NUMBER,
    "uptime": NUMBER,
    "ready": BOOLEAN,
    "waiting": TEXT,
    "head": HEAD,
    "witnesses": listed(table(_WITNESS)),
    "peers": listed(table(_PEER)),
    "about": OBJECT,
}
_POLICY = {
    "policy": POLICY,
    "version": NUMBER,
    "digest": DIGEST,
    "role": TEXT,
    "rights": listed({"enum": list(RIGHTS)}),
    "owners": or_null(table({"threshold": NUMBER, "of": NUMBER})),
    "instances": or_null(NUMBER),
    "live": or_null(NUMBER),
    "expires": or_null(NUMBER),
    "changed": NUMBER,
}


class StatusApi:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = context.store

    def endpoints(self) -> Sequence[Endpoint]:
        return (
            Endpoint(
                "GET",
                "/v1/health",
                self.health,
                "Whether it lives and is ready: 503 where it is not ready",
                "anybody",
                response={"live": BOOLEAN, "ready": BOOLEAN, "waiting": TEXT},
                held=False,
                early=True,
            ),
            Endpoint("GET", "/v1/status", self.status, "How the CAS is", "anybody", response=_STATUS, early=True),
            Endpoint(
                "GET",
                "/v1/policies",
                self.policies,
                "The caller's policies",
                "owner",
                query={"after?": TEXT},
                response={"policies": listed(table(_POLICY)), "next": or_null(TEXT)},
            ),
        )

    async def health(self, request: Request) -> Response:
        waiting = self._waiting()
        answer = {"live": True, "ready": not waiting, "waiting": waiting}
        return JSONResponse(answer, status_code=503 if waiting else 200)

    async def status(self, request: Request) -> Response:
        context, waiting = self._context, self._waiting()
        now = context.now()
        return JSONResponse(
            {
                "service": "strongroom-cas",
                "version": __version__,
                "cas_root": context.authority.cas_root,
                "time": now,
                "uptime": max(0, now - context.started),
                "ready": not waiting,
                "waiting": waiting,
                "head": str(self._store.head()),
                "witnesses": witnesses(context, now),
                "peers": peers(context, now),
                "about": {
                    "restart": context.gate.restart.told,
                    "evidence": "none" if context.attester is None else context.attester.tee,
                    "namespaces": "allotted" if context.operation.allotted else "open",
                    "tokens": context.operation.authenticator is not None,
                    **context.operation.about,
                },
            }
        )

    def _waiting(self) -> str:
        """What the CAS waits for before it serves; empty if it serves."""
        try:
            self._store.head()
        except DatabaseError:
            return "the CAS's database cannot be used now"  # its own messages have the address and the reason
        except StrongroomError as error:
            return error.message
        return self._context.waiting()

    async def policies(self, request: Request) -> Response:
        """One page of those that the caller administers in any way."""
        known, after = callers(self._context, request), request.query_params.get("after", "")
        with self._store.reading():
            names = [name for name in self._store.row_groups("policies") if name > after]
            page = names[:_SCANNED]
            mine = [told for name in page if (told := self._told(name, known))]
        return JSONResponse({"policies": mine, "next": page[-1] if len(names) > len(page) else None})

    def _told(self, name: str, known: Sequence[Principal]) -> dict[str, object] | None:
        if not {str(one) for one in known} & {self._store.owner(name), *self._store.administrators(name)}:
            return None  # without a look at the policy: there may be many
        policy = self._store.policy(name)
        rights = [right for right in RIGHTS if any(one.may(policy, right) for one in known)]
        if not rights:
            return None
        owners = policy.owners
        return {
            "policy": name,
            "version": policy.version,
            "digest": policy.digest,
            "role": policy.role,
            "rights": rights,
            "owners": None if owners is None else {"threshold": owners.threshold, "of": len(owners.keys)},
            "instances": policy.instances,
            "live": self._context.live(name),
            "expires": policy.expires,
            "changed": self._store.policy_changed(name),
        }


def witnesses(context: Context, now: int) -> list[dict[str, object]]:
    """Each witness that the CAS was told of, with the size and the age of the head that it cosigned last."""
    found: list[dict[str, object]] = []
    notes = [Note.parse(text) for text in context.store.cosigned()]
    for witness in context.witnesses:
        size, age = _latest(witness, notes, now)
        found.append({"name": witness.name, "size": size, "age": age})
    return found


def peers(context: Context, now: int) -> list[dict[str, object]]:
    """Each other instance, with the size of its log and how many seconds ago it was held to this one's."""
    states = context.peers.states if context.peers is not None else ()
    return [
        {
            "answers": not state.problem,
            "size": state.size,
            "age": None if state.seen is None else max(0, now - state.seen),
        }
        for state in states
    ]


def _latest(witness: WitnessKey, notes: Sequence[Note], now: int) -> tuple[int | None, int | None]:
    for note in notes:
        time = witness.verify(note)
        if time is not None:
            return int(note.text.split("\n")[1]), max(0, now - time)
    return None, None
