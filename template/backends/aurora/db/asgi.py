"""Carry the token of a write from one web request to the next, in a cookie: an ASGI middleware without dependencies.

    app.add_middleware(ReadYourWrites)          # Starlette, FastAPI
    app = ReadYourWrites(app)                   # any ASGI application

The endpoint may be a coroutine or run in a thread, behind any other middleware. Commit before the response begins: its
headers carry the cookie, so the token of a later write, as in a background task, reaches no other request.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from .replicas import Token, request_tokens

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


class ReadYourWrites:
    """Let the reads of a client see the writes of its earlier requests."""

    def __init__(
        self, app: Application, *, cookie: str = "last_write", max_age: int = 60, secure: bool | None = None
    ) -> None:
        """Wrap an application.

        Args:
            app: the application.
            cookie: name of the cookie.
            max_age: lifetime of the cookie in seconds; longer than a reader is ever behind.
            secure: send the cookie over HTTPS only; None: if the request that wrote came that way.
        """
        self._app = app
        self._cookie = cookie
        self._max_age = max_age
        self._secure = secure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application; only HTTP requests are changed."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start" and tokens.written:
                header = (b"set-cookie", self._set_cookie(tokens.written, scope).encode("ascii"))
                message = {**message, "headers": [*message.get("headers", ()), header]}
            await send(message)

        with request_tokens(self._token(scope)) as tokens:
            await self._app(scope, receive, send_with_cookie)

    def _token(self, scope: Scope) -> Token | None:
        """Return the token in the request's cookies; one that is malformed counts as none."""
        headers = [value.decode("latin-1") for name, value in scope["headers"] if name == b"cookie"]
        for pair in ";".join(headers).split(";"):
            name, _, value = pair.strip().partition("=")
            if name == self._cookie:
                try:
                    return Token.parse(value.strip('"'))
                except ValueError:
                    continue
        return None

    def _set_cookie(self, token: Token, scope: Scope) -> str:
        secure = scope.get("scheme") == "https" if self._secure is None else self._secure
        attributes = f"Path=/; Max-Age={self._max_age}; HttpOnly; SameSite=Lax"
        return f"{self._cookie}={token}; {attributes}{'; Secure' if secure else ''}"
