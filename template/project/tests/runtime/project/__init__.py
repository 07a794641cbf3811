"""Project whose migrations make the tables of these tests."""
