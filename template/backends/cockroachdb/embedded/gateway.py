"""A node of the stand-in: a port of its own that leads to the one PostgreSQL behind all of them.

    python gateway.py NAME NUMBER PORT SERVER_PORT READY

Once it listens it writes its process id into the file READY: that somebody answers on the port does not say that it is this one.

A session that comes this way is told at login what it talks to, as CockroachDB tells it, and the server is told through which node
it came (`SHOW stand_in.node`). When this process ends, all its connections break, as they do when a node is lost.

It runs by itself, without the rest of the package, so that it starts in a moment.
"""

import asyncio
import os
import signal
import struct
import sys
from contextlib import suppress
from pathlib import Path

SSL_REQUEST, GSS_REQUEST, CANCEL_REQUEST = 80877103, 80877104, 80877102
"""https://www.postgresql.org/docs/current/protocol-message-formats.html"""

UNKNOWN_TO_POSTGRESQL = ("default_transaction_use_follower_reads",)
"""What a client may ask of CockroachDB at login. There is no replica here that could answer: it reads the present."""

VERSION = "stand-in for CockroachDB v25.4.0: PostgreSQL {}"
"""As `crdb_version`. Drivers look for a number in it."""


class Gateway:
    """Carries connections between its own port and the server's."""

    def __init__(self, name: str, number: int, server_port: int) -> None:
        self._name = name
        self._number = number
        self._server_port = server_port

    async def serve(self, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        """Carry one connection until either side ends it."""
        with suppress(OSError, EOFError):
            opening = await self._opening(client, answer)
            server, ask = await asyncio.open_connection("127.0.0.1", self._server_port)
            ask.write(opening)
            upwards = asyncio.create_task(_carry(client, ask))
            try:
                with suppress(OSError, EOFError):
                    await _introduce(server, answer)
                    await _carry(server, answer)
            finally:
                upwards.cancel()
                ask.close()
        answer.close()

    async def _opening(self, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> bytes:
        """The first message for the server, once the client has seen that there is no encryption here."""
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
    kept = []
    for option in options.split("-c "):
        if option and not option.startswith(UNKNOWN_TO_POSTGRESQL):
            kept.append(f"-c {option}")
    return " ".join(" ".join(kept).split())


async def _introduce(server: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
    """Pass on what the server says at login, and add what it is before it is ready for the first question."""
    version = "?"
    while True:
        head = await server.readexactly(5)
        body = await server.readexactly(int.from_bytes(head[1:]) - 4)
        if head[:1] == b"S" and body.startswith(b"server_version\0"):
            version = body.split(b"\0")[1].decode().partition(" ")[0]
        if head[:1] == b"Z":
            said = b"crdb_version\0" + VERSION.format(version).encode() + b"\0"
            answer.write(b"S" + struct.pack("!i", len(said) + 4) + said)
        answer.write(head + body)
        if head[:1] == b"Z":
            return


async def _carry(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
        if target.can_write_eof():
            target.write_eof()


async def _main(name: str, number: str, port: str, server_port: str, ready: str) -> None:
    gateway = Gateway(name, int(number), int(server_port))
    server = await asyncio.start_server(gateway.serve, "127.0.0.1", int(port), backlog=200)
    Path(ready).write_text(f"{os.getpid()}\n")
    await server.serve_forever()


if __name__ == "__main__":
    # A shell without job control lets its children ignore it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    asyncio.run(_main(*sys.argv[1:]))
