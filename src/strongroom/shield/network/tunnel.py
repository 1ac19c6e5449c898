"""One connection of a program's, carried as one TLS 1.3 connection between two proxies (docs/spec/mesh.md).

Rules:

- An end that was not announced is a reset, here as there: a tunnel that was cut never looks like one that ended.
- What came before an announced end reaches the program, whatever becomes of the connection and of its sender meanwhile.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from strongroom.errors import ChannelError
from strongroom.shield.network.carrier import Carrier
from strongroom.shield.network.loop import READ, WRITE, Loop, Timer
from strongroom.shield.network.sockets import ended, prepare, reset, stays_here, unacknowledged, unpace

DEADLINE: Final = 10.0
"""Seconds from the first byte until both ends know each other."""
AGAIN: Final = 0.1
"""Seconds after which something that was not so yet is looked at again."""
_LOOK = 0.02  # how often one looks whether the kernel has been rid of the last bytes


class Tunnel(Carrier):
    """One of them, on one loop. What it does for its role is its subclass's.

    Args:
        outer: the connection to the other proxy, connected or connecting.
        context: for TLS.
        name: what the server has to be called, if it is to be judged by its name.
        on_open: called once it carries bytes.
        on_close: called once, with why in a word, empty where both ends have ended it.
    """

    anonymous = False
    """Whether the other end need not show a certificate."""

    def __init__(
        self,
        loop: Loop,
        outer: socket.socket,
        context: ssl.SSLContext,
        *,
        name: str | None = None,
        on_open: Callable[[Any], None],
        on_close: Callable[[Any, str], None],
    ) -> None:
        super().__init__(loop, outer, context, name)
        self._on_open, self._on_close = on_open, on_close
        self.patience = 0.0
        """Seconds that it may take to open, beyond `DEADLINE`, once it is known who is there."""
        self.agreed = False
        """Whether it is known who is at the other end."""
        self.key = ""
        """The fingerprint of the other end's key, once it is known."""
        self.doubt = ""
        """What OpenSSL has against the other end's certificate, if that ended it."""
        self._said_end = self._passed_end = False
        self._looking = False
        self._draining = False
        self._events = {"outer": 0, "inner": 0}
        self._held = 0  # as the loop counts it
        self._deadline: Timer | None = None
        prepare(outer, outer=True)

    # What roles do.

    def shaken(self, certificate: bytes) -> None:
        """TLS stands; who is there is to be judged."""
        raise NotImplementedError

    # The life of it, on the loop's thread.

    def begin(self) -> None:
        """Wait for the outer connection, then shake hands."""
        self.loop.add(self._outer.fileno(), WRITE, self._connected)
        self._events["outer"] = WRITE
        self._deadline = self.loop.later(DEADLINE, self._late)

    def _late(self) -> None:
        if not self.agreed:
            self.close("timeout")
        elif not self.opened:
            self._deadline = self.loop.later(DEADLINE + self.patience, self._too_late)

    def _too_late(self) -> None:
        if not self.opened:
            self.close("timeout")

    def _in_time(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()

    def _connected(self, events: int) -> None:
        code = self._outer.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self.close("unreachable")
            return
        if stays_here(self._outer):
            unpace(self._outer)
        self.loop.remove(self._outer.fileno())
        self.loop.add(self._outer.fileno(), READ, self._on_outer)
        self._events["outer"] = READ
        self._guarded(self._shake)

    def _on_outer(self, events: int) -> None:
        if self.closed:
            return
        try:
            if events & WRITE:
                self._send_outer()
            if events & ~WRITE:
                self._read_outer()
            self._settle()
        except (ssl.SSLError, ChannelError, OSError) as error:
            self._fail(error)

    def _on_inner(self, events: int) -> None:
        if self.closed:
            return
        try:
            if events & WRITE:
                self._send_inner()
            if events & ~WRITE and not self._inner_ended:
                self._read_inner()
            self._settle()
        except (ssl.SSLError, ChannelError, OSError) as error:
            self._fail(error)

    def _guarded(self, step: Callable[[], None]) -> None:
        """The same for whatever else there is to do."""
        if self.closed:
            return
        try:
            step()
            self._settle()
        except (ssl.SSLError, ChannelError, OSError) as error:
            self._fail(error)

    def _fail(self, error: ssl.SSLError | ChannelError | OSError) -> None:
        """End it, for a reason that is counted."""
        if isinstance(error, ssl.SSLError | ChannelError):
            self._flush_alert()
        if isinstance(error, ChannelError):
            self.close(error.message)
        elif isinstance(error, ssl.SSLCertVerificationError):
            self.doubt = error.verify_message
            self.close("certificate")
        elif isinstance(error, ssl.SSLError):
            self.close("broken" if self._shaken else "handshake")
        else:
            self.close("cut")

    def _flush_alert(self) -> None:
        """Let the other end know why, if there is room for it."""
        with suppress(OSError):
            self._outer.send(self._outgoing.read())

    def _shake(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._send_outer()
            return
        self._shaken = True
        self._send_outer()
        certificate = self._tls.getpeercert(binary_form=True)
        if certificate is None and not self.anonymous:
            raise ChannelError("certificate")
        self.shaken(certificate or b"")

    # Together.

    def opens(self, inner: socket.socket) -> None:
        """From now on bytes are carried between the program's connection and the tunnel."""
        self._inner = inner
        self.opened = True
        self._in_time()
        self._on_open(self)

    def _settle(self) -> None:
        """After each step: ends that are to be passed on, and what is waited for next."""
        if self._flowing and not (
            self._to_outer or self._to_inner or self._inner_ended or self._outer_ended or self._mute
        ):
            return
        if self.closed:
            return
        held = len(self._to_outer) + len(self._to_inner)
        self.loop.held += held - self._held
        self._held = held
        if self._inner_ended and not self._said_end and not self._to_outer and not self._mute:
            self._said_end = True
            with suppress(ssl.SSLWantReadError):
                self._tls.unwrap()
            self._send_outer()
        if self._outer_ended and not self._passed_end and not self._to_inner and self._inner is not None:
            self._passed_end = True
            with suppress(OSError):
                self._inner.shutdown(socket.SHUT_WR)
        self._finish_if_done()
        if self.closed:
            return
        # A program that does not read is not read for; nor is one whose bytes nobody takes.
        outer = (READ if not self._to_inner and not self._outer_ended else 0) | (WRITE if self._to_outer else 0)
        if not self._outer_gone:
            self._wait("outer", self._outer, outer, self._on_outer)
        if self._inner is not None:
            takes = not self._to_outer and not self._inner_ended and (not self._mute or self._may_refuse())
            inner = (READ if takes else 0) | (WRITE if self._to_inner else 0)
            self._wait("inner", self._inner, inner, self._on_inner)
            if self.opened and outer == inner == READ:
                self._flow(self._inner)
            else:
                self._flowing = False

    def _wait(self, name: str, sock: socket.socket, events: int, handler: Callable[[int], None]) -> None:
        before = self._events[name]
        if events == before:
            return
        self._events[name] = events
        if not events and name == "inner":  # else a program that is gone would be reported for ever
            self.loop.remove(sock.fileno())
        elif not before and name == "inner":
            self.loop.add(sock.fileno(), events, handler)
        else:
            self.loop.change(sock.fileno(), events)

    def _finish_if_done(self) -> None:
        if self._mute and self._passed_end:
            if self._inner_ended:
                self.close("")
        elif self._said_end and self._passed_end and not self._to_outer and not self._outgoing.pending:
            self.close("")

    def _may_refuse(self) -> bool:
        """Whether the program has all that came, so that a reset for what it sends in vain takes nothing from it."""
        if not self._passed_end or self._inner is None:
            return False
        if not unacknowledged(self._inner):
            return True
        if not self._looking:
            self._looking = True
            self.loop.later(AGAIN, self._look_again)
        return False

    def _look_again(self) -> None:
        self._looking = False
        self._guarded(lambda: None)

    def leave(self, why: str) -> None:
        """The other end is no member any more: end it, but for what had come before its end. On the loop's thread."""
        if self.closed:
            return
        if not self.opened or not ended(self._outer):
            self.close(why)
            return
        self._silence()
        self._guarded(lambda: None)

    def drain(self) -> None:
        """The program here has ended: end it as soon as the other machine has what was sent. On the loop's thread."""
        if self.closed:
            return
        sent = self._said_end and not self._to_outer and not self._outgoing.pending
        if self._inner_ended and not self.opened and not self.sent:
            self.close("")  # nobody has been told anything
            return
        if self._inner_ended and (self._mute or sent):
            if not self._draining and not self._outer_gone:
                self._draining = True
                with suppress(OSError):
                    self._outer.shutdown(socket.SHUT_WR)
            if self._mute or not unacknowledged(self._outer):
                self.close("")
                return
        self.loop.later(_LOOK, self.drain)

    def close(self, why: str) -> None:
        """End it at once: in order where `why` is empty, else with a reset for the program."""
        if self.closed:
            return
        self.closed = True
        self._usual = None  # which leads back here
        self._in_time()
        self.loop.held -= self._held
        self._on_close(self, why)  # first: whoever gets the error may ask what was counted
        self.loop.remove(self._outer.fileno())
        self._outer.close()
        if self._inner is not None:
            self.loop.remove(self._inner.fileno())
            if why:
                reset(self._inner)
            else:
                self._inner.close()
