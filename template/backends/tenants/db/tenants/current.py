"""The current tenant of a thread or task, such as the tenant of a web request."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ..errors import MisuseError

_current: ContextVar[str | None] = ContextVar("current_tenant", default=None)


def current_tenant() -> str | None:
    """Return the tenant that `use_tenant` set in this thread or task."""
    return _current.get()


@contextmanager
def use_tenant(name: str) -> Iterator[None]:
    """Make `name` the tenant of all work in this thread or task that names none, until the block ends."""
    token = _current.set(name)
    try:
        yield
    finally:
        _current.reset(token)


def chosen(tenant: str | None) -> str:
    """Return `tenant`, or the current tenant if it is None; raise `MisuseError` if there is neither."""
    name = tenant if tenant is not None else current_tenant()
    if name is None:
        raise MisuseError("no tenant given: pass tenant=… or use `with use_tenant(…)`")
    return name
