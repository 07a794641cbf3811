"""The checks that only unrelated databases need."""

from .check import Check

CHECKS: tuple[type[Check], ...] = ()

CHAOS: tuple[type[Check], ...] = ()
