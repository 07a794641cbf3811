"""The few operations in which a database for threads and one for asyncio differ: everything else is shared."""

import time
from collections.abc import Callable
from threading import Lock
from typing import Any

from sqlalchemy import Engine, create_engine
from sqlalchemy.engine import URL

from ..limits import PoolLimits


class Threads:
    """Operations that block the calling thread."""

    def create_engine(self, url: URL, **options: Any) -> Engine:
        """Create an engine."""
        return create_engine(url, **options)

    def pool(self, limits: PoolLimits) -> PoolLimits:
        """Return the pool limits with the pool class that fits."""
        return limits

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)

    def make_lock(self) -> Any:
        """Create a lock."""
        return Lock()

    def acquire(self, lock: Any, timeout: float) -> bool:
        """Acquire a lock of `make_lock` within `timeout` seconds; return False if that was not possible."""
        return bool(lock.acquire(timeout=timeout))

    def call(self, function: Callable[[], object]) -> None:
        """Call a function that must not be interrupted halfway."""
        function()
