"""Settings that only this backend has; durations are in seconds."""

from pathlib import Path

from pydantic_settings import BaseSettings

from .limits import RetryPolicy


class BackendSettings(BaseSettings):
    """Part of `Settings`."""

    preferred_node: str | None = None
    """Node for work that names none; None: the first one."""
    retry: RetryPolicy = RetryPolicy()
    """Retries: `…_RETRY_DEADLINE` and so on."""
    sqlite_folder: Path = Path(".cluster")
    """Folder of the SQLite databases, each in a file NAME.sqlite3."""
