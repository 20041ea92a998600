"""How fast a line is, by TCP: `probe.py answer ADDRESS` on one host, `probe.py ask ADDRESS` on the other.

The asker prints the microseconds that 64 bytes take one way (half of the median round trip) and a stream's Mbit/s.
"""

from __future__ import annotations

import socket
import sys
import time

PORT = 9998
ROUNDS = 300
STREAM_BYTES = 32 << 20


def answer(address: str) -> None:
    with socket.create_server((address, PORT)) as server:
        line = server.accept()[0]
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for _ in range(ROUNDS):
        line.sendall(line.recv(64))
    received = 0
    while received < STREAM_BYTES:
        received += len(line.recv(1 << 20))
    line.sendall(b"!")


def connect(address: str) -> socket.socket:
    for _ in range(100):
        try:
            return socket.create_connection((address, PORT), timeout=30)
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise SystemExit(f"nobody answers at {address}")


def ask(address: str) -> None:
    line = connect(address)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    times = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        line.sendall(b"x" * 64)
        line.recv(64)
        times.append(time.perf_counter() - begin)
    begin = time.perf_counter()
    line.sendall(bytes(STREAM_BYTES))
    line.recv(1)
    seconds = time.perf_counter() - begin
    print(sorted(times)[ROUNDS // 2] / 2 * 1e6, STREAM_BYTES * 8 / seconds / 1e6)


if __name__ == "__main__":
    {"answer": answer, "ask": ask}[sys.argv[1]](sys.argv[2])
