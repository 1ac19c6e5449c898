"""What an attested enclave receives: secrets for templates, sealed files, access by replica, what it must enforce."""

from __future__ import annotations

import pytest

from strongroom.cas.client.outside import Reached, Served
from strongroom.cas.policy.templates import parse_template
from strongroom.errors import FormatError, PolicyError, UnauthorizedError
from strongroom.sealed import Root
from tests.cas.world import VAULT_KEY, world_in

ONE, TWO = (Root(n, bytes([n]) * 32) for n in (1, 2))
TEMPLATED = """
[program]
command = ["serve", "--token=${secret.token}"]
[program.environment]
URL = "https://u:${secret.password}@db"
[[secrets]]
name = "token"
[[secrets]]
name = "password"
[[secrets]]
name = "blob"
[[files]]
path = "/secrets/blob"
content = "${secret.blob}"
"""
SEALED = """
[program]
command = ["a"]
[[sealed]]
name = "model"
path = "/models/m.onnx"
access = "read-only"
[[sealed]]
name = "state"
path = "/state/s.bin"
access = "read-write"
"""


def test_secrets_for_templates_are_delivered_by_name_and_in_no_variable(cas):
    with world_in(cas, more="") as world, world.session() as session:
        world.renew(more=TEMPLATED)
        secrets = {"token": b"swordfish", "password": b"sesame", "blob": b"\0\xff"}
        for name, value in secrets.items():
            world.client.put_secret(world.name, name, value)
        got, program = session.attest(), world.policy.program
    assert (got.secrets, got.environment) == (secrets, {})
    assert "swordfish" not in repr(got)
    assert [parse_template(word).render(got.secrets) for word in program.command] == ["serve", "--token=swordfish"]


@pytest.mark.parametrize("name", ["token", "password"])
def test_a_zero_byte_is_for_files_only(cas, name):
    with world_in(cas, more="") as world:
        world.renew(more=TEMPLATED)
        with pytest.raises(FormatError, match="zero byte"):
            world.client.put_secret(world.name, name, b"a\0b")


def test_a_zero_byte_that_a_new_version_wants_as_a_variable_is_refused(cas):
    with world_in(cas, more="") as world, world.session() as session:
        world.renew(more='[[secrets]]\nname = "blob"\n')
        world.client.put_secret(world.name, "blob", b"a\0b")
        assert session.attest().secrets == {"blob": b"a\0b"}
        world.renew(more='[[secrets]]\nname = "blob"\nenvironment = "BLOB"\n')
        with pytest.raises(PolicyError, match="secret blob: holds a zero byte"):
            session.attest()


def test_a_sealed_file_has_its_key_and_its_anchor(cas):
    with world_in(cas, more="") as world, world.session() as session:
        world.renew(more=SEALED)
        with pytest.raises(PolicyError, match="sealed model: its key has not been stored"):
            session.attest()
        for name in ("model", "state"):
            world.client.put_sealed_key(world.name, name, VAULT_KEY)
        got = session.attest()
        assert {name: (each.key, each.access) for name, each in got.sealed.items()} == {
            "model": (VAULT_KEY, "read-only"),
            "state": (VAULT_KEY, "read-write"),
        }
        assert VAULT_KEY.decode() not in repr(got)
        session.anchor("state").advance(None, ONE)
        assert world.client.anchor(world.name, "state").read() == ONE
        with pytest.raises(UnauthorizedError, match="may only read it"):
            session.anchor("model").advance(None, ONE)
        with pytest.raises(FormatError, match="wanted a vault's key of 32"):
            world.client.put_sealed_key(world.name, "model", b"short")


def test_replicas_that_are_no_writers_read_only(cas):
    more = '[[vaults]]\nname = "out"\nmount = "/out"\naccess = "read-write"\nwriters = [1]\nfreshness = "grouped"\n'
    with world_in(cas, more="") as world:
        world.renew(more=more, instances=3)
        world.client.put_vault_key(world.name, "out", VAULT_KEY)
        with world.session(replica=0) as reader, world.session(replica=1) as writer, world.session() as neither:
            assert reader.attest().vault_access == {"out": "read-only"}
            assert writer.attest().vault_access == {"out": "read-write"}
            assert neither.attest().vault_access == {"out": "read-only"}
            assert writer.attest().vaults["out"].freshness == "grouped"
            writer.anchor("out").advance(None, ONE)
            with pytest.raises(UnauthorizedError, match="may only read it"):
                reader.anchor("out").advance(ONE, TWO)
            assert reader.anchor("out").read() == ONE


def test_what_the_launcher_must_enforce_is_told(cas):
    more = (
        '[[paths]]\npath = "/work"\nrule = "ephemeral"\n[mesh]\npeers = ["acme/worker"]\n'
        'publish = [{ name = "api", port = 8443 }]\n'
        '[[egress]]\nhost = "files.example.com"\nport = 443\nca = "system"\n'
    )
    with world_in(cas, more=more) as world, world.session() as session:
        got = session.attest()
    assert got.paths == (("/work", "ephemeral", ""),)
    assert got.wanted == ("mesh", "mesh.publish", "egress")
    assert got.egress == (Reached("files.example.com", 443, "system", "enclave"),)
    assert got.publish == (Served("api", 8443),)
