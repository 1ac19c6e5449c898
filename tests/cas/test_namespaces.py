"""Namespaces belong to tenants: who makes policies in them, who says so, and what others learn of them."""

from __future__ import annotations

import datetime as dt
import json
from collections import defaultdict
from collections.abc import Iterator

import pytest

from strongroom.cas.api.operation import Operation
from strongroom.cas.callers.namespaces import Namespaces
from strongroom.cas.client.address import cas_expectation
from strongroom.cas.policy.version import parse_policy, sign_policy
from strongroom.cas.service.app import described
from strongroom.cas.start.mode import Restart
from strongroom.cas.state.store import Store
from strongroom.cas.wire import b64
from strongroom.channel import HttpClient, Identity
from strongroom.crypto import SigningKey
from strongroom.errors import ConflictError, FormatError, StrongroomError, UnauthorizedError, UsageError
from strongroom.sealed import Root
from tests.cas.world import TOKEN, VAULT_KEY, Cas, World, cas_in, document, world_in

OPERATOR = SigningKey.generate()


@pytest.fixture(scope="module")
def operated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cas]:
    """A CAS with an operator, who allots its namespaces."""
    restart = Restart(operators=(OPERATOR.public.fingerprint,), needed=1)
    with cas_in(tmp_path_factory.mktemp("allotted"), operation=Operation(allotted=True), restart=restart) as cas:
        yield cas


def make(cas: Cas, key: SigningKey, name: str) -> None:
    with cas.owner(key) as client:
        client.apply(document(key, name=name, vendor_root=cas.vendor.root_digest, more=""))


def namespace(world: World) -> str:
    return world.name.partition("/")[0]


def test_the_first_policy_takes_the_namespace_and_others_keep_out(world):
    name, other = namespace(world), SigningKey.generate()
    make(world.cas, world.owner, f"{name}/second")
    with pytest.raises(UnauthorizedError, match=f"namespace {name}: is another's"):
        make(world.cas, other, f"{name}/mine")
    assert world.client.namespace(name) == {
        "namespace": name,
        "owners": [world.owner.public.fingerprint],
        "members": [],
    }


def test_a_refused_policy_takes_no_namespace(cas):
    one, two = SigningKey.generate(), SigningKey.generate()
    with cas.owner(one) as client, pytest.raises(StrongroomError, match=r"policy\.version: got 2, wanted 1"):
        text = document(one, name="refused/x", version=2, previous="sha256:" + "0" * 64, vendor_root=None, more="")
        client.apply(text)
    make(cas, two, "refused/x")


def test_who_is_allowed_makes_policies_until_it_is_removed_and_keeps_them(world):
    name, other = namespace(world), SigningKey.generate()
    key = other.public.fingerprint
    assert world.client.allow_in_namespace(name, key)["members"] == [key]
    assert world.client.allow_in_namespace(name, key)["members"] == [key]
    make(world.cas, other, f"{name}/theirs")
    with world.cas.owner(other) as client:  # a member is no owner
        with pytest.raises(UnauthorizedError, match="is not the caller's"):
            client.allow_in_namespace(name, SigningKey.generate().public.fingerprint)
        with pytest.raises(UnauthorizedError, match="has not the right"):
            client.put_secret(world.name, "token", b"x")
    assert world.client.remove_from_namespace(name, key)["members"] == []
    entries = [json.loads(e["detail"]) for e in world.client.log() if (e["event"], e["policy"]) == ("namespace", name)]
    by = world.owner.public.fingerprint
    assert entries == [{"allowed": key, "by": by}, {"by": by, "removed": key}]
    with pytest.raises(UnauthorizedError, match="is another's"):
        make(world.cas, other, f"{name}/more")
    with world.cas.owner(other) as client:
        current = client.policy(f"{name}/theirs")
        assert client.apply(
            document(
                other,
                name=current.name,
                version=2,
                previous=current.digest,
                vendor_root=world.cas.vendor.root_digest,
                more="",
            )
        )
    with pytest.raises(ConflictError, match="is its owner's"):
        world.client.remove_from_namespace(name, world.owner.public.fingerprint)


def test_strangers_learn_nothing_of_a_namespace(world):
    with world.cas.owner() as stranger:
        said = []
        for name in (namespace(world), "nobody"):
            with pytest.raises(UnauthorizedError) as refused:
                stranger.namespace(name)
            said.append(refused.value.message.replace(name, "NAME"))
        assert said[0] == said[1]
        world.client.allow_in_namespace(namespace(world), SigningKey.generate().public.fingerprint)
        assert stranger.log() == []


def test_a_namespace_of_before_belongs_to_all_who_own_a_policy_in_it(tmp_path):
    keys = [SigningKey.generate() for _ in range(3)]
    store = Store(tmp_path)
    try:
        for number, key in enumerate(keys[:2]):
            text = document(key, name=f"old/{number}", vendor_root="sha256:" + "0" * 64, more="")
            store.put_policy(parse_policy(text), sign_policy(text, key), key.public, now=1)
        namespaces = Namespaces(store)
        found = namespaces.get("old")
        assert found is not None and set(found.owners) == {key.public.fingerprint for key in keys[:2]}
        assert namespaces.admit("old/new", keys[1].public.fingerprint) == []
        with pytest.raises(UnauthorizedError, match="is another's"):
            namespaces.admit("old/new", keys[2].public.fingerprint)
        assert namespaces.get("older") is None
    finally:
        store.close()


def test_an_operator_allots_and_nobody_takes(operated):
    tenant, other = SigningKey.generate(), SigningKey.generate()
    with pytest.raises(UnauthorizedError, match="namespace tenant: is not allotted"):
        make(operated, tenant, "tenant/x")
    with operated.owner(tenant) as client, pytest.raises(UnauthorizedError, match="tenant: is not the caller's"):
        client.allot_namespace("tenant", tenant.public.fingerprint)
    with operated.owner(OPERATOR) as operator:
        operator.allot_namespace("tenant", tenant.public.fingerprint)
        make(operated, tenant, "tenant/x")
        operator.allot_namespace("tenant", other.public.fingerprint)  # the tenant has a new key
        assert operator.namespace("tenant")["owners"] == [other.public.fingerprint]
        with pytest.raises(UsageError, match="is the CAS's own"):
            operator.allot_namespace("strongroom", tenant.public.fingerprint)
        with pytest.raises(FormatError, match="namespace: got 'Bad'"):
            operator.allot_namespace("Bad", tenant.public.fingerprint)
        with pytest.raises(FormatError, match="key: got"):
            operator.allot_namespace("x", "sha256:")
        assert [json.loads(e["detail"])["allotted"] for e in operator.log() if e["policy"] == "tenant"] == [
            tenant.public.fingerprint,
            other.public.fingerprint,
        ]
    with operated.owner(other) as client:  # its owner gives it away and gets it back
        assert client.allot_namespace("tenant", tenant.public.fingerprint)["owners"] == [tenant.public.fingerprint]
        with pytest.raises(UnauthorizedError, match="is not the caller's"):
            client.allot_namespace("tenant", other.public.fingerprint)
    with operated.owner(tenant) as client:
        client.allot_namespace("tenant", other.public.fingerprint)
    make(operated, other, "tenant/y")
    with pytest.raises(UnauthorizedError, match="is another's"):
        make(operated, tenant, "tenant/z")


# Every endpoint, by another tenant's administrator

_ENDPOINTS = sorted(
    (method.upper(), path)
    for path, operations in described()["paths"].items()
    for method, operation in operations.items()
    if "{" in path and operation["security"]
)


@pytest.fixture(scope="module")
def tenants(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, World]]:
    with cas_in(tmp_path_factory.mktemp("tenants")) as cas, world_in(cas) as one, world_in(cas) as two:
        yield one, two


def _filled(path: str, world: World) -> str:
    """A path of that world's policy; what the path names besides is there where a policy can have it."""
    namespace, name = world.name.split("/")
    values = {"namespace": namespace, "name": name, "vault": "data", "secret": "token", "slot": "0" * 32}
    return path.format_map(defaultdict(lambda: "sha256:" + "0" * 64, values))


def _body(method: str, path: str, victim: World, other: World) -> dict[str, object]:
    """A request that would be good if the policy were the caller's."""
    schema = described()["paths"][path][method.lower()].get("requestBody")
    if schema is None:
        return {}
    root, current = victim.cas.vendor.root_digest, victim.policy
    text = document(other.owner, name=current.name, version=2, previous=current.digest, vendor_root=root)
    values: dict[str, object] = {
        "text": text,
        "signature": b64(sign_policy(text, other.owner)),
        "value": b64(b"x"),
        "new": str(Root(9, b"\1" * 32)),
        "to": other.owner.public.fingerprint,
        "key": b64(bytes(32)),
        "all": True,
    }
    properties = schema["content"]["application/json"]["schema"].get("properties", {})
    return {name: values[name] for name in properties if name in values}


@pytest.mark.parametrize(("method", "path"), _ENDPOINTS, ids=lambda value: str(value))
def test_another_tenant_s_administrator_gets_nowhere_and_learns_nothing(tenants, method, path):
    victim, other = tenants
    before = victim.client.log()
    identity = Identity.of_key(other.owner, "other", now=dt.datetime.now(dt.UTC))
    expect = cas_expectation(victim.cas.address.cas_root)
    with HttpClient(victim.cas.dial, host="cas", expect=expect, identity=identity) as http:
        body = json.dumps(_body(method, path, victim, other)).encode()
        headers = {"content-type": "application/json"}
        answer = http.request(method, _filled(path, victim), body=body, headers=headers)
    assert answer.status in (401, 403, 404), (answer.status, answer.body)
    assert TOKEN not in answer.body and b64(VAULT_KEY).encode() not in answer.body
    assert victim.client.log() == before
