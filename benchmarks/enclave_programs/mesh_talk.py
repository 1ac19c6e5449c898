"""Two programs that talk over TCP, timed by the one that asks.

- ``serve PORT`` answers whoever connects: echoes, or counts what it is sent. It ends with its standard input.
- ``ask HOST PORT`` says ``ready`` once it is connected, and then answers each line with a figure: ``round COUNT`` with
  the median of so many round trips of 64 bytes in microseconds, ``stream MEBIBYTES STREAMS`` with MiB/s of all streams
  together, from the first byte until the other program has counted the last.
"""

import argparse
import contextlib
import socket
import statistics
import sys
import threading
import time

PIECE = 1 << 20
MESSAGE = bytes(64)
SECONDS = 30.0  # for which a server is waited for
AGAIN = 0.05


def answer(connection: socket.socket) -> None:
    with connection, contextlib.suppress(ConnectionResetError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if connection.recv(1) == b"e":
            connection.sendall(b"e")
            while data := connection.recv(1 << 12):
                connection.sendall(data)
            return
        buffer, total = bytearray(PIECE), 0
        while count := connection.recv_into(buffer):
            total += count
        connection.sendall(b"%d" % total)


def serve(port: int) -> None:
    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    listener = socket.create_server(("", port), backlog=64)
    threading.Thread(target=accept, daemon=True).start()
    sys.stdin.read()


def connected(host: str, port: int) -> socket.socket:
    """A connection that echoes. What lies between may accept before the server does, so an echo is waited for."""
    ends = time.monotonic() + SECONDS
    while True:
        try:
            connection = socket.create_connection((host, port), SECONDS)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(b"e")
            if connection.recv(1) == b"e":
                connection.settimeout(None)
                return connection
            connection.close()
        except OSError:
            pass
        if time.monotonic() > ends:
            raise SystemExit(f"{host}:{port}: nobody answers")
        time.sleep(AGAIN)


def round_trip(connection: socket.socket, count: int) -> float:
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        connection.sendall(MESSAGE)
        missing = len(MESSAGE)
        while missing:
            missing -= len(connection.recv(missing))
        taken.append(time.perf_counter() - began)
    return 1e6 * statistics.median(taken)


def stream(host: str, port: int, mebibytes: int, streams: int) -> float:
    wrong = []

    def one() -> None:
        piece = bytes(PIECE)
        with socket.create_connection((host, port)) as connection:
            connection.sendall(b"c")
            for _ in range(mebibytes // streams):
                connection.sendall(piece)
            connection.shutdown(socket.SHUT_WR)
            counted = b""
            while data := connection.recv(64):
                counted += data
        if counted != b"%d" % (mebibytes // streams * PIECE):
            wrong.append(counted)

    threads = [threading.Thread(target=one) for _ in range(streams)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    if wrong:
        raise SystemExit(f"counted: got {wrong}, wanted {mebibytes // streams * PIECE}")
    return mebibytes / seconds


def ask(host: str, port: int) -> None:
    with connected(host, port) as echoes:
        print("ready", flush=True)
        for line in sys.stdin:
            what, *numbers = line.split()
            figure = (
                round_trip(echoes, *map(int, numbers)) if what == "round" else stream(host, port, *map(int, numbers))
            )
            print(figure, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    server, client = verbs.add_parser("serve"), verbs.add_parser("ask")
    client.add_argument("host")
    for each in (server, client):
        each.add_argument("port", type=int)
    args = parser.parse_args()
    if args.verb == "serve":
        serve(args.port)
    else:
        ask(args.host, args.port)


if __name__ == "__main__":
    main()
