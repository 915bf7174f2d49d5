"""One timeline, valid JSON, with hvdkit's collectives and those of Horovod's engine on one clock."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from hvdkit.runtime.watch.engine_timeline import EngineTimeline
from hvdkit.runtime.watch.timeline import open_timeline
from tests.jobs import run_ranks, succeed

SCRIPT = Path(__file__).with_name("watched.py")
SLACK_US = 500

Records = list[dict[str, Any]]


def of_watch(records: Records) -> dict[str, dict[str, Any]]:
    """hvdkit's own events by name."""
    return {record["name"]: record for record in records if record["ph"] == "X" and "bytes" in record.get("args", {})}


def of_engine(records: Records) -> dict[str, list[dict[str, Any]]]:
    """The engine's events by tensor."""
    names = {
        record["pid"]: record["args"]["name"]
        for record in records
        if record["ph"] == "M" and record["name"] == "process_name"
    }
    tensors: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        if record["ph"] in "BE":
            tensors.setdefault(names[record["pid"]], []).append(record)
    return tensors


def transfer_us(events: list[dict[str, Any]]) -> list[float]:
    """When the all-reduce of a tensor began and ended; its negotiation begins with the first rank, not with rank 0."""
    names = [event.get("name") for event in events]
    return [event["ts"] for event in events[names.index("ALLREDUCE") :]]


def check_format(records: Records, is_complete: bool = True) -> None:
    """What a viewer of Chrome's format needs."""
    assert isinstance(records, list)
    for record in records:
        assert record["ph"] in ("M", "X", "B", "E", "i")
        assert record["ph"] == "M" or record["ts"] > 0
        assert record["ph"] != "X" or record["dur"] >= 0
    for events in of_engine(records).values():
        depth = 0
        for event in sorted(events, key=lambda event: event["ts"]):
            depth += 1 if event["ph"] == "B" else -1
            assert depth >= 0
        assert depth == 0 or not is_complete


def check_clocks(records: Records, printed: str) -> None:
    """The engine's `inside` lies in hvdkit's `around`, which lies where the script's own clock says."""
    around, inside = of_watch(records)["around"], of_engine(records)["allreduce.inside"]
    begin_us, end_us = (float(number) for number in re.findall(r"_us=([\d.]+)", printed))
    assert begin_us <= around["ts"] < around["ts"] + around["dur"] <= end_us
    moments = transfer_us(inside)
    # The script slept 20 ms before and after it, but may get the core back late.
    assert around["ts"] + 20_000 - SLACK_US < min(moments)
    assert max(moments) < around["ts"] + around["dur"] - 20_000 + SLACK_US
    assert around["args"] == {"kind": "barrier", "algorithm": "mpi", "bytes": 40, "number": 1}


@pytest.mark.launch
@pytest.mark.parametrize(("launcher", "ranks"), [("mpirun", 3), ("horovodrun-gloo", 2), ("python", 1)])
def test_one_file_holds_both(launcher: str, ranks: int, tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    env = {"HOROVOD_TIMELINE": str(path), "HOROVOD_TIMELINE_MARK_CYCLES": "1"}
    result = succeed(run_ranks(ranks, SCRIPT, "timeline", launcher=launcher, env=env))
    records = json.loads(path.read_text())
    check_format(records)
    check_clocks(records, result.stdout)
    assert {"allreduce.before", "allreduce.inside"} <= of_engine(records).keys()
    assert any(record["ph"] == "i" and record["name"] == "CYCLE_START" for record in records)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.launch
def test_the_file_of_a_killed_job_lacks_only_its_end(tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    result = run_ranks(2, SCRIPT, "timeline", "kill", env={"HOROVOD_TIMELINE": str(path)})
    assert result.returncode != 0
    records = json.loads(path.read_text().rstrip().rstrip(",") + "]")
    check_format(records, is_complete=False)
    check_clocks(records, result.stdout)
    (mark,) = [record for record in records if record["ph"] == "i"]
    assert mark["name"] == "waits in the last" and mark["args"] == {"kind": "barrier", "algorithm": "mpi"}


@pytest.mark.launch
def test_dynamic_timelines(tmp_path: Path) -> None:
    paths = tmp_path / "one.json", tmp_path / "two.json"
    result = succeed(run_ranks(2, SCRIPT, "dynamic", *paths, env={"HOROVOD_TIMELINE": "DYNAMIC"}))
    assert "first_is_complete=True" in result.stdout
    for path, name in zip(paths, ("one", "two"), strict=True):
        records = json.loads(path.read_text())
        check_format(records)
        event, tensors = of_watch(records), of_engine(records)
        assert event.keys() == {name}
        assert tensors.keys() - {"allreduce.one cycle on"} == {f"allreduce.{name}"}
        begin_us, end_us = event[name]["ts"], event[name]["ts"] + event[name]["dur"]
        assert all(begin_us - SLACK_US < us < end_us + SLACK_US for us in transfer_us(tensors[f"allreduce.{name}"]))
        assert any(record["name"] == "CYCLE_START" for record in records if record["ph"] == "i") == (name == "two")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["one.json", "two.json"]


@pytest.mark.launch
def test_a_file_that_cannot_be_written_does_not_end_the_job(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "timeline.json"
    result = succeed(run_ranks(2, SCRIPT, "timeline", env={"HOROVOD_TIMELINE": str(path)}))
    assert f"no timeline is recorded: {path} cannot be written" in result.stderr


HOROVODS = (
    '[\n{"name": "process_name", "ph": "M", "pid": 0, "args": {"start_time_since_epoch_in_micros":1000000}},\n'
    '{"name": "process_sort_index", "ph": "M", "pid": 0, "args": {"sort_index": 0}},\n'
    '{"name": "process_name", "ph": "M", "pid": 1, "args": {"name": "läyer"}},\n'
    '{"ph": "B", "name": "ALLREDUCE", "ts": 5, "pid": 1}]'
)


def test_horovods_file_is_read_as_it_grows(tmp_path: Path) -> None:
    """Byte by byte, the closing bracket overwritten, as Horovod does it; the oracle is the JSON of the whole."""
    path = tmp_path / "engine"
    parts = [HOROVODS, '{"ph": "E", "ts": 7, "pid": 1, "args": {"dtype": "float32", "shape": "[10]"}}]', '{"ph": "i"}]']
    reader = EngineTimeline(str(path), epoch_us=999_000.5)
    assert list(reader.read_new()) == []
    whole, read = b"", []
    for part in parts:
        whole = whole[:-1] + b"," * bool(whole)
        for byte in part.encode():
            whole += bytes([byte])
            path.write_bytes(whole)
            read += list(reader.read_new())
    expected = json.loads(whole)
    for record in expected:
        if "ts" in record:
            record["ts"] += 999.5
    expected[0]["args"] = {"name": "Horovod's engine", "start_time_since_epoch_in_micros": 999000}
    assert read == expected


def test_a_name_that_breaks_horovods_json_costs_its_own_record_only(tmp_path: Path) -> None:
    path = tmp_path / "engine"
    path.write_text(HOROVODS.replace("läyer", 'a "quoted" name'), encoding="utf-8")
    read = list(EngineTimeline(str(path), epoch_us=0).read_new())
    assert [record["ph"] for record in read] == ["M", "M", "B"]


def test_collectives_of_threads_and_names_of_any_kind(tmp_path: Path) -> None:
    path = str(tmp_path / "timeline.json")
    timeline = open_timeline(path, 0.0, {})
    assert timeline is not None
    names = ['a "quoted" name', "back\\slash", "läyer", "line\nbreak"]
    for number, name in enumerate(names):
        timeline.add(
            (1000 * number, number, name, "all-reduce", "ring", 8, None, None), 1000 * number + 500, number % 2
        )
    timeline.close()
    records = json.loads(Path(path).read_text(encoding="utf-8"))
    events = [record for record in records if record["ph"] == "X"]
    assert [(event["name"], event["ts"], event["dur"], event["tid"]) for event in events] == [
        (name, float(number), 0.5, number % 2 + 1) for number, name in enumerate(names)
    ]
