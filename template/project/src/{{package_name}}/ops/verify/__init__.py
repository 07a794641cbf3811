"""Is the cluster really all right? Questions put to the real one, each answered within a time limit, nothing left behind."""

from .check import Check, Finding, Status, Subject
from .run import ALL, WITH_CHAOS, Answer, Report, verify

__all__ = ["ALL", "WITH_CHAOS", "Answer", "Check", "Finding", "Report", "Status", "Subject", "verify"]
