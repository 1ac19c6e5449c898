"""A tunnel whose other end is no proxy of ours, but a host outside or an outsider.

Many of them go without saying so in TLS. That stays a reset for the program, since it looks as if somebody had cut the
connection; but what had come until then reaches it before that.
"""

from __future__ import annotations

from strongroom.shield.network.sockets import unacknowledged
from strongroom.shield.network.tunnel import Tunnel

_LOOK = 0.02


class Edge(Tunnel):
    """As `Tunnel`."""

    def _lose_outer(self) -> None:
        if self._outer_ended or not self.opened:
            super()._lose_outer()
            return
        self._outer_ended = self._passed_end = True  # so that no end is passed on
        super()._lose_outer()
        self._cut_once_given()

    def _cut_once_given(self) -> None:
        if self.closed or self._inner is None:
            return
        if self._to_inner or unacknowledged(self._inner):
            self.loop.later(_LOOK, self._cut_once_given)
        else:
            self.close("cut")
