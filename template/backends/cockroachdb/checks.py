"""The checks that only CockroachDB needs. What a stand-in cannot show is skipped, and said."""

CHECKS = ()
CHAOS = ()
