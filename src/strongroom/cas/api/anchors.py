"""Anchors of sealed things: the root that is the latest, told to and moved by enclaves and administrators."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from strongroom.cas.api.bodies import policy_name, read_body
from strongroom.cas.api.callers import attested_lease, require
from strongroom.cas.api.context import Context
from strongroom.cas.api.endpoint import Caller, Endpoint
from strongroom.cas.api.forms import BOOLEAN, NUMBER, ROOT, SIGNATURE, TEXT, listed, or_null, table
from strongroom.cas.enclaves.leases import Lease
from strongroom.cas.policy.owners import MAX_OWNERS, read_signatures
from strongroom.cas.policy.places import SealedRule, VaultRule
from strongroom.cas.policy.restores import MAX_REASON, Restore, Restored, check_reason, goes_back
from strongroom.cas.policy.version import Policy
from strongroom.cas.wire import text_field
from strongroom.channel import tls_info
from strongroom.errors import FormatError, PolicyError, UnauthorizedError
from strongroom.sealed import Root

_RESTORE = table(
    {
        "reason": TEXT | {"minLength": 1, "maxLength": MAX_REASON},
        "signatures?": listed(SIGNATURE, maxItems=2 * MAX_OWNERS),
    },
    closed=True,
)


class AnchorsApi:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = context.store

    def endpoints(self) -> Sequence[Endpoint]:
        path = "/v1/policies/{namespace}/{name}/anchors/{vault}"
        caller: Caller = "owner or attested enclave"
        return (
            Endpoint(
                "GET",
                path,
                self.get,
                "The newest root of a vault",
                caller,
                response={"root": or_null(ROOT), "entry": NUMBER},
            ),
            Endpoint(
                "PUT",
                path,
                self.put,
                "Move a vault's anchor",
                caller,
                request={"old?": or_null(ROOT), "new": ROOT, "fence?": BOOLEAN, "restore?": _RESTORE},
                response={},
                description="An enclave's move is refused once one of a later lease has made one, or an administrator "
                "one with fence: true. None goes back to an older root without `restore`, which is an administrator's; "
                "where the policy has owners, as many of them sign it as sign its versions.",
            ),
        )

    async def get(self, request: Request) -> Response:
        policy, _, _ = self._may_use(request, write=False)
        with self._store.reading():
            root = self._store.anchor(policy.name, request.path_params["vault"])
            entry = self._store.anchored(policy.name, request.path_params["vault"])
        return JSONResponse({"root": None if root is None else str(root), "entry": entry})

    async def put(self, request: Request) -> Response:
        body = await read_body(request)
        policy, lease, by = self._may_use(request, write=True)
        vault = request.path_params["vault"]
        old = None if body.get("old") is None else Root.parse(text_field(body, "old"))
        new = Root.parse(text_field(body, "new"))
        with self._store.transaction():
            # The entry of the move has the next number, which every lease until now is lower than.
            fence = self._store.head().size + 1 if body.get("fence") is True else 0
            self._store.advance_anchor(
                policy.name,
                vault,
                old,
                new,
                restored=self._restored(policy, lease, vault, old, new, body.get("restore")),
                now=self._context.now(),
                by=by,
                lease=lease.number if lease else fence,
            )
        return JSONResponse({})

    def _restored(
        self, policy: Policy, lease: Lease | None, vault: str, old: Root | None, new: Root, wire: object
    ) -> Restored | None:
        """Who authorises that the anchor goes back; None if it does not, or if the move is one that changes nothing.

        Raises:
            UnauthorizedError: an enclave asks, or too few of the policy's owners have signed.
            VerificationError: a signature is of another restore.
        """
        if wire is None:
            return None
        if lease is not None:
            raise UnauthorizedError("restore: is an administrator's to make, and no enclave's")
        if not isinstance(wire, dict) or set(wire) - {"reason", "signatures"}:
            raise FormatError("restore: wanted an object of reason and signatures")
        reason, signatures = check_reason(text_field(wire, "reason")), read_signatures(wire.get("signatures", []))
        if old is None or not goes_back(old, new) or self._store.anchor(policy.name, vault) != old:
            return None
        if policy.owners is None:
            if signatures:
                raise UnauthorizedError(f"restore: policy {policy.name} has no owners who sign")
            return Restored(reason)
        entry = self._store.anchored(policy.name, vault)
        restore = Restore(self._context.authority.cas_root, policy.name, vault, old, new, reason, entry)
        restore.check(signatures, policy.owners)
        return Restored(reason, tuple(one.key for one in signatures))

    def _may_use(self, request: Request, *, write: bool) -> tuple[Policy, Lease | None, str]:
        """The policy whose anchor it is, and the lease of the enclave that asks, or who the administrator is."""
        policy = self._store.policy(policy_name(request))
        name, attested = request.path_params["vault"], tls_info(request.scope).session.get("attested")
        enclave = attested is not None and (
            attested[0] == policy.name or (not write and self._imports(attested[0], policy.name, name))
        )
        rule = policy.vault(name) or policy.sealed_file(name)
        kind = "sealed" if policy.sealed_file(name) else "vault"
        lease, by = None, ""
        if enclave:
            _, lease = attested_lease(self._context, request)
        else:
            by = str(require(self._context, request, policy, "anchors", f"{kind}:{name}"))
        if rule is None:
            raise PolicyError(
                f"vault: policy {policy.name} names none called {name[:80]!r}",
                hint="`strongroom cas show` prints the policy; add the vault in its next version",
            )
        if lease is not None and write and rule.access_of(lease.replica) == "read-only":
            others = f"; its writers are the replicas {', '.join(map(str, rule.writers))}" if rule.writers else ""
            raise UnauthorizedError(
                f"vault {rule.name}: this enclave may only read it{others}",
                hint='to let it write, say access = "read-write" in the next version, and name it among its writers',
            )
        return policy, lease, by

    def _imports(self, importer: str, exporter: str, name: str) -> bool:
        """Whether one policy imports that of another; that it may was found when its enclave attested."""
        policy = self._store.policy(importer)
        rules: tuple[VaultRule | SealedRule, ...] = (*policy.vaults, *policy.sealed)
        return any(rule.source == exporter and rule.name == name for rule in rules)
