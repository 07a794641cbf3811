"""Is the cluster really all right? Questions put to the real one, each answered within a time limit, nothing left behind."""

from .check import Check, Finding, Status, Subject
from .run import Answer, Report, verify

__all__ = ["Answer", "Check", "Finding", "Report", "Status", "Subject", "verify"]
