"""The Slurm script of mpi_configs, submitted to a real Slurm of two nodes."""

import re
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.hosts import Host
from tests.cluster.slurm import slurm, why_no_slurm
from tests.jobs import run_program, succeed

pytestmark = [pytest.mark.hosts, pytest.mark.launch]

_GOING_ON = re.compile("JobState=(PENDING|CONFIGURING|RUNNING|COMPLETING)")


@pytest.mark.skipif(bool(why_no_slurm()), reason=why_no_slurm() or "-")
@pytest.mark.skipif(not (Path(sys.prefix) / "bin" / "activate").exists(), reason="the script activates an environment")
def test_sbatch_trains_over_two_nodes(hosts: list[Host], tmp_path: Path) -> None:
    (tmp_path / "slurm").mkdir()
    log, out = tmp_path / "job.log", tmp_path / "run"
    options = ["--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=1", f"--output={log}"]
    train = ["--data", "LICENSE", "--model", "gpt-toy", "--context", "32", "--batch-size", "2", "--steps", "2",
             "--sample-tokens", "0", "--out", str(out)]  # fmt: skip
    with slurm(hosts, tmp_path / "slurm") as config:
        setting = ["env", f"SLURM_CONF={config}", f"HVDKIT_ENV={sys.prefix}"]
        submit = [*setting, "sbatch", "--parsable", *options, "mpi_configs/slurm.sbatch", *train]
        job = succeed(run_program(hosts[0].enter(*submit))).stdout.strip()
        look = hosts[0].enter(*setting, "scontrol", "show", "job", job)
        deadline = time.monotonic() + 150
        # `sbatch --wait` would do, but looks half a minute late.
        while _GOING_ON.search(shown := succeed(run_program(look)).stdout) and time.monotonic() < deadline:
            time.sleep(0.5)
    text = log.read_text() if log.exists() else ""
    assert "JobState=COMPLETED" in shown, shown + text
    assert "4 ranks on 2 hosts, Horovod over mpi" in text
    assert re.search(r"^step 2 +validation loss", text, re.MULTILINE)
    assert (out / "config.yaml").exists()
