"""Revisions of these tests."""
