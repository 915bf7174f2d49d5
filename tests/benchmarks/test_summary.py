"""What the benchmarks of collectives compute from their times, against numbers worked out by hand."""

import pytest
import torch

from benchmarks.collective import NAMES, Buffers, bus_bandwidth, bytes_to_move, expected, given, rounded
from benchmarks.compare import name_size, parse_size, tables
from benchmarks.rounds import Measured, Outcome
from benchmarks.summary import summarise


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("collective", NAMES)
def test_expected_results_follow_from_what_ranks_give(collective: str, ranks: int) -> None:
    nbytes = rounded(4000, ranks)
    buffers = [Buffers.allocate(collective, nbytes, ranks) for _ in range(ranks)]
    inputs = [given(own.send.numel(), rank) for rank, own in enumerate(buffers)]
    total = torch.stack(inputs).sum(0)
    for rank, own in enumerate(buffers):
        result = {
            "allreduce": total,
            "broadcast": inputs[0],
            "allgather": torch.cat(inputs),
            "reducescatter": total.tensor_split(ranks)[rank],
        }[collective]
        assert torch.equal(expected(own, rank, ranks), result)
        assert own.receive.shape == result.shape
        assert max(own.send.nbytes, own.receive.nbytes) == nbytes


def test_bus_bandwidth_and_bytes_to_move() -> None:
    # n = 12 bytes on 3 ranks in 2 s
    in_words = {name: (bus_bandwidth(name, 12, 3, 2.0), bytes_to_move(name, 12, 3)) for name in NAMES}
    assert in_words == {
        "allreduce": (8.0, 72),  # every rank reads 12 and writes 12
        "broadcast": (6.0, 36),  # one reads 12, two write 12
        "allgather": (4.0, 48),  # three read 4, three write 12
        "reducescatter": (4.0, 48),  # three read 12, three write 4
    }


def test_sizes() -> None:
    assert [parse_size(word) for word in ("512", "1K", "256M")] == [512, 1024, 256 * 1024**2]
    assert [name_size(nbytes) for nbytes in (512, 1024, 3 * 1024**2 // 2)] == ["512 B", "1 KiB", "1.5 MiB"]
    assert [rounded(1024, ranks) for ranks in (2, 3, 4)] == [1024, 1020, 1024]
    assert rounded(1, 4) == 16


def _outcome() -> Outcome:
    """A machine that gets three times as slow in the second and third round."""
    return Outcome(
        "allreduce",
        2,
        contenders=["hvdkit ring", "hvdkit auto", "peer"],
        measured=[
            Measured("hvdkit auto", 1024**2, [[1.0, 1.0], [3.0, 3.0], [3.0, 9.0]], note="ring"),
            Measured("peer", 1024**2, [[2.0, 2.0], [6.0, 6.0], [6.0, 6.0]]),
            Measured("hvdkit ring", 1024**2, [[1.5, 1.5], [4.5, 4.5], [4.5, 4.5]]),
        ],
        triad_s=[0.5, 1.0, 9.0],
        left_out={"other": "the job ended with status 1\n    and said where it lives"},
    )


def test_summary() -> None:
    summary = summarise(_outcome())
    assert summary.reference == "hvdkit auto"
    assert summary.contenders() == ["hvdkit ring", "hvdkit auto", "peer"]
    # the median triad of two ranks: 2 x 3 x 64 MiB in 1 s; the message moves 4 MiB
    assert summary.triad_bytes_per_s == 384 * 1024**2
    assert summary.bound_s(1024**2) == pytest.approx(4 / 384)
    auto, peer = summary.at("hvdkit auto", 1024**2), summary.at("peer", 1024**2)
    assert auto is not None and peer is not None
    assert (auto.rounds, auto.calls, auto.median_s, auto.mean_s) == (3, 6, 3.0, pytest.approx(20 / 6))
    assert auto.reference_is_times_as_fast == 1.0
    assert peer.reference_is_times_as_fast == 2.0  # twice in two of three rounds
    assert peer.share_of_bound == pytest.approx(4 / 384 / 6)
    assert peer.bus_bandwidth_bytes_per_s == pytest.approx(1024**2 / 6)


def test_tables_and_record_name_every_contender_and_no_path() -> None:
    summary = summarise(_outcome())
    for _, header, rows in tables(summary):
        assert header[:4] == ["message", "hvdkit ring", "hvdkit auto", "peer"]
        assert [row[0] for row in rows] == ["1 MiB"]
        assert all(len(row) == len(header) for row in rows)
    assert tables(summary)[0][2] == [["1 MiB", "4500", "3000", "6000", "10.4"]]
    assert tables(summary)[3][1][-1] == "hvdkit auto is"
    assert tables(summary)[3][2] == [["1 MiB", "1.50", "1.00", "2.00", "ring"]]
    assert summary.record()["left_out"] == {"other": "the job ended with status 1"}


def test_one_without_triad_or_reference_has_no_bound_and_no_ratio() -> None:
    outcome = Outcome("allgather", 2, contenders=["peer"], measured=[Measured("peer", 64, [[1.0]])])
    result = summarise(outcome).at("peer", 64)
    assert result is not None
    assert (result.share_of_bound, result.reference_is_times_as_fast) == (None, None)
    assert [row for _, _, rows in tables(summarise(outcome)) for row in rows][3] == ["64 B", "-"]
