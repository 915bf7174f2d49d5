"""Fuzzing reads files and needs no ranks: it runs in the one-rank session only."""

from hvdkit.runtime import launch_info

collect_ignore_glob = ["test_*.py"] if launch_info().size > 1 else []
