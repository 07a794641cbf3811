"""Settings that only this backend has; durations are in seconds."""

from pydantic import PositiveInt
from pydantic_settings import BaseSettings

from .limits import RetryPolicy


class BackendSettings(BaseSettings):
    """Part of `Settings`."""

    preferred_node: str | None = None
    """Node that this process tries first, usually the nearest; None: work is spread over all nodes."""
    retry: RetryPolicy = RetryPolicy(deadline=20)
    """Retries: `…_RETRY_DEADLINE` and so on. Other nodes take over for a lost one after 5 to 14 s."""
    cluster_vcpus: PositiveInt | None = None
    """vCPUs of all nodes together; if given, pools that are larger than the cluster are warned of."""
