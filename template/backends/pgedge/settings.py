"""Settings that only this backend has; durations are in seconds."""

from pydantic_settings import BaseSettings

from .limits import RetryPolicy


class BackendSettings(BaseSettings):
    """Part of `Settings`."""

    preferred_node: str | None = None
    """Node that this process tries first, usually the nearest; None: the first one."""
    retry: RetryPolicy = RetryPolicy()
    """Retries: `…_RETRY_DEADLINE` and so on."""
