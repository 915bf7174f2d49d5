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


def who_has_what(values: Sequence[str]) -> str:
    """`0.001 on ranks 0, 1 and 0.002 on rank 2`, of each rank's value."""
    ranks: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        ranks.setdefault(value, []).append(rank)
    return " and ".join(f"{value} on {ranks_in_words(numbers)}" for value, numbers in ranks.items())
