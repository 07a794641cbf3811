"""Checks of the real cluster, each within a time limit; nothing that they write stays behind."""

from .check import Check, CheckContext, CheckResult, Status
from .checks import ALL, WITH_CHAOS
from .run import CheckRun, Report, verify

__all__ = ["ALL", "WITH_CHAOS", "Check", "CheckContext", "CheckResult", "CheckRun", "Report", "Status", "verify"]
