"""How many threads torch may use within a collective.

A script that leaves torch's default has each rank copy with as many threads as there are cores. Where the ranks share
those, the threads wait for each other to be given one: an all-reduce of 512 KB took 16 ms instead of 0.1.
"""

import torch


def limit_threads(most: int) -> int | None:
    """Have torch use at most `most` threads, here and in MKL everywhere; returns what `restore_threads` wants."""
    asked = torch.get_num_threads()
    if asked <= most:
        return None
    torch.set_num_threads(most)
    return asked


def restore_threads(asked: int | None) -> None:
    """Undo `limit_threads`."""
    if asked is not None:
        torch.set_num_threads(asked)
