"""Starts real jobs (ranks in processes of their own) for tests, with time limits and no leftovers."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent

LAUNCHERS: dict[str, list[str]] = {
    "mpirun": ["mpirun", "--allow-run-as-root", "--oversubscribe"],
    "horovodrun-mpi": ["horovodrun", "--mpi"],
    "horovodrun-gloo": ["horovodrun", "--gloo"],
}


def clean_environ(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without what a launcher or MPI itself put there, with the environment's bin first."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("OMPI_", "PMIX_", "PMI_", "HOROVOD_", "SLURM_", "OPAL_", "ORTE_"))
    }
    kept["PATH"] = f"{BIN}{os.pathsep}{kept.get('PATH', '')}"
    kept.update(extra or {})
    return kept


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has waited for (a zombie) does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def run_program(
    command: Sequence[str | Path],
    *,
    timeout_s: float = 120,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `command` in a session of its own and return its status, stdout and stderr.

    Past `timeout_s` the whole process group is killed and the test fails with what was printed until then.
    """
    process = subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        env=clean_environ(env),
        cwd=cwd or ROOT,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(f"no end after {timeout_s} s: {command}\n--- stdout\n{out}\n--- stderr\n{err}") from None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run_ranks(
    ranks: int,
    *words: str | Path,
    launcher: str = "mpirun",
    timeout_s: float = 120,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `python WORDS...` on `ranks` ranks under `launcher` (a key of LAUNCHERS, or "python" for one rank)."""
    prefix = [] if launcher == "python" else [*LAUNCHERS[launcher], "-np", str(ranks)]
    return run_program([*prefix, sys.executable, *words], timeout_s=timeout_s, env=env, cwd=cwd)


def succeed(result: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    """Assert that the job ended with status 0, showing what it printed otherwise; returns `result`."""
    assert result.returncode == 0, (
        f"status {result.returncode}\n--- stdout\n{result.stdout}\n--- stderr\n{result.stderr}"
    )
    return result
