"""Ranks in words, for messages."""

from collections.abc import Sequence


def ranks_in_words(ranks: Sequence[int]) -> str:
    """`rank 3`, `ranks 2, 3`, `ranks 1-5, 9`."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    parts = [", ".join(map(str, run)) if len(run) < 3 else f"{run[0]}-{run[-1]}" for run in runs]
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(parts)}"
