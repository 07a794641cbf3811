"""Tests of the runtime and of the operations: updated with the template, and independent of the models of the project."""
