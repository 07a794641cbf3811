"""Migrations of these tests."""
