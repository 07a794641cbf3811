"""Tests of the application and of its cluster, on real servers."""
