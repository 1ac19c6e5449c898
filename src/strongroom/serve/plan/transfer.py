"""What handing tensors from one stage to the next costs here: frames sealed, sent, received and opened."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Final

import numpy as np

from strongroom.channel.duplex import Channel
from strongroom.crypto.aead import KEY_SIZE, NONCE_SIZE, TAG_SIZE, BlockCipher
from strongroom.serve.plan.costs import Transfer

_SIZES: Final = (1 << 10, 64 << 10, 512 << 10, 2 << 20, 8 << 20)
_ROUNDS: Final = 9
_WAIT: Final = 60.0


def measure() -> Transfer:
    """Time frames over a socket of this machine, from one thread to another: some tenths of a second."""
    points = [(size, _fastest(_there_and_back(size))) for size in _SIZES]
    # By relative error, so that small frames count as much as large ones.
    rows = np.array([[1 / ns, size / ns] for size, ns in points])
    (frame, byte), *_ = np.linalg.lstsq(rows, np.ones(len(points)), rcond=None)
    return Transfer(max(1, int(frame)), max(1, int(byte * 1000)))


def over_link(transfer: Transfer, bits: int, delay_ns: int) -> Transfer:
    """The same over a network of so many bits a second, a frame under way for so long."""
    return Transfer(transfer.frame_ns + delay_ns, transfer.byte_ps + 8 * 10**12 // bits)


def _fastest(run: Callable[[], int]) -> int:
    return min(run() for _ in range(_ROUNDS))


def _there_and_back(size: int) -> Callable[[], int]:
    """What times one frame of `size` bytes and the byte that answers it."""
    key = os.urandom(KEY_SIZE)
    sealing, opening = BlockCipher(key), BlockCipher(key)
    plain, box, out = bytearray(size), bytearray(size + TAG_SIZE), bytearray(size)

    def run() -> int:
        ours, theirs = socket.socketpair()
        here = Channel(ours, "the other end", seconds=_WAIT)
        there = Channel(theirs, "this end", seconds=_WAIT)
        nonce = os.urandom(NONCE_SIZE)

        def receive() -> None:
            came = bytearray(NONCE_SIZE + size + TAG_SIZE)
            there.recv_into(came)
            opening.decrypt_into(bytes(came[:NONCE_SIZE]), memoryview(came)[NONCE_SIZE:], b"", out)
            there.queue([b"1"])
            there.flush()

        peer = threading.Thread(target=receive)
        peer.start()
        start = time.perf_counter_ns()
        sealing.encrypt_into(nonce, plain, b"", box)
        here.queue([nonce, box])
        here.flush()
        here.recv_into(bytearray(1))
        spent = time.perf_counter_ns() - start
        peer.join()
        here.close()
        there.close()
        return spent

    return run
