"""A node of the stand-in: a port of its own that leads to the one PostgreSQL behind all nodes.

    python gateway.py NAME NUMBER PORT SERVER_PORT READY

When it listens it writes its process id and both ports to the file READY, because an answer on the port could come from
another process.

At login the gateway reports `crdb_version` to the client, as CockroachDB does, and the name of its node to the server
(`SHOW stand_in.node`). When this process ends, all its connections break, as they do when a node is lost.

It runs without the rest of the package, so that it starts fast.
"""

import asyncio
import os
import re
import signal
import struct
import sys
from contextlib import suppress

SSL_REQUEST, GSS_REQUEST, CANCEL_REQUEST = 80877103, 80877104, 80877102
"""Request codes (https://www.postgresql.org/docs/current/protocol-message-formats.html)."""

UNKNOWN_TO_POSTGRESQL = ("default_transaction_use_follower_reads", "autocommit_before_ddl")
"""Options that only CockroachDB has, which are dropped. A stale read then returns current data."""

VERSION = "stand-in for CockroachDB v25.4.0: PostgreSQL {}"
"""Value of `crdb_version`. Drivers look for a number in it."""


class Gateway:
    """Forwarder of connections to the server's port."""

    def __init__(self, name: str, number: int, server_port: int) -> None:
        self._name = name
        self._number = number
        self._server_port = server_port

    async def serve(self, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        """Forward one connection until either side ends it."""
        with suppress(OSError, EOFError):
            opening = await self._opening(client, answer)
            server, ask = await asyncio.open_connection("127.0.0.1", self._server_port)
            ask.write(opening)
            upwards = asyncio.create_task(_forward(client, ask))
            try:
                with suppress(OSError, EOFError):
                    await _forward_login(server, answer)
                    await _forward(server, answer)
            finally:
                upwards.cancel()
                ask.close()
        answer.close()

    async def _opening(self, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> bytes:
        """Refuse encryption, and return the first message for the server."""
        while True:
            length, code = struct.unpack("!ii", await client.readexactly(8))
            rest = await client.readexactly(length - 8)
            if code in (SSL_REQUEST, GSS_REQUEST):
                answer.write(b"N")
            elif code == CANCEL_REQUEST:
                return struct.pack("!ii", length, code) + rest
            else:
                return self._startup(code, rest)

    def _startup(self, protocol: int, rest: bytes) -> bytes:
        words = rest.rstrip(b"\0").decode().split("\0")
        parameters = dict(zip(words[::2], words[1::2], strict=False))
        if options := parameters.get("options"):
            parameters["options"] = _without_unknown(options)
        parameters |= {"stand_in.node": self._name, "stand_in.number": str(self._number)}
        body = "".join(f"{name}\0{value}\0" for name, value in parameters.items()).encode() + b"\0"
        return struct.pack("!ii", len(body) + 8, protocol) + body


def _without_unknown(options: str) -> str:
    return re.sub(rf"-c\s*({'|'.join(UNKNOWN_TO_POSTGRESQL)})=\S*\s?", "", options)


async def _forward_login(server: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
    """Forward the server's messages at login, and add `crdb_version` before it is ready for the first query."""
    version = "?"
    while True:
        head = await server.readexactly(5)
        body = await server.readexactly(int.from_bytes(head[1:]) - 4)
        if head[:1] == b"S" and body.startswith(b"server_version\0"):
            version = body.split(b"\0")[1].decode().partition(" ")[0]
        if head[:1] == b"Z":
            status = b"crdb_version\0" + VERSION.format(version).encode() + b"\0"
            answer.write(b"S" + struct.pack("!i", len(status) + 4) + status)
        answer.write(head + body)
        if head[:1] == b"Z":
            return


async def _forward(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
        if target.can_write_eof():
            target.write_eof()


async def _main(name: str, number: str, port: str, server_port: str, ready: str) -> None:
    gateway = Gateway(name, int(number), int(server_port))
    server = await asyncio.start_server(gateway.serve, "127.0.0.1", int(port), backlog=200)
    # The folder may belong to a user who is trusted less than this one.
    with os.fdopen(os.open(ready, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "w") as file:
        file.write(f"{os.getpid()} {port} {server_port}\n")
    await server.serve_forever()


if __name__ == "__main__":
    # The children of a shell without job control ignore SIGINT.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    asyncio.run(_main(*sys.argv[1:]))
