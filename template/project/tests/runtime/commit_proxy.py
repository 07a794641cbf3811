"""A wire that loses the answer to COMMIT: the server commits, and its client never hears of it."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sqlalchemy.engine import URL


@contextmanager
def losing_commits(url: URL, *, times: int, late: float = 0.0) -> Iterator[URL]:
    """A URL that leads to the same server through a wire that breaks `times` times, at a commit.

    It breaks when the server has committed, or, when a commit is to be `late`, so many seconds before the server
    hears of it: whoever asks again at once then finds a transaction that is still open.
    """
    left = [times]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_accept, args=(listener, url, left, late), daemon=True)
        thread.start()
        yield url.set(host="127.0.0.1", port=listener.getsockname()[1])
        # Closing alone does not wake the thread that waits in accept().
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def _accept(listener: socket.socket, url: URL, left: list[int], late: float) -> None:
    with suppress(OSError):
        while True:
            client, _ = listener.accept()
            server = socket.create_connection((url.host or "", url.port or 5432))
            threading.Thread(target=_carry, args=(client, server, left, late), daemon=True).start()


def _carry(client: socket.socket, server: socket.socket, left: list[int], late: float) -> None:
    """Pass on what the client says and what the server answers, in turn: libpq asks one thing at a time."""
    lost = threading.Event()
    answers = threading.Thread(target=_pass_on, args=(server, client, lost), daemon=True)
    answers.start()
    with client, server, suppress(OSError):
        while data := client.recv(65536):
            # With its end: every transaction begins with READ COMMITTED.
            if b"COMMIT\x00" in data and left[0]:
                left[0] -= 1
                lost.set()
                if late:
                    client.shutdown(socket.SHUT_RDWR)
                    time.sleep(late)
                server.sendall(data)
                # The server answers when it is done, and only then is it left.
                answers.join(5)
                return
            server.sendall(data)


def _pass_on(server: socket.socket, client: socket.socket, lost: threading.Event) -> None:
    with suppress(OSError):
        while (data := server.recv(65536)) and not lost.is_set():
            client.sendall(data)
