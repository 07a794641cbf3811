"""A proxy that loses the answer to COMMIT: the server commits, and the client gets a broken connection."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sqlalchemy.engine import URL


@contextmanager
def losing_commits(url: URL, *, times: int, late: float = 0.0) -> Iterator[URL]:
    """Start a proxy in front of a server and yield the URL that leads through it.

    Args:
        url: URL of the server.
        times: number of commits whose answer is lost.
        late: seconds between the broken connection and the commit; with 0 the server commits first. If the client
            retries within that time, it finds a transaction that is still open.
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
    """Forward the messages of the client, and in a second thread those of the server."""
    lost = threading.Event()
    answers = threading.Thread(target=_forward_answers, args=(server, client, lost), daemon=True)
    answers.start()
    with client, server, suppress(OSError):
        while data := client.recv(65536):
            # The zero byte tells COMMIT from READ COMMITTED at the start of a transaction.
            if b"COMMIT\x00" in data and left[0]:
                left[0] -= 1
                lost.set()
                if late:
                    client.shutdown(socket.SHUT_RDWR)
                    time.sleep(late)
                server.sendall(data)
                # The server answers when it has committed; its connection stays open until then.
                answers.join(5)
                return
            server.sendall(data)


def _forward_answers(server: socket.socket, client: socket.socket, lost: threading.Event) -> None:
    with suppress(OSError):
        while (data := server.recv(65536)) and not lost.is_set():
            client.sendall(data)
