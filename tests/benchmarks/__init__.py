"""Tests of the benchmarks' harness: what it measures must be the right thing; the times themselves are no tests."""
