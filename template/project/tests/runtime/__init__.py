"""Tests of the runtime and of the operations, updated with the template."""
