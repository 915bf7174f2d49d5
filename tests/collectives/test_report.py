"""`hvdkit collectives`: its tables for made-up parameters, and the command on as many ranks as there are."""

import argparse
import json
import re

import pytest

from hvdkit import cli
from hvdkit.collectives.__main__ import _size, main
from hvdkit.collectives.cost import Curve, Parameters
from hvdkit.collectives.report import Report, Row, format_bytes, format_seconds
from hvdkit.runtime import World

PARAMETERS = Parameters(
    ((0, 1), (2, 3)), 2.5e-6, 1.25e-6, 40e-6, 125e6, {("all_reduce", "mpi"): Curve(((256, 1e-5),))}, 0.321
)


def report(*rows: Row) -> Report:
    return Report(PARAMETERS, list(rows), {"all_reduce": {"shared_memory": "the ranks are on several nodes"}})


def test_the_text_tells_ranks_and_parameters() -> None:
    text = report().as_text()
    assert text.startswith("4 ranks on 2 nodes:\n  node 0: ranks 0 to 1\n  node 1: ranks 2 to 3\n")
    for part in ("probe took 321 ms", "2.5 us", "1.25 us", "40 us  for a byte", "125 MB/s  from node to node"):
        assert part in text
    one_node = Report(Parameters(((0, 1, 2),), 1e-6, 1e-6), [], {}).as_text()
    assert one_node.startswith("3 ranks, all on one node")
    assert "from node to node" not in one_node


def test_ranks_that_alternate_are_listed() -> None:
    text = Report(Parameters(((0, 2), (1,)), 1e-6, 1e-6), [], {}).as_text()
    assert "  node 0: ranks 0, 2\n  node 1: rank 1\n" in text


def test_the_table_of_predictions() -> None:
    rows = [
        Row("all_reduce", 1024, "mpi", {"mpi": 10e-6, "ring": 25e-6}),
        Row("all_reduce", 2**20, "ring", {"mpi": 2e-3, "ring": 1.234e-3}),
    ]
    lines = report(*rows).as_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("all_reduce"))
    assert lines[start].split() == ["all_reduce", "mpi", "ring"]
    assert lines[start + 1].split("predicted") == ["      1 KB  ", f"{'*10 us':>21}{'25 us':>14}"]
    assert lines[start + 2].split() == ["1", "MB", "predicted", "2", "ms", "*1.23", "ms"]
    assert lines[start + 3] == "  no shared_memory: the ranks are on several nodes"
    assert len({len(line) for line in lines[start : start + 3]}) == 1, "columns are aligned"


@pytest.mark.parametrize(
    "seconds, verdict",
    [
        (10e-6, "best chosen"),
        (21e-6, "ring is best, the chosen one within 10%"),
        (30e-6, "ring is best, the chosen one takes 1.50 times as long"),
    ],
)
def test_measured_times_are_judged(seconds: float, verdict: str) -> None:
    row = Row("all_reduce", 1024, "mpi", {"mpi": 1e-5, "ring": 2e-5}, {"horovod": 1e-3, "mpi": seconds, "ring": 20e-6})
    text = report(row).as_text()
    assert verdict in text
    predicted = next(line for line in text.splitlines() if "predicted  " in line)
    assert predicted.split()[-1] == "-", "Horovod's engine is measured only"
    count = 1 if seconds < 22e-6 else 0
    assert f"within 10% of the measured best in {count} of 1 cases" in text


def test_json() -> None:
    row = Row("all_reduce", 1024, "mpi", {"mpi": 1e-5, "ring": 2e-5}, {"mpi": 30e-6, "ring": 20e-6})
    got = json.loads(json.dumps(report(row, Row("all_reduce", 8, "mpi", {"mpi": 1e-5})).as_json()))
    assert got["ranks"] == 4
    assert Parameters.from_json(got["parameters"]) == PARAMETERS
    measured, predicted = got["rows"]
    assert (measured["measured_best"], measured["chosen_over_best"], measured["is_close"]) == ("ring", 1.5, False)
    assert (predicted["measured_best"], predicted["is_close"]) == (None, None)


def test_numbers_are_short() -> None:
    assert [format_seconds(value) for value in (1.23456e-6, 45e-6, 0.00123, 0.999, 2.5)] == [
        "1.23 us", "45 us", "1.23 ms", "999 ms", "2.5 s",
    ]  # fmt: skip
    assert [format_bytes(value) for value in (100, 1024, 1500, 3 * 2**20, 2**30)] == [
        "100 B", "1 KB", "1500 B", "3 MB", "1 GB",
    ]  # fmt: skip


def test_sizes_are_read() -> None:
    assert [_size(text) for text in ("100", "1K", "8k", "4MB", "1G")] == [100, 1024, 8192, 2**22, 2**30]
    for text in ("0", "-1", "K", "1T", "1.5M"):
        with pytest.raises(argparse.ArgumentTypeError, match="no message length"):
            _size(text)


def test_the_command(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    status = cli.main(["collectives", "--sizes", "1K", "64K"])
    printed = capsys.readouterr().out
    if world.size == 1:
        assert status == 0
        assert "hvdkit run -np 2 -- hvdkit collectives" in printed
    elif world.comm is None:
        assert status == 1
    elif not world.is_root:
        assert (status, printed) == (0, "")
    else:
        assert status == 0
        assert f"{world.size} ranks" in printed
        assert len(re.findall(r"^ +(?:1|64) KB  predicted .*\*", printed, re.MULTILINE)) == 2 * 5


def test_the_command_measures(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--measure", "--json", "--collective", "all_reduce", "broadcast", "--sizes", "4K"])
    printed = capsys.readouterr().out
    if not world.is_root:
        assert printed == ""
        return
    got = json.loads(printed)
    assert got["ranks"] == world.size
    if world.size == 1 or world.comm is None:
        assert "problem" in got
        return
    assert [(row["collective"], row["nbytes"]) for row in got["rows"]] == [("all_reduce", 4096), ("broadcast", 4096)]
    for row in got["rows"]:
        assert {"horovod", "mpi", "tree", row["chosen"], row["measured_best"]} <= row["measured_s"].keys()
        assert all(0 < seconds < 10 for seconds in row["measured_s"].values())
        assert row["chosen_over_best"] >= 1


def test_wrong_arguments_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--collective", "all_to_all"])
    assert "all_to_all" in capsys.readouterr().err
