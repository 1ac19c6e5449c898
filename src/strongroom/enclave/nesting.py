"""Which of an enclave's paths lie in which, by the configuration alone: so host and boot say the same of it."""

from __future__ import annotations

from strongroom.enclave.config import HOSTS_DIRECTORY, BootConfig


def outer_of(config: BootConfig, path: str) -> str | None:
    """The innermost vault or directory that begins empty around a path; None if it lies in none."""
    around = (*(rule.mount for rule in config.vaults if rule.mount), *config.ephemeral)
    return max((each for each in around if path.startswith(f"{each}/")), key=len, default=None)


def hosts_within(config: BootConfig) -> list[str]:
    """The paths at which a directory of the host's shows within something that boot mounts."""
    return [path for path in config.host if outer_of(config, path) is not None]


def staged(config: BootConfig, path: str) -> str:
    """Where the sandbox shows the directory of the host's for a path."""
    return path if outer_of(config, path) is None else f"{HOSTS_DIRECTORY}/{config.host.index(path)}"
