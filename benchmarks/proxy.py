"""A network with a known round trip on one machine: a proxy that delays data by half a round trip.

It is a process of its own, because it must not share the interpreter's lock with the measured code. The delay
does not limit the throughput: bytes in flight do not wait for each other.
"""

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Self

CHUNK = 1 << 16


class DelayProxy:
    """A proxy in front of a port of this machine, for the length of a `with` block.

    Args:
        target: port of the server.
        round_trip: seconds that it adds to a request and its answer together.
    """

    def __init__(self, target: int, round_trip: float) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.proxy", str(target), str(round_trip / 2)],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout  # noqa: S101 - asked for above
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the delay proxy did not start")
        self.port = int(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # It ends when its standard input does, so also when this process is killed.
        self._process.communicate()


class CountingProxy:
    """A proxy in front of a port of this machine that counts the bytes, for the length of a `with` block.

    Args:
        target: port of the server.
    """

    def __init__(self, target: int) -> None:
        self.bytes = 0
        """Number of bytes in both directions so far."""
        self._target = target
        self._lock = threading.Lock()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            behind = socket.create_connection(("127.0.0.1", self._target))
            for source, sink in ((client, behind), (behind, client)):
                sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(CHUNK):
                with self._lock:
                    self.bytes += len(data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            source.close()
            sink.close()


def serve(target: int, delay: float) -> None:
    """Accept connections on a free port, which is printed, until standard input ends."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], flush=True)
        threading.Thread(target=_end_with_input, daemon=True).start()
        while True:
            client, _ = server.accept()
            try:
                behind = socket.create_connection(("127.0.0.1", target))
            except OSError:
                client.close()
                continue
            for source, sink in ((client, behind), (behind, client)):
                sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                queue: SimpleQueue[tuple[float, bytes]] = SimpleQueue()
                threading.Thread(target=_receive, args=(source, queue, delay), daemon=True).start()
                threading.Thread(target=_deliver, args=(queue, sink), daemon=True).start()


def _receive(source: socket.socket, queue: "SimpleQueue[tuple[float, bytes]]", delay: float) -> None:
    data = b"-"
    while data:
        try:
            data = source.recv(CHUNK)
        except OSError:
            data = b""
        queue.put((time.monotonic() + delay, data))


def _deliver(queue: "SimpleQueue[tuple[float, bytes]]", sink: socket.socket) -> None:
    while True:
        due, data = queue.get()
        time.sleep(max(0.0, due - time.monotonic()))
        try:
            if not data:
                sink.shutdown(socket.SHUT_RDWR)
                return
            sink.sendall(data)
        except OSError:
            return


def _end_with_input() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    serve(int(sys.argv[1]), float(sys.argv[2]))
