"""Bad input: one message for the whole job, a status other than 0, and nothing touched that was there."""

import time
from pathlib import Path

import pytest

from tests.jobs import run_ranks, succeed
from tests.train.runs import as_words, configure, write_text

pytestmark = pytest.mark.launch


def fail(folder: Path, *words: str | Path, ranks: int = 2, launcher: str = "mpirun") -> str:
    """Run the job, which must fail soon; returns its one message."""
    started = time.monotonic()
    command = ["-m", "hvdkit.train", "--model", "gpt-toy", "--steps", "2", *words]
    result = run_ranks(ranks, *command, launcher=launcher, timeout_s=60, env={"XDG_CACHE_HOME": str(folder / "cache")})
    said = result.stdout + result.stderr
    assert result.returncode != 0, said
    assert said.count("hvdkit: error: ") == 1, said
    if launcher != "horovodrun-gloo":  # which ends with a traceback of its own
        assert "Traceback" not in said, said
    assert time.monotonic() - started < 40, "10 s on a machine that does nothing else"
    return said


def test_options_that_no_run_can_have(tmp_path: Path) -> None:
    assert "did you mean gpt-mini" in fail(tmp_path, "--model", "gpt-minni", "--context", "32")
    assert "--batch-size 0 must be 1 or more" in fail(tmp_path, "--batch-size", "0")
    assert "--no-such" in fail(tmp_path, "--no-such", "1", launcher="horovodrun-gloo")


def test_data_that_is_not_there_or_too_short(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "short.txt").write_text("a few words")
    (tmp_path / "empty.txt").write_text("")
    out = tmp_path / "out"
    assert "no/such/file" in fail(tmp_path, "--data", "no/such/file", "--out", out)
    assert "shorter than one sequence" in fail(tmp_path, "--data", tmp_path / "short.txt", "--out", out)
    assert "there is no text in it" in fail(tmp_path, "--data", tmp_path / "empty.txt", "--out", out)
    assert not out.exists()


def test_broken_lines_are_named_and_can_be_skipped(tmp_path: Path) -> None:
    lines = [b'{"text": "%s"}' % (b"word %d " % number * 20) for number in range(60)]
    lines[6] = b'{"text": "broken'
    lines[9] = b'{"text": "\xff"}'
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    assert f"{path}, line 7: not JSON" in fail(tmp_path, "--data", path)
    words = ["-m", "hvdkit.train", "--model", "gpt-toy", "--context", "16", "--steps", "1", "--data", path]
    result = succeed(run_ranks(2, *words, "--skip-bad", "--out", tmp_path / "out"))
    assert "left out 2 bad lines (--skip-bad), the first: " in result.stdout and "line 7" in result.stdout


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    data, out = write_text(tmp_path / "text"), tmp_path / "run"
    out.mkdir()
    (out / "precious").write_text("kept")
    assert "exists: name another folder" in fail(tmp_path, *as_words(configure(data, out)))
    assert [path.name for path in out.iterdir()] == ["precious"]
    (tmp_path / "file").write_text("")
    assert "cannot be written" in fail(tmp_path, *as_words(configure(data, tmp_path / "file" / "run")))


def test_nothing_to_resume(tmp_path: Path) -> None:
    assert "neither a checkpoint nor a run folder" in fail(tmp_path, "--resume", tmp_path / "nothing")


def test_more_ranks_than_the_hosts_have_slots(tmp_path: Path) -> None:
    """horovodrun's own check, before any rank starts."""
    from tests.jobs import run_program

    result = run_program(["horovodrun", "-np", "3", "-H", "localhost:2", "python", "-m", "hvdkit.train"])
    said = result.stdout + result.stderr
    assert result.returncode != 0 and "available slots" in said, said
