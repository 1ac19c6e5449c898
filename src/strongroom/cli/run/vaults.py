"""Vaults as a command line names them: where they lie, and where a program finds them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import combinations
from pathlib import Path

from strongroom.cas.policy.version import VaultRule
from strongroom.cli import output
from strongroom.cli.locks import locked
from strongroom.cli.workspace import SealedVault
from strongroom.errors import LockedError, UsageError, WrongKeyError


def vaults_of(
    data: Sequence[str], out: Sequence[str], *, flag: str = "--out"
) -> tuple[dict[str, SealedVault], tuple[VaultRule, ...]]:
    """Vaults by their names, which come from their mounts, and the rules that a policy has for them.

    Args:
        data: ``VAULT[:MOUNT]`` of each that is read, at /data if it does not say. They must be there.
        out: of each that is written, at /out.
        flag: what names those.

    Raises:
        UsageError: one is used twice, or a mount is; or one is authenticated only.
    """
    sealed: dict[str, SealedVault] = {}
    rules = []
    for texts, default, access in ((data, "/data", "read-only"), (out, "/out", "read-write")):
        for text in texts:
            path, mount = _place_and_mount(text, default)
            name = mount.strip("/").replace("/", "-")
            sealed[name] = SealedVault.at(path)
            if access == "read-only":
                with _key_beside(sealed[name]):
                    sealed[name].open().close()
            _check_encrypted(sealed[name])
            rules.append(VaultRule(name, mount, access))
    for one, other in combinations(rules, 2):
        if one.mount == other.mount:
            raise UsageError(f"mount: {one.mount} is used twice", hint="--data VAULT:/another/path")
        if sealed[one.name].path.resolve() == sealed[other.name].path.resolve():
            raise UsageError(f"vault: {sealed[one.name].path} is used twice", hint=f"give {flag} another vault")
    return sealed, tuple(rules)


@contextmanager
def only_writer(vaults: Sequence[SealedVault]) -> Iterator[None]:
    """Meanwhile no other `strongroom run` writes these vaults, under whatever policy of this user's.

    Raises:
        LockedError: one does, and the second to end would lose its results.
    """
    with ExitStack() as held:
        for vault in vaults:
            if not locked(held.enter_context(vault.key_path.open("rb")).fileno()):
                raise LockedError(
                    f"vault: another `strongroom run` writes {vault.path}", hint="wait for it, or give another vault"
                )
        yield


@contextmanager
def _key_beside(vault: SealedVault) -> Iterator[None]:
    """Say where the key has to be, to verbs that take it from beside the vault and have no option for another."""
    meant = vault.path.with_name(f"{vault.path.name}.vault")  # of a directory that was sealed, and is named itself
    if vault.path.is_dir() and not vault.key_path.exists() and not meant.exists():
        raise UsageError(f"key file: {vault.key_path} does not exist", hint="put the vault's key back there")
    try:
        yield
    except WrongKeyError as error:
        error.hint = f"put the key that it was sealed with back as {vault.key_path}"
        raise


def _check_encrypted(vault: SealedVault) -> None:
    if not vault.path.exists():
        return
    with _key_beside(vault):
        kind = vault.as_it_is()
        kind.open(any_version=True).close()  # how fresh it is, the CAS will say
    if not kind.encrypted:
        raise UsageError(
            f"vault: {vault.path} is authenticated only, and only a policy of your own can say so",
            hint='rule = "authenticated" in it, and --policy FILE',
        )


def make_vault(vault: SealedVault) -> None:
    """Make an empty vault, unless it is there."""
    if vault.path.exists():
        return
    with vault.create() as new:
        new.commit()
    output.note(f"made {vault.path}; its key is {vault.key_path}")


@contextmanager
def made_vaults(vaults: Sequence[SealedVault]) -> Iterator[Callable[[], object]]:
    """Have these vaults. If the block raises before it calls what it gets, those that were made go again."""
    with ExitStack() as made:
        for vault in vaults:
            if not vault.path.exists() and vault.anchor.read() is None:
                made.callback(_take_away, vault, with_key=not vault.key_path.exists())
            make_vault(vault)
        yield made.pop_all
        made.pop_all()


def _take_away(vault: SealedVault, *, with_key: bool) -> None:
    vault.remove(with_key=with_key)
    output.note(f"removed {vault.path} again")


def pairs(
    texts: Sequence[str], flag: str, wanted: str = "NAME=VALUE", *, hint: str | None = None
) -> list[tuple[str, str]]:
    """Raises UsageError unless each is NAME=VALUE, or whatever else `wanted` says that they are."""
    found = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"{flag}: got {text[:80]!r}, wanted {wanted}", hint=hint)
        found.append((name, value))
    return found


def _place_and_mount(text: str, default: str) -> tuple[Path, str]:
    place, colon, mount = text.rpartition(":")
    if not colon or Path(text).exists():
        return Path(text), default
    if not mount.startswith("/") or mount.strip("/") == "":
        raise UsageError(f"mount: got {mount!r}, wanted an absolute path", hint="VAULT:/data, for one")
    return Path(place), mount
