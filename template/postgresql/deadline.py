{% if profile.replication == 'single-writer' %}
"""A time limit on COMMIT that holds where the server keeps none.

A commit that waits for another node to confirm it is ended by no timeout of the server; a cancel request makes it answer that all
is well though nobody confirmed. What is left is to hang up, and the caller learns that the outcome is not known.
"""
{% else %}
"""A time limit on every answer that holds where the server keeps none.

A node that is stopped in its tracks, or that waits for a majority which is gone, answers nothing, and no timeout of its own ends
that. What is left is to hang up: then the work goes to another node, or its caller learns that the outcome is not known.
"""
{% endif %}

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Lock, Thread

TICK = 0.1
"""Seconds between two looks at the clock: how late the limit may come."""

IDLE = 10.0
"""Seconds after which a thread that has nothing to watch ends."""


class Deadlines:
    """Hangs up on connections whose time is over. Thread-safe; one thread for all of them, while there are any."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._watched: dict[object, tuple[float, int]] = {}
        self._thread: Thread | None = None

    @contextmanager
    def limit(self, descriptor: int, seconds: float) -> Iterator[None]:
        """Hang up on a connection, given by its file descriptor, if the block takes longer than `seconds`; 0 means never."""
        if not seconds:
            yield
            return
        ticket = object()
        with self._lock:
            self._watched[ticket] = time.monotonic() + seconds, descriptor
            # Dead after a fork as well.
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
            # Under the lock: a connection whose block has ended may be closed, and its descriptor somebody else's.
            with self._lock:
                for ticket, (deadline, descriptor) in list(self._watched.items()):
                    if now > deadline:
                        del self._watched[ticket]
                        _hang_up(descriptor)
                if self._watched:
                    busy = now
                elif now - busy > IDLE:
                    self._thread = None
                    return


def _hang_up(descriptor: int) -> None:
    with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
        connection.shutdown(socket.SHUT_RDWR)


deadlines = Deadlines()
"""Of this process."""
