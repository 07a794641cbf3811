"""Checks of the real cluster, each within a time limit; nothing that they write stays behind."""

from .check import Check, CheckContext, CheckResult, Report, Run, Status, verify
from .checks import ALL, WITH_CHAOS
from .scratch import Scratch

__all__ = ["ALL", "WITH_CHAOS", "Check", "CheckContext", "CheckResult", "Report", "Run", "Scratch", "Status", "verify"]
