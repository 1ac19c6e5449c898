"""The mirror: sealed copies of a training state, so cheap that one is made at every step.

`open` gives a `Mirror`; `Mirror.begin` commits, `Mirror.restore` gives the state back, bit for bit. `read` looks at a
mirror that somebody else may be writing. Adapters for frameworks are modules of their own (`strongroom.mirror.torch`).
The format is specified in docs/spec/mirror.md.
"""

from strongroom.mirror.commit import Commit, MirrorWarning
from strongroom.mirror.mirror import Mirror
from strongroom.mirror.opening import open  # noqa: A004  # as `vault.open`
from strongroom.mirror.restored import Restored, read
from strongroom.mirror.state import Array

__all__ = ["Array", "Commit", "Mirror", "MirrorWarning", "Restored", "open", "read"]
