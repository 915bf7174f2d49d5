"""The doctor's last word: ranks that really start."""

import shlex
import subprocess
import sys
from collections.abc import Sequence

from hvdkit.launch.findings import Finding, ok, problem
from hvdkit.launch.hosts import Host, host_list

_LIMIT_S = 180
_SAYS = "hvdkit proof:"


def start_ranks(hosts: Sequence[Host], gloo: bool) -> Finding:
    """Start one rank on each host (two on this machine if none is named) through `hvdkit run`."""
    ranks = max(2, len(hosts))
    words = ["-np", str(ranks), *(["--gloo"] if gloo else [])]
    if hosts:
        words += ["-H", host_list([Host(host.name, ranks // len(hosts)) for host in hosts])]
    words += ["--", "python", "-m", "hvdkit.launch.proof"]
    item, remedy = f"start {ranks} ranks", f"see all that it prints: {shlex.join(['hvdkit', 'run', *words])}"
    try:
        result = subprocess.run([sys.executable, "-m", "hvdkit.launch.run", *words], capture_output=True, text=True,
                                errors="replace", check=False, timeout=_LIMIT_S, stdin=subprocess.DEVNULL)  # fmt: skip
    except subprocess.TimeoutExpired:
        return problem(item, f"no end after {_LIMIT_S} s", remedy)
    said = [line.partition(_SAYS)[2].strip() for line in result.stdout.splitlines() if _SAYS in line]
    if result.returncode or not said:
        return problem(item, f"status {result.returncode}: {_reason(result.stderr + result.stdout)}", remedy)
    return ok(item, f"works: {said[0]}")


def _reason(text: str) -> str:
    """The line that most likely tells why: hvdkit's own, else an error's, else the last."""
    lines = [line.strip() for line in text.splitlines() if line.strip(" -=*")]
    lines = [line for line in lines if not line.startswith("hvdkit run: ") or "error:" in line]
    for sign in ("hvdkit:", "Error", "error"):
        chosen = [line for line in lines if sign in line]
        if chosen:
            return chosen[0]
    return lines[-1] if lines else "it printed nothing"
