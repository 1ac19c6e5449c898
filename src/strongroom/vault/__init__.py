"""The vault: a directory tree under one root.

On disk it is a directory with a sealed `meta` file, which names everything, and data files under random names. What it
protects: content, names, tree shape, permission bits; and that all of it belongs together, so that no file can be
swapped, cut, rolled back or taken away alone, and with an anchor the whole cannot be either. What whoever holds the
disk still learns: the number of data files, their sizes in blocks, and when they appear and go.

`vault.open` is the way in; the format is specified in docs/spec/vault.md.
"""

from strongroom.vault.stream import VaultFile
from strongroom.vault.transfer import pack, put, unpack
from strongroom.vault.vault import Stat, Vault, open  # noqa: A004

__all__ = ["Stat", "Vault", "VaultFile", "open", "pack", "put", "unpack"]
