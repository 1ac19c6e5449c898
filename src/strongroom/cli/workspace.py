"""What the verbs share: this user's Strongroom home, sealed vaults beside their keys, and development policies.

A development policy accepts one simulated vendor, that of this home, and exactly the measurement of what is about to
run. It is as strict as any other policy; what it cannot do is make a simulated enclave protect anything against the
owner of the machine.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from strongroom import vault
from strongroom.attest.reference import ReferenceValues
from strongroom.attest.tee.simulated import SimulatedVendor
from strongroom.cas.client.address import CasAddress
from strongroom.cas.client.owner import OwnerClient
from strongroom.cas.files import create_once
from strongroom.cas.log.head import FileHead
from strongroom.cas.log.note import origin_of
from strongroom.cas.policy.network import ENDS, EgressRule, Published
from strongroom.cas.policy.restores import goes_back
from strongroom.cas.policy.table import to_toml
from strongroom.cas.policy.version import Policy, Program, VaultRule, parse_policy
from strongroom.cli import early, output
from strongroom.cli.development_cas import development_cas
from strongroom.cli.mirror.directory import mirror_key
from strongroom.crypto import Signer, SigningKey, digest
from strongroom.errors import CasError, ChannelError, PolicyError, UnknownPolicyError, UsageError
from strongroom.sealed import NO_FRESHNESS, FileAnchor, Root, open_sealed
from strongroom.sealed.keyfile import create_key, load_key
from strongroom.storage import LocalDirectory
from strongroom.vault.access import KEYS, VaultKey, unlock
from strongroom.vault.engine import META
from strongroom.vault.keys import KeyFile
from strongroom.vault.kind import is_kind

VAULT_SUFFIX = ".vault"
_OWNER_KEY = "owner.key"


@dataclass(frozen=True)
class Home:
    """The directory with this user's owner key, simulated vendor and development CAS.

    ``$STRONGROOM_HOME``, or ``strongroom`` below the user's data directory.
    """

    path: Path

    @classmethod
    def open(cls, path: Path | None = None) -> Home:
        if path is None:
            path = Path(early.home_path())
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return cls(path)

    @property
    def private(self) -> bool:
        """Whether nobody but this user and root may put things there, which are believed because they lie there."""
        from strongroom.enclave.reader import writable_by_others

        return not writable_by_others(self.path.stat())

    @property
    def has_owner(self) -> bool:
        """Whether this user has a key that signs policies: else there is none of theirs."""
        return (self.path / _OWNER_KEY).exists()

    def owner(self) -> SigningKey:
        """The key that signs this user's policies, made on first use."""
        path = self.path / _OWNER_KEY
        if not self.has_owner:
            create_once(path, SigningKey.generate().pem())
            output.note(f"made this user's key, {path}")
        return SigningKey.load(path)

    def vendor(self) -> SimulatedVendor:
        """The simulated vendor of this home, made on first use."""
        return SimulatedVendor.open(self.path / "simulated-vendor", now=int(time.time()))

    def heads(self, cas_root: str) -> FileHead:
        """Where the highest head seen of that CAS's log is remembered."""
        return FileHead(self.path / "heads" / origin_of(cas_root).rpartition("/")[2])

    def owner_client(
        self,
        address: CasAddress,
        owner: Signer | None = None,
        *,
        token: Callable[[], str] | None = None,
        reference: ReferenceValues | None = None,
    ) -> OwnerClient:
        """An owner's client of a CAS that holds it to the head that this user has seen.

        Args:
            owner: by default this user's key, or none where there is a token.
            token: gives an issuer's token to log in with.
            reference: what the CAS's own evidence must be.
        """
        heads, key = self.heads(address.cas_root), owner if token else owner or self.owner()
        return OwnerClient(
            address.url, cas_root=address.cas_root, owner=key, token=token, heads=heads, reference=reference
        )

    @contextmanager
    def cas(self) -> Iterator[CasAddress]:
        """The development CAS: the one that runs for this home, or one inside this process."""
        with development_cas(self.path / "cas") as address:
            yield address


@dataclass(frozen=True)
class SealedVault:
    """A vault on this machine, with the key file and the anchor file beside it.

    Attributes:
        secret: what opens one of its key slots, in place of a key file.
        anchor_path: of the anchor file; by default ``VAULT.anchor``.
        encrypted: False for one that is authenticated only; None if it has not been said, as `vault.open` has it.
    """

    path: Path
    key_path: Path
    secret: VaultKey | None = None
    anchor_path: Path | None = None
    encrypted: bool | None = None

    @classmethod
    def at(cls, path: Path, key: Path | None = None) -> SealedVault:
        return cls(path, key or path.with_name(path.name + ".key"))

    @property
    def anchor(self) -> FileAnchor:
        return FileAnchor(self.anchor_path or self.path.with_name(self.path.name + ".anchor"))

    def opener(self) -> VaultKey:
        """What opens the vault. Raises UsageError if there is no key file."""
        if self.secret is not None:
            return self.secret
        try:
            return KeyFile.load(self.key_path)
        except FileNotFoundError:
            hint = "a vault's key lies beside it, as VAULT.key; --key FILE names another"
            if (self.path / KEYS).exists():
                hint = "the vault has key slots: --key, --passphrase or --age-identity opens one"
            raise UsageError(f"key file: {self.key_path} does not exist", hint=hint) from None

    def key(self) -> bytes:
        """The vault key itself. Raises UsageError if there is no key file, and as `vault.open`."""
        return unlock(LocalDirectory(self.path), self.opener()).key

    def as_it_is(self) -> SealedVault:
        """The same, of the kind that it is: for who changes it and puts no content into it."""
        other = (self.path / META).is_file() and is_kind(LocalDirectory(self.path), META, self.key(), encrypted=False)
        return replace(self, encrypted=not other)

    def create(self) -> vault.Vault:
        """A new vault; its key is made unless the key file exists, or a key slot for what is given instead."""
        if self.path.exists():
            raise UsageError(f"vault: {self.path} exists", hint="choose another name, or remove it first")
        key = self.secret
        if key is None:
            key = load_key(self.key_path) if self.key_path.exists() else create_key(self.key_path)
        return vault.open(self.path, "x", key=key, anchor=self.anchor, encrypted=self.encrypted)

    def remove(self, *, with_key: bool) -> None:
        """Delete the vault and its anchor file, and its key file if asked to."""
        shutil.rmtree(self.path, ignore_errors=True)
        for path in (self.anchor.path, self.anchor.path.with_name(self.anchor.path.name + ".lock")):
            path.unlink(missing_ok=True)
        if with_key:
            self.key_path.unlink(missing_ok=True)

    def open(self, mode: Literal["r", "r+"] = "r", *, any_version: bool = False) -> vault.Vault:
        """The vault, for reading or for changing.

        Args:
            any_version: accept any authentic version, however old.

        Raises:
            UsageError: it, its key or its anchor file does not exist.
        """
        if not self.path.is_dir():
            if not self.path.exists():
                raise UsageError(f"vault: {self.path} does not exist", hint="`strongroom seal` makes one")
            raise UsageError(f"vault: {self.path} is a file", hint=f"`strongroom seal {self.path}` makes a vault of it")
        if not (self.path / "meta").exists() and (any_version or self.anchor.read() is None):
            meant = self.path.with_name(self.path.name + VAULT_SUFFIX)
            hint = f"did you mean {meant}?" if meant.is_dir() else f"`strongroom seal {self.path}` makes one of it"
            raise UsageError(f"vault: {self.path} is a directory, not a vault", hint=hint)
        if any_version:
            return vault.open(self.path, mode, key=self.opener(), anchor=NO_FRESHNESS, encrypted=self.encrypted)
        if self.anchor.read() is None:
            raise UsageError(
                f"anchor file: {self.anchor.path} does not exist",
                hint="it says which version is the newest; --no-freshness, where a verb has it, accepts any",
            )
        return vault.open(self.path, mode, key=self.opener(), anchor=self.anchor, encrypted=self.encrypted)


def policy_name(label: str, keys: Sequence[bytes]) -> str:
    """The name of a development policy: one for each program and set of vaults (told apart by their keys)."""
    word = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:40] or "program"
    return f"dev/{word}-{digest(b'strongroom/dev-policy', *keys).hex()[:8]}"


def write_policy(
    *,
    name: str,
    role: str,
    owner: str,
    measurement: str,
    vendor_root: str,
    program: Program | None,
    vaults: Sequence[VaultRule],
    version: int = 1,
    previous: str = "",
    accepts: Sequence[str] = (),
    also: Sequence[str] = (),
    replicas: int | None = None,
    tasks: Sequence[str] = (),
    transport: str = "",
    lease: int | None = None,
    egress: Sequence[EgressRule] = (),
    publish: Sequence[Published] = (),
) -> str:
    """The text of a development policy.

    Args:
        also: other measurements that it accepts.
        accepts: lines of its table [reference], keys before tables, in the place of this machine's simulated enclaves.
        replicas: how many there are, of which number 0 writes, and which talk to each other; None for one alone.
        lease: seconds for which an attestation counts, if not the longest.
        tasks: the kind of task that each of them has, for TensorFlow.
        transport: what carries their mesh, if not TLS.
        egress: the hosts that the program may reach.
        publish: the services that it has for outsiders.
    """
    quote = to_toml
    lines = [
        "# A development policy, written by strongroom: it accepts "
        + ("this machine as it booted." if accepts else "this machine's simulated enclaves."),
        "[policy]",
        f"name = {quote(name)}",
        f"version = {version}",
        f"previous = {quote(previous)}",
        f"owner = {quote(owner)}",
        f"role = {quote(role)}",
        *([f"instances = {replicas}"] if replicas else []),
        *([f"lease = {lease}"] if lease else []),
        "",
        "[reference]",
        f"measurements = {quote([measurement, *also])}",
        *(accepts or ('tees = ["simulated"]', f"allow_simulated = {quote(vendor_root)}")),
    ]
    if program is not None:
        lines += ["", "[program]"]
        lines += [f"command = {quote(list(program.command))}"] if program.command or not program.image else []
        lines += [f"files = {quote(list(program.files))}"]
        lines += [f"image = {quote(program.image)}"] if program.image else []
        lines += [f"tools = {quote(list(program.tools))}"] if program.tools is not None else []
        if program.environment:
            lines += [
                "[program.environment]",
                *(f"{quote(k)} = {quote(v)}" for k, v in sorted(program.environment.items())),
            ]
    for rule in vaults:
        lines += ["", "[[vaults]]", f"name = {quote(rule.name)}"]
        lines += [f"mount = {quote(rule.mount)}", f"access = {quote(rule.access)}"]
        lines += ["writers = [0]"] if replicas and rule.access == "read-write" else []
    lines += ["", "[mesh]"] if replicas or publish else []
    lines += [f"tasks = {quote(list(tasks))}"] if tasks else []
    lines += [f"transport = {quote(transport)}"] if transport else []
    services = (f"{{ name = {quote(each.name)}, port = {each.port} }}" for each in publish)
    lines += [f"publish = [{', '.join(services)}]"] if publish else []
    for each in egress:
        lines += ["", "[[egress]]", f"host = {quote(each.host)}", f"port = {each.port}", f"ca = {quote(each.ca)}"]
        lines += [f"tls = {quote(each.tls)}"] if each.tls != ENDS[0] else []
    return "\n".join(lines) + "\n"


def apply_development_policy(client: OwnerClient, **content: object) -> Policy:
    """Apply what `write_policy` writes as the next version, unless the CAS holds the same already."""
    name = str(content["name"])
    try:
        current = client.policy(name)
    except UnknownPolicyError:
        return client.apply(write_policy(**content))  # type: ignore[arg-type]
    same = write_policy(**content, version=current.version, previous=current.previous)  # type: ignore[arg-type]
    if same == current.text:
        return current
    following = write_policy(**content, version=current.version + 1, previous=current.digest)  # type: ignore[arg-type]
    return client.apply(following)


Restore = Callable[[str, Root, Root], None]


def entrust(
    client: OwnerClient, policy: Policy, vaults: Mapping[str, SealedVault], *, restore: Restore | None = None
) -> None:
    """Give the CAS the keys of a policy's vaults and sealed files, and the root that each has now.

    A vault may be written under several policies, by enclaves or by its owner: whichever of its anchor file and the
    CAS's anchor is further, the other follows. Neither ever moves back; an authorised restore is further.

    Args:
        restore: moves the CAS's anchor of that name from one root to another, after such a restore.

    Raises:
        RollbackError: there was one, and nothing to move it.
    """
    for name, sealed in vaults.items():
        rule = policy.vault(name)
        mirror = rule is not None and rule.access == "mirror"
        alone = policy.sealed_file(name) is not None
        if alone:
            client.put_sealed_key(policy.name, name, load_key(sealed.key_path))
        else:
            client.put_vault_key(policy.name, name, mirror_key(sealed) if mirror else sealed.key())
        take_back(client, policy, name, sealed)
        if alone:
            open_sealed(sealed.path, key=load_key(sealed.key_path), anchor=sealed.anchor).close()
        elif not mirror:
            with sealed.open():
                pass  # it opens, and its anchor file is up to date now
        root = sealed.anchor.read()
        anchor = client.anchor(policy.name, name)
        known = anchor.read()
        if root is None or not root.comes_after(known):
            continue
        if known is not None and goes_back(known, root) and restore is not None:
            restore(name, known, root)
        else:
            anchor.advance(known, root)


def restored_here(client: OwnerClient, policy: Policy) -> Restore:
    """What takes along to a development CAS what `strongroom vault restore` did on this machine."""

    def restore(name: str, old: Root, new: Root) -> None:
        client.restore_anchor(policy.name, name, old, new, reason="strongroom vault restore, on this machine")

    return restore


def take_back(client: OwnerClient, policy: Policy, name: str, sealed: SealedVault) -> None:
    """Move a vault's anchor file on to where the CAS's anchor is, if an enclave has written to the vault."""
    try:
        root = client.anchor(policy.name, name).read()
    except (CasError, ChannelError):
        return
    before = sealed.anchor.read()
    if root is not None and root.comes_after(before):
        sealed.anchor.advance(before, root)


def read_policy(path: Path, *, draft: bool = False) -> Policy:
    """Parse a policy file; `draft` as in `parse_policy`.

    Raises:
        PolicyError: malformed.
    """
    return parse_policy(read_document(path), draft=draft)


def read_document(path: Path) -> str:
    """A policy file's text, of which the bytes are the file's: with its line ends as they are.

    Raises:
        PolicyError: no UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise PolicyError(f"policy: {path} is not UTF-8 text") from None
