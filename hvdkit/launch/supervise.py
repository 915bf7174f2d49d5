"""Runs a launcher as a child, hands it the signals that this process gets, and returns its exit status.

A plain exec would do for mpirun. But horovodrun becomes a shell that waits for mpirun, and a shell that is told to end
ends alone and leaves the job running.
"""

import signal
import subprocess
from collections.abc import Mapping, Sequence

import psutil

_FORWARDED = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
_ENDING = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}
_SHELLS = {"sh", "dash", "bash"}


def run_launcher(program: str, command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Start `program` with the words of `command` and wait for it; 128 and more for a signal, as in a shell."""
    watched = {*_FORWARDED, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)  # kept until asked for, so that none is missed
    ended_by = None
    try:
        child = subprocess.Popen(
            command,
            executable=program,
            env=environment,
            preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, before) and None,
        )
        while child.poll() is None:
            received = signal.sigwaitinfo(watched)
            # A terminal's Ctrl-C (a code above 0) reaches the launcher without us: twice would make it cut short.
            if received.si_signo in _FORWARDED and received.si_code <= 0:
                _forward(child.pid, received.si_signo)
                ended_by = received.si_signo if received.si_signo in _ENDING else ended_by
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if ended_by and child.returncode == 0:
        # horovodrun over Gloo may lose the status of ranks that it ended: two of its threads wait for the same child.
        return 128 + ended_by
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _forward(pid: int, number: int) -> None:
    try:
        child = psutil.Process(pid)
        for process in child.children() if child.name() in _SHELLS else [child]:
            process.send_signal(number)
    except psutil.NoSuchProcess:
        pass  # it has ended meanwhile, which the loop sees
