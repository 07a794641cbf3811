"""Settings that only this backend has; durations are in seconds."""

from pydantic import NonNegativeFloat, PositiveFloat
from pydantic_settings import BaseSettings

from .limits import RetryPolicy


class BackendSettings(BaseSettings):
    """Part of `Settings`."""

    preferred_node: str | None = None
    """Reader that this process tries first, usually the nearest; None: any reader."""
    retry: RetryPolicy = RetryPolicy()
    """Retries: `…_RETRY_DEADLINE` and so on."""
    commit_timeout: NonNegativeFloat = 5.0
    """Longest COMMIT; no timeout of the server ends one that waits for a standby. 0 disables the limit."""
    read_wait: NonNegativeFloat = 0.1
    """Time that a reader gets to replay the last write; then the writer serves the read."""
    max_lag: PositiveFloat | None = None
    """Seconds that a reader may be behind, for reads that name no limit; None: any number."""
