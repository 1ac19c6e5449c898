"""What a program and a host say in clear before TLS 1.3 stands between them, judged as it comes.

1. The client's hello goes on once it has all come and is for the named host. What comes behind it is held.
2. The host's answer goes on once it has chosen TLS 1.3, and from then on everything does. But for one alert, nothing
   that comes before it goes on.
3. It may ask for another hello instead, once (HelloRetryRequest; RFC 8446, section 4.1.4): that is judged as the first
   one was. Before it early data may come, which nobody takes, and what is there for boxes in between (appendix D.4).
"""

from __future__ import annotations

from typing import Final

from strongroom.errors import ChannelError
from strongroom.shield.network.hello import (
    ALERT_SIZE,
    APPLICATION,
    CHANGE_CIPHER,
    MAX_HELLO,
    TLS_1_3,
    begins_with,
    client_hello,
    first_size,
    is_alert,
    server_hello,
    skipped,
)

_MOST: Final = 2 * MAX_HELLO
_BEFORE: Final = ((CHANGE_CIPHER, APPLICATION), (CHANGE_CIPHER,))  # a second hello, of the client and of the host


def named(hello: bytes, host: str) -> bool:
    """Whether a client's hello has all come, and offers TLS 1.3 to that host.

    Args:
        host: empty for an address, which a hello does not name.

    Raises:
        ChannelError: ``hello``, ``name``, ``version``: it is something else, is for another, or is older.
    """
    said = client_hello(hello)
    if said is None:
        if len(hello) > _MOST:
            raise ChannelError("hello")
        return False
    if said.encrypted or said.name != host:
        raise ChannelError("name")
    if TLS_1_3 not in said.versions:
        raise ChannelError("version")
    first_size(hello)
    return True


class Greeting:
    """One of them, whose two ends are 0, the client, and 1, the host.

    Args:
        host: as of `named`.
    """

    def __init__(self, host: str) -> None:
        self._host = host
        self._held = [b"", b""]
        self._client_next, self._again = True, False
        self._alerted = 0
        self.stands = False
        """Whether the host has chosen TLS 1.3: whatever comes now goes on."""

    @property
    def refused(self) -> bool:
        """Whether the host has ended it by an alert."""
        return self._alerted > 0

    @property
    def held(self) -> int:
        """Bytes of the client's that have not gone on, and may."""
        return 0 if self.refused else len(self._held[0])

    @property
    def full(self) -> bool:
        """Whether no more is to be read from the client for now."""
        return self.held > _MOST

    def heard(self, which: int, data: bytes) -> tuple[bytes, bytes]:
        """Something has come from there; what goes on now from each.

        Raises:
            ChannelError: ``hello``, ``name``, ``version``: it is not what it has to be.
        """
        if which or not self.refused:
            self._held[which] += data
        on = [b"", b""]
        while not self.stands and self._step(on):
            pass
        if self.stands:
            for each in (0, 1):
                on[each] += self._held[each]
                self._held[each] = b""
        return on[0], on[1]

    def _step(self, on: list[bytes]) -> bool:
        """Whether there was something to do."""
        if self._again:
            for which, kinds in enumerate(_BEFORE):
                if which or self._client_next:
                    self._pass(which, skipped(self._held[which], kinds), on)
        if is_alert(self._held[1]):
            self._alert(on)
            return False
        turn = 0 if self._client_next else 1
        if not self._held[turn] or (self._again and begins_with(self._held[turn], _BEFORE[turn])):
            return False
        return self._hear_client(on) if self._client_next else self._hear_host(on)

    def _hear_client(self, on: list[bytes]) -> bool:
        if not named(self._held[0], self._host):
            return False
        self._pass(0, first_size(self._held[0]), on)
        self._client_next = False
        return True

    def _hear_host(self, on: list[bytes]) -> bool:
        said = server_hello(self._held[1])
        if said is None:
            if len(self._held[1]) > _MOST:
                raise ChannelError("hello")
            return False
        if said.version != TLS_1_3:
            raise ChannelError("version")
        if not said.retry:
            self.stands = True
        elif self._again:
            raise ChannelError("hello")
        else:
            self._pass(1, first_size(self._held[1]), on)
            self._again = self._client_next = True
        return True

    def _alert(self, on: list[bytes]) -> None:
        """It goes on as it comes, and stays, so that nothing comes behind it."""
        said = self._held[1]
        if len(said) > ALERT_SIZE:
            raise ChannelError("hello")
        on[1] += said[self._alerted :]
        self._alerted = len(said)

    def _pass(self, which: int, size: int, on: list[bytes]) -> None:
        on[which] += self._held[which][:size]
        self._held[which] = self._held[which][size:]
