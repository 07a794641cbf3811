"""Time limits that hold where the server keeps none: when one expires, the connection's socket is shut down.

A node that is frozen, or that waits for other nodes to confirm a commit, sends no answer, and no timeout of the server
ends the wait. After the shutdown the driver reports a lost connection: the work runs again on another node, or its
caller gets an AmbiguousCommit.
"""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Lock, Thread

TICK = 0.1
"""Seconds between two checks of the clock; a limit expires at most this much too late."""

IDLE = 10.0
"""Seconds without a limit after which the thread ends."""


class Deadlines:
    """Watch connections and shut down those whose limit expired. Thread-safe; one thread watches all of them."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._watched: dict[object, tuple[float, int]] = {}
        self._thread: Thread | None = None

    @contextmanager
    def limit(self, descriptor: int, seconds: float) -> Iterator[None]:
        """Shut a connection down if the block takes longer than `seconds`.

        Args:
            descriptor: file descriptor of the connection's socket.
            seconds: the limit; 0 disables it.
        """
        if not seconds:
            yield
            return
        ticket = object()
        with self._lock:
            self._watched[ticket] = time.monotonic() + seconds, descriptor
            # After a fork the thread is not alive either.
            if self._thread is None or not self._thread.is_alive():
                self._thread = Thread(target=self._watch, name="deadlines", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._lock:
                self._watched.pop(ticket, None)

    def _watch(self) -> None:
        busy = time.monotonic()
        while True:
            time.sleep(TICK)
            now = time.monotonic()
            # Under the lock, because after the block a connection may be closed and its descriptor in use again.
            with self._lock:
                for ticket, (deadline, descriptor) in list(self._watched.items()):
                    if now > deadline:
                        del self._watched[ticket]
                        _shut_down(descriptor)
                if self._watched:
                    busy = now
                elif now - busy > IDLE:
                    self._thread = None
                    return


def _shut_down(descriptor: int) -> None:
    with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
        connection.shutdown(socket.SHUT_RDWR)


deadlines = Deadlines()
"""Watcher of all connections of this process."""
