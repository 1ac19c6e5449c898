"""The fixtures of mounts that a process of its own serves, as the folder `posix` has them."""

from tests.posix.conftest import fuse, places, point, server

__all__ = ["fuse", "places", "point", "server"]
