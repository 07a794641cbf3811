"""Clients that write without a break while something happens to the cluster."""

import threading
import time
from collections.abc import Callable, Iterable
from uuid import uuid4

from ...db import AmbiguousCommit


class Load:
    """Context manager in which a thread for each of `clients` writes; after it the outcome of every write is known.

    A client is a function that is called again and again, each time with a unique text to write.
    """

    def __init__(self, clients: Iterable[Callable[[str], object]]) -> None:
        self.acknowledged: dict[str, float] = {}
        """Texts that were written, each with the time on the monotonic clock at which that was known."""
        self.doubtful: list[str] = []
        """Texts that may have been written."""
        self.failed: list[str] = []
        """Errors of the writes that failed, each in a line that begins with its class."""
        self._finished = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(write,), daemon=True) for write in clients]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._finished.set()
        for thread in self._threads:
            thread.join()

    def _write(self, write: Callable[[str], object]) -> None:
        while not self._finished.is_set():
            name = str(uuid4())
            try:
                write(name)
                self.acknowledged[name] = time.monotonic()
            except AmbiguousCommit:
                self.doubtful.append(name)
            except Exception as error:
                self.failed.append(f"{type(error).__name__}: {error}".partition("\n")[0])
            time.sleep(0.001)
