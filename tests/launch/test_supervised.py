"""`hvdkit run --max-restarts` with real launchers and ranks: what dies is started again, and nothing stays behind."""

import json
import os
import re
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.jobs import BIN, is_alive, run_program
from tests.launch.supervised import COMMUNICATING, LAUNCHERS, PLAIN_SHELL, job, left_behind, processes_named, told

pytestmark = [pytest.mark.launch, pytest.mark.timeout(150)]

BACK_SOON = ["--max-restarts", "2", "--backoff", "0.2"]
MPIRUN = ["--launcher", "mpirun"]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_killed_rank_costs_one_restart(launcher: str, tmp_path: Path) -> None:
    with job(tmp_path, *LAUNCHERS[launcher], *BACK_SOON, "--log", str(tmp_path / "log"), deeds=["die", "end"]) as one:
        status, said = one.end()
        assert status == 0, said
        assert told(said) == [
            "attempt 0 ended with status 137 (SIGKILL) after T: restart 1 of 2 in T",
            "2 attempts in T, T of it between them: 0 status 137 (SIGKILL) after T, 1 status 0 after T",
        ]
        assert {path.name for path in tmp_path.glob("[0-9].[0-9]")} == {"0.0", "0.1", "1.0", "1.1"}
        (name,) = one.run_names
        assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{6}", name) and left_behind(name) == []
        events = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
        assert [event["event"] for event in events] == ["started", "ended", "restart", "started", "ended", "finished"]
        assert {event["run"] for event in events} == {name} and events[1]["status"] == 137


def test_a_rank_that_raises_leaves_nothing_and_ends_all_in_time(tmp_path: Path) -> None:
    with job(tmp_path, *MPIRUN, "--run-name", "broken", deeds=["raise"], program=COMMUNICATING) as one:
        one.wait_for("0.0", "0.1")
        began = time.monotonic()
        status, said = one.end()
        assert time.monotonic() - began < 20
        assert status == 1 and said.count("Traceback") == 1 and "ValueError: this rank is broken" in said, said
        segments = one.read("0.1")["segments"]
        assert len(segments) >= 2 and [path for path in segments if Path(path).exists()] == []
        assert one.run_names == {"broken"} and left_behind("broken") == []


def test_a_killed_mpirun_leaves_nothing_to_the_next_attempt(tmp_path: Path) -> None:
    """Of themselves Open MPI's segments and session folder would stay: the supervisor sweeps them."""
    with job(tmp_path, *MPIRUN, *BACK_SOON, deeds=["go on"], program=COMMUNICATING) as one:
        one.wait_for("0.0", "0.1")
        first = one.read("0.0")
        assert Path(first["session"]).is_dir() and first["segments"]
        ranks = [one.read(f"0.{rank}")["pid"] for rank in range(2)]
        assert "run" in psutil.Process(first["parent"]).name()
        os.kill(first["parent"], signal.SIGKILL)
        status, said = one.end()
        assert status == 0, said
        assert any(line.startswith("attempt 0 ended with status 137 (SIGKILL)") for line in told(said)), said
        assert not any(is_alive(rank) for rank in ranks)
        assert [path for path in [first["session"], *first["segments"]] if Path(path).exists()] == []
        assert left_behind(first["name"]) == []


def test_ranks_that_do_not_miss_their_mpirun_are_ended(tmp_path: Path) -> None:
    with job(tmp_path, *MPIRUN, *BACK_SOON, deeds=["wait", "end"]) as one:
        one.wait_for("0.0", "0.1")
        os.kill(one.read("0.0")["parent"], signal.SIGKILL)
        status, said = one.end()
        assert status == 0 and "processes that it left behind were ended: 2 on localhost" in told(said), said
        assert left_behind(next(iter(one.run_names))) == []


@pytest.mark.parametrize("launcher", ["mpirun", "horovodrun --gloo"])
def test_what_ranks_started_ends_with_them(launcher: str, tmp_path: Path) -> None:
    with job(tmp_path, *LAUNCHERS[launcher], *BACK_SOON, deeds=["stray", "end"]) as one:
        status, said = one.end()
        assert status == 0, said
        assert "processes that it left behind were ended: 2 on localhost" in told(said)
        assert not any(is_alive(one.read(f"0.{rank}")["stray"]) for rank in range(2))


@pytest.mark.parametrize(
    ("options", "deeds", "status", "last"),
    [
        pytest.param(
            ["--max-restarts", "2", "--quick-failure", "0"],
            ["exit:7"],
            7,
            "attempt 2 ended with status 7 after T: no restart, since all 2 restarts are spent",
            id="limit",
        ),
        pytest.param(
            ["--max-restarts", "9"],
            ["exit:3"],
            3,
            "attempt 1 ended with status 3 after T: no restart, since two in a row ended alike within T "
            "(--quick-failure 0 goes on)",
            id="the same again",
        ),
        pytest.param(
            ["--max-restarts", "9"],
            ["exit:2"],
            2,
            "attempt 0 ended with status 2 after T: no restart, since status 2 is that of wrong options, which the "
            "next attempt would meet again",
            id="usage",
        ),
        pytest.param(
            ["--max-restarts", "9", "--gloo"],
            ["exit:75"],
            75,
            "attempt 0 ended with status 75 (saved, to be resumed) after T: no restart, since it saved because it was "
            "told to end",
            id="saved",
        ),
    ],
)
def test_when_to_give_up(options: list[str], deeds: list[str], status: int, last: str, tmp_path: Path) -> None:
    with job(tmp_path, *MPIRUN[: 0 if "--gloo" in options else 2], *options, "--backoff", "0.1", deeds=deeds) as one:
        found, said = one.end()
        assert found == status, said
        assert last in told(said)
        (name,) = one.run_names
        assert left_behind(name) == []


def test_an_earlier_job_is_gone_on_with(tmp_path: Path) -> None:
    with job(tmp_path, *MPIRUN, "--resume-run", "earlier-1", deeds=["die", "end"]) as one:
        status, said = one.end()
        assert (status, told(said)) == (0, []), said
        assert one.run_names == {"earlier-1"} and (tmp_path / "1.0").exists() and not (tmp_path / "0.0").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ranks_save_when_the_job_is_told_to_end(launcher: str, number: signal.Signals, tmp_path: Path) -> None:
    """They take longer than a launcher would give them. With restarts allowed and without."""
    options = BACK_SOON if number == signal.SIGTERM else []
    with job(tmp_path, *LAUNCHERS[launcher], *options, deeds=["save"]) as one:
        one.wait_for("0.0", "0.1")
        one.process.send_signal(number)
        status, said = one.end()
        assert status == 75, said
        assert one.read("saved.0") == one.read("saved.1") == number
        (name,) = one.run_names
        assert f"saved, to be gone on with: the same command with --resume-run {name}" in said
        assert left_behind(name) == [] and not (tmp_path / "1.0").exists()


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_who_does_not_end_in_time_is_ended(launcher: str, tmp_path: Path) -> None:
    with job(tmp_path, *LAUNCHERS[launcher], *BACK_SOON, "--grace", "1", deeds=["deaf"]) as one:
        one.wait_for("0.0", "0.1")
        one.process.send_signal(signal.SIGTERM)
        status, said = one.end(80)
        assert status not in (0, 75) and "as it was told to" in said, (status, said)
        (name,) = one.run_names
        assert left_behind(name) == [] and not (tmp_path / "1.0").exists()


def test_a_signal_ends_a_pause_at_once(tmp_path: Path) -> None:
    with job(tmp_path, *MPIRUN, "--max-restarts", "1", "--backoff", "1h", deeds=["die"]) as one:
        lines = iter(one.process.stderr)
        assert any("restart 1 of 1 in 1 h 0 min" in line for line in lines)
        one.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        status, said = one.end(20)
        assert status == 128 + signal.SIGTERM and time.monotonic() - began < 10
        assert told(said)[0] == "told to end between two attempts"


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ranks_do_not_outlive_a_killed_supervisor(launcher: str, tmp_path: Path) -> None:
    with job(tmp_path, *LAUNCHERS[launcher], deeds=["wait"]) as one:
        one.wait_for("0.0", "0.1")
        (name,) = one.run_names
        assert len(processes_named(name)) >= 3
        one.process.kill()
        one.process.wait()
        assert left_behind(name, limit_s=40) == []


def test_two_jobs_of_one_name_do_not_meet(tmp_path: Path) -> None:
    with job(tmp_path, *MPIRUN, "--run-name", "taken", deeds=["wait"]) as one:
        one.wait_for("0.0", "0.1")
        (tmp_path / "other").mkdir()
        with job(tmp_path / "other", *MPIRUN, "--run-name", "taken", deeds=["end"]) as other:
            status, said = other.end()
            assert status == 2 and "a job named taken is running on this machine" in said
        one.process.terminate()
        assert one.end()[0] == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--backoff", "2s"], "--backoff is for jobs that are started again; add --max-restarts N"),
        (["--log", "no/folder/log"], "--log no/folder/log cannot be written: No such file or directory"),
        (["--max-restarts", "1", "--min-np", "3"], "--min-np 3 is not between 1 and -np 2"),
        (["--max-restarts", "-1"], "'-1' is no whole number"),
        (["--max-restarts", "1", "--run-name", "../x"], "'../x' is no name of a folder"),
        (["--max-restarts", "1", "--backoff", "soon"], "'soon' is no time"),
    ],
)
def test_wrong_options(options: list[str], said: str) -> None:
    result = run_program([BIN / "hvdkit", "run", "-np", "2", *options, "--", "python"], env=PLAIN_SHELL)
    assert result.returncode == 2 and said in result.stderr
