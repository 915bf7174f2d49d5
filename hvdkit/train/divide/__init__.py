"""Divide and conquer, the whole path: a common start, a submodel on each domain, merges, and all of them compared."""

from hvdkit.train.divide.job import DivideJob

__all__ = ["DivideJob"]
