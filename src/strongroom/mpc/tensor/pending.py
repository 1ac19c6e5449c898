"""Values that are computed when they are first read, because what reads them may be had in the same rounds.

- Nothing is drawn or sent for a pending value before it is read. Whether it is, and by what, depends on the program
  alone.
- It is made of `Shared`s, which never change: a later write to an operand makes no difference.
- What it costs and what is wrong with it belong to the operator that it is a result of, not to the one that reads it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from strongroom.errors import UsageError
from strongroom.mpc.shared import Shared
from strongroom.mpc.tensor.world import user_line

if TYPE_CHECKING:
    from strongroom.mpc.tensor.storage import Folded


class _Here(threading.local):
    """Of this thread.

    Attributes:
        find: says where the program is, for who watches that.
        place: where the operator stands whose result is being computed.
    """

    find: Callable[[], Any] | None = None
    place: Any = None


here = _Here()


class Pending:
    """A result that is not computed yet.

    Args:
        shape: of the result, which is known to be one.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self._line = user_line()
        self._asked_at = None if here.find is None else here.find()

    def value(self) -> Shared:
        """The result; with any fractional bits."""
        with self._its_own():
            return self._value()

    def rectified(self) -> Shared | None:
        """max(result, 0) at the settings' fractional bits, if that is cheaper than a ReLU of the result."""
        with self._its_own():
            return self._rectified()

    def normalised(self, folded: Folded) -> Shared | None:
        """The result times a factor and plus a summand for each channel, if that is cheaper than of the result."""
        with self._its_own():
            return self._normalised(folded)

    def _value(self) -> Shared:
        raise NotImplementedError

    def _rectified(self) -> Shared | None:
        return None

    def _normalised(self, folded: Folded) -> Shared | None:
        return None

    @contextmanager
    def _its_own(self) -> Iterator[None]:
        before, here.place = here.place, self._asked_at
        try:
            yield
        except UsageError as error:
            if "; at " in error.message:
                raise
            raise UsageError("{}; at {}:{}".format(error.message, *self._line), hint=error.hint) from None
        finally:
            here.place = before
