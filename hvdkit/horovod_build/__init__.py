"""Builds Horovod 0.28.1 from PyPI's source release against the installed torch; imports nothing of hvdkit but errors.

Horovod's last release does not build against torch 2.1 and later, CMake 4, or Python 3.12. `edits.py` holds the few
changes that mend this, as data. `python -m hvdkit.horovod_build --help` tells the rest.

Combinations that were built, with a two-rank all-reduce over MPI and over Gloo, and the tests of `tests/dropin` and
`tests/optim` on one and two ranks, with GCC 12 on x86-64:

| Python | torch | MPI | CMake |
|---|---|---|---|
| 3.11 | 2.1.0 (CUDA 12.1 build, `--gpu none`) | Open MPI 4.1.8 (wheel) | 3.31 |
| 3.11 | 2.13.0 (CPU build) | Open MPI 4.1.8 (wheel) | 3.31, 4.4 |
| 3.11 | 2.13.0 (CPU build) | Debian's Open MPI 4.1.4 (`--mpi system`; all-reduce only) | 3.31 |
| 3.11 | 2.13.0 (CPU build) | Debian's MPICH 4.0.2, mpi4py built against it | 3.31 |
| 3.11 | 2.14.1 (CUDA 13.0 build, `--gpu none`; its headers need C++20) | Open MPI 4.1.8 (wheel) | 3.31 |
| 3.13 | 2.14.1 (CUDA 13.0 build, `--gpu none`) | Open MPI 4.1.8 (wheel) | 4.4 |

Compiled and loaded, with two ranks on CPU tensors, but never run on a GPU: `--gpu nccl` with torch 2.14.1, CUDA 13.0
and pip's NCCL 2.30.7. Not tried at all: ROCm (not built), Intel MPI, MVAPICH, Cray MPICH, Clang, ARM, macOS.
"""
