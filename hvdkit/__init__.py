"""hvdkit: train language models on many workers with Horovod and MPI."""

from hvdkit.runtime import init, shutdown
