"""What is left of a job is found and removed, and nothing else: real processes, and files with real names."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from hvdkit.launch.leftovers import end_processes, processes_of, session_folder, sweep_files, tell_ranks

pytestmark = pytest.mark.launch

HOST, UID = socket.gethostname().partition(".")[0], os.getuid()
SLEEP = "import time; print('up', flush=True); time.sleep(1000)"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {SLEEP!r}])"


@contextmanager
def sleeper(program: str = SLEEP, **environment: str) -> Iterator["subprocess.Popen[str]"]:
    environ = {name: value for name, value in os.environ.items() if "RANK" not in name} | environment
    command = [sys.executable, "-S", "-c", program]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        try:
            yield process
        finally:
            process.kill()


def test_only_the_jobs_processes_are_ended() -> None:
    with ExitStack() as stack:
        mine = [stack.enter_context(sleeper(HVDKIT_RUN_NAME="test-mine")) for _ in range(2)]
        others = [stack.enter_context(sleeper(HVDKIT_RUN_NAME=name)) for name in ("test-mine-2", "test-min", "")]
        assert {process.pid for process in processes_of("test-mine")} == {process.pid for process in mine}
        assert end_processes("test-mine") == 2
        assert not any(psutil.pid_exists(process.pid) for process in mine)
        assert processes_of("test-mine") == [] and end_processes("test-mine") == 0
        assert [process.poll() for process in others] == [None] * 3


def test_ranks_are_told_and_not_their_children_or_launchers() -> None:
    with ExitStack() as stack:
        launcher = stack.enter_context(sleeper(HVDKIT_RUN_NAME="test-told"))
        rank = stack.enter_context(sleeper(PARENT, HVDKIT_RUN_NAME="test-told", OMPI_COMM_WORLD_RANK="0"))
        assert len(processes_of("test-told")) == 3
        assert tell_ranks("test-told", signal.SIGUSR1) == 1
        assert rank.wait(timeout=10) == -signal.SIGUSR1
        left = {process.pid for process in processes_of("test-told")}
        assert launcher.pid in left and len(left) == 2
        assert end_processes("test-told") == 2


def test_only_the_jobs_files_are_removed(tmp_path: Path) -> None:
    """Open MPI's job numbers are 0x1aa00001 and, on the other host of a shared folder, the same family."""
    folder, memory = session_folder("test-files", str(tmp_path)), tmp_path / "shm"
    mine = folder / f"ompi.{HOST}.{UID}" / "pid.30302"
    (mine / "pmix_dstor_ds21_30302").mkdir(parents=True)
    (mine / "pmix_dstor_ds21_30302" / f"smdataseg-{0x1AA00001}-0").touch()
    (folder / f"ompi.{HOST}x.{UID}" / "jf.6816").mkdir(parents=True)
    memory.mkdir()
    swept = [f"vader_segment.{HOST}.{UID}.1aa00001.{rank}" for rank in range(2)]
    swept += [f"sm_segment.{HOST}.{UID}.1aa00001.0", f"osc_sm.{HOST}.1aa00001.0.3"]
    kept = [f"vader_segment.{HOST}.{UID}.{job}.0" for job in ("1aa10001", "aa00001", "1aa0")]
    kept += ["sem.1aa00001.0", "1aa00001", "fi_sm2_mmaps"]
    for name in [*swept, *kept]:
        (memory / name).touch()
    assert sweep_files(folder, memory) == len(swept)
    assert sorted(path.name for path in memory.iterdir()) == sorted(kept)
    assert [path.name for path in folder.iterdir()] == [f"ompi.{HOST}x.{UID}"]
    (folder / f"ompi.{HOST}x.{UID}" / "jf.6816").rmdir()
    (folder / f"ompi.{HOST}x.{UID}").rmdir()
    assert sweep_files(folder, memory) == 0 and not folder.exists()
    assert sweep_files(folder, memory) == 0
