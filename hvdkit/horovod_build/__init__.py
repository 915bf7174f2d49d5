"""Builds Horovod 0.28.1 from PyPI's source release against the installed torch; imports nothing of hvdkit but errors.

Horovod's last release does not build against torch 2.1 and later, CMake 4, or Python 3.12. `edits.py` holds the few
changes that mend this, as data. `python -m hvdkit.horovod_build --help` tells the rest.

Combinations that were built and verified (two ranks, MPI and Gloo):

| Python | torch | MPI | CMake |
|---|---|---|---|
| 3.11 | 2.13.0 (CPU) | Open MPI 4.1.8 (wheel) | 3.31 |

GPU builds (NCCL) have not been run.
"""
