"""Runs a launcher as a child, hands it the signals that this process gets, and returns its exit status.

A plain exec would do for mpirun. But horovodrun becomes a shell that waits for mpirun, and a shell that is told to end
ends alone and leaves the job running.

Launchers that are told to end leave their ranks no time to save: Open MPI kills them a second later, horovodrun over
Gloo five seconds later. So where the ranks can be told directly, they are, and the launcher only if the job has not
ended `grace_s` later, or at a second signal. The launcher has a session of its own: what a terminal or `timeout` sends
to all of this one does not reach it, and what is typed at a terminal is handed on.
"""

import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence

import psutil

from hvdkit.launch.keyboard import relayed_terminal
from hvdkit.launch.leftovers import SHELLS
from hvdkit.launch.signals import ENDING, FORWARDED, Signals, blocked, heeded, unblocked


def run_launcher(
    program: str,
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    signals: Signals,
    on_start: Callable[[int], None],
    tell_ranks: Callable[[int], bool],
    grace_s: float,
) -> int:
    """Start `program` with the words of `command` and wait for it; 128 and more for a signal, as in a shell.

    `on_start` gets the child's number. `tell_ranks` hands a signal to the ranks and says whether it reached one; where
    it did not, the launcher gets the signal. What comes is noted in `signals`.
    """
    watched = {*heeded(), signal.SIGCHLD}
    with blocked(watched) as before, relayed_terminal() as stdin:  # kept until asked for, so that none is missed
        if signals.told is not None:
            return 128 + signals.told
        child = subprocess.Popen(
            command,
            executable=program,
            env=environment,
            stdin=stdin,
            start_new_session=True,
            preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, before) and None,
        )
        on_start(child.pid)
        deadline: float | None = None
        while child.poll() is None:
            if deadline is None:
                received: signal.struct_siginfo | None = signal.sigwaitinfo(watched)
            else:
                received = signal.sigtimedwait(watched, max(0.0, deadline - time.monotonic()))
            if received is None:
                deadline = None
                forward(child.pid, signals.told or signal.SIGTERM)
            elif received.si_signo in FORWARDED:
                number, is_first, ends = received.si_signo, signals.told is None, received.si_signo in ENDING
                signals.note(number)
                # Told over ssh: programs that are started meanwhile should not inherit what is blocked here.
                with unblocked(before):
                    is_told = (is_first or not ends) and tell_ranks(number)
                if not is_told:
                    forward(child.pid, number)
                if ends:
                    deadline = time.monotonic() + grace_s if is_told else None
    if signals.told and child.returncode == 0:
        # horovodrun over Gloo may lose the status of ranks that it ended: two of its threads wait for the same child.
        return 128 + signals.told
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def forward(pid: int, number: int) -> None:
    """Hand a signal to the launcher that process `pid` is, or for which it is the shell."""
    try:
        child = psutil.Process(pid)
        for process in child.children() if child.name() in SHELLS else [child]:
            process.send_signal(number)
    except psutil.NoSuchProcess:
        pass  # it has ended meanwhile, which the loop sees
