"""`hvdkit plan` as a user runs it, and how right its memory is."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.watched_training import measure_peak_bytes, start_train
from tests.jobs import BIN, run_program, run_ranks, succeed

pytestmark = pytest.mark.launch

STEPS = 4
RUN = ["--data", "hvdkit/train", "--model", "gpt-33m", "--batch-size", "2", "--eval-every", "0"]
CLUSTER = ["--ranks", "64", "--ranks-per-host", "8", "--memory", "16GiB", "--link", "25gbit"]


def _plan(*words: str) -> Any:
    return run_program([sys.executable, "-m", "hvdkit.plan", *words], timeout_s=200)


@pytest.mark.parametrize(("ranks", "stages"), [(1, (0,)), (2, (0, 1, 2, 3)), (4, (0, 2, 3))])
def test_memory_is_what_training_takes(ranks: int, stages: tuple[int, ...], tmp_path: Path) -> None:
    plan = json.loads(succeed(_plan("--json", "--ranks", str(ranks), *RUN)).stdout)
    ratios = {}
    for stage in stages:
        options = ["--sharding", str(stage), "--steps", str(STEPS), "--log-every", "1", "--sample-tokens", "0"]
        command = start_train(ranks, [*RUN, *options, "--checkpoint-every", "0", "--out", str(tmp_path / str(stage))])
        measured = max(measure_peak_bytes(command, ranks, STEPS))
        ratios[stage] = plan["stages"][stage]["peak_bytes"] / measured
    assert all(0.9 <= ratio <= 1.1 for ratio in ratios.values()), ratios


def test_a_cluster(tmp_path: Path) -> None:
    picture = tmp_path / "plan.png"
    words = ["plan", "--model", "gpt2-xl", "--context", "1024", "--batch-size", "1", *CLUSTER]
    said = succeed(run_program([BIN / "hvdkit", *words, "--picture", str(picture)], timeout_s=200)).stdout
    assert "1,477,614,400 parameters" in said and "64 ranks on 8 hosts" in said
    rows = re.findall(r"^ +([0-3]) .* (yes|no)$", said, re.MULTILINE)
    assert rows == [("0", "no"), ("1", "no"), ("2", "yes"), ("3", "yes")]
    assert re.search(r"^ +1 +1 ", said, re.MULTILINE) and re.search(r"^ +1024 +128 ", said, re.MULTILINE)
    assert "--sharding " in said and "mpi_configs/two_hosts_ethernet.conf" in said
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_given_speeds_are_taken(tmp_path: Path) -> None:
    words = ["--model", "gpt2", "--flops", "100T", "--inside", "300GB", "--json", *CLUSTER]
    plan = json.loads(succeed(_plan(*words)).stdout)
    assert plan["machine"]["flops_per_s"] == 100e12
    assert plan["stages"][0]["time"]["compute"] == pytest.approx(plan["footprint"]["flops"] / 100e12)
    # Horovod's ring: every host sends 2(p-1)/p of the gradients.
    assert plan["stages"][0]["bytes_out"] == pytest.approx(2 * 63 / 64 * 4 * plan["footprint"]["parameters"])
    assert any("gpus_nccl.env" in line for line in plan["command"])


def test_ranks_that_a_launcher_started() -> None:
    said = succeed(run_ranks(2, "-m", "hvdkit.plan", "--model", "gpt-toy")).stdout
    assert "2 ranks on 1 host" in said and said.count("hvdkit plan:") == 1
    assert "The quickest that fits is stage" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "gpt3"], "--model gpt3 is not known"),
        (["--ranks", "4", "--ranks-per-host", "2"], "2 hosts: tell what joins them, as --link 25gbit"),
        (["--memory", "much"], "--memory much cannot be read"),
        (["--tokenizer", "nowhere"], "tokens='nowhere' is neither 'bytes' nor 'bpe' nor a folder with a tokenizer"),
        (
            ["--picture", "no/such/folder.png", "--model", "gpt-toy"],
            "--picture no/such/folder.png: its folder is not there",
        ),
    ],
)
def test_one_sentence_and_status_2(words: list[str], said: str) -> None:
    result = _plan(*words)
    assert result.returncode == 2 and result.stdout == ""
    assert said in result.stderr
    assert result.stderr.startswith("hvdkit: error: ") and result.stderr.count("\n") == 1


def test_the_measuring_job_leaves_nothing(tmp_path: Path) -> None:
    result = run_program([sys.executable, "-m", "hvdkit.plan", "--model", "gpt-toy"], env={"TMPDIR": str(tmp_path)})
    succeed(result)
    left = [path for path in tmp_path.iterdir() if path.name.startswith("hvdkit-plan")]
    assert left == []
