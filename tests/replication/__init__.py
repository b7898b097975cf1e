"""Tests of replication over real engines, sockets and processes; the pure protocol has its own, in tests/simulation."""
