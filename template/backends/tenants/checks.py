"""The checks that only servers with a database per tenant need."""

from .check import Check

CHECKS: tuple[type[Check], ...] = ()

CHAOS: tuple[type[Check], ...] = ()
