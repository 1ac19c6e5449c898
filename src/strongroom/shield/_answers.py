"""How a handler becomes an answer to the kernel: its result, or an errno for whatever it raised."""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import pyfuse3

from strongroom.errors import LockedError, StrongroomError, UsageError

COMMIT: Final = b"user.strongroom.commit"
"""To set this attribute of the top of a mount commits, or says by an errno why not."""

_logger = logging.getLogger("strongroom.mount")

# What a program gets because of what it asked for, and nobody else need hear of.
_OWN_MISTAKES: Final = frozenset(
    {
        errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.EINVAL, errno.EPERM,
        errno.EACCES, errno.EMLINK, errno.ENAMETOOLONG, errno.ESTALE, errno.EXDEV, errno.EROFS, errno.ENOSYS,
        errno.EFBIG, errno.EOPNOTSUPP,
    }
)  # fmt: skip

_P = ParamSpec("_P")
_R = TypeVar("_R")
_A = TypeVar("_A", bound="Answers")


def answer(
    handler: Callable[Concatenate[_A, _P], _R],
) -> Callable[Concatenate[_A, _P], Coroutine[Any, Any, _R]]:
    @functools.wraps(handler)
    async def answering(self: _A, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return handler(self, *args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except Exception as error:
            raise pyfuse3.FUSEError(self._errno(handler.__name__.partition("_")[0], error)) from None

    return answering


class Answers(pyfuse3.Operations):  # type: ignore[misc,unused-ignore]  # untyped base
    """Handlers that never bring the mount down.

    Args:
        fail: told of every error that is not the caller's own.

    Attributes:
        commit: what to do when somebody asks for a commit of everything.
    """

    def __init__(self, fail: Callable[[BaseException], None]) -> None:
        super().__init__()
        self.fail = fail
        self.commit: Callable[[], None] = lambda: None
        self._reason = 0

    @answer
    def setxattr(self, ino: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        if name != COMMIT or ino != pyfuse3.ROOT_INODE:
            raise OSError(errno.EOPNOTSUPP, "")
        self.commit()

    def _errno(self, what: str, error: Exception) -> int:
        if isinstance(error, OSError):
            number = error.errno
            if number in _OWN_MISTAKES:
                return number
            if number is None and isinstance(error, FileNotFoundError):
                return errno.ESTALE  # another process removed it
        elif isinstance(error, LockedError):
            number = errno.EBUSY
        elif isinstance(error, UsageError):
            return errno.EFBIG if "length" in error.message else errno.EROFS
        else:
            # After a failure of the storage a vault refuses everything; that failure is still the reason.
            number = self._reason if type(error) is StrongroomError else errno.EIO
        number = number or errno.EIO
        if isinstance(error, OSError):
            self._reason = number
        self.fail(error)
        _logger.error("%s: %s (%s)", what, error, errno.errorcode.get(number, number))
        return number
