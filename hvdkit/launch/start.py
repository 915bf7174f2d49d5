"""The doctor's proof: ranks that really start, find each other, and add up their numbers."""

import shlex
import subprocess
import sys
from collections.abc import Sequence

from hvdkit.launch.findings import Finding, ok, problem
from hvdkit.launch.hosts import Host, host_list

_LIMIT_S = 180
_SAYS = "hvdkit doctor:"

_PROGRAM = f"""
import sys, torch, hvdkit as hvd
world = hvd.init()
total = hvd.allreduce(torch.full((1000,), float(hvd.rank() + 1)), op=hvd.Sum, name="doctor")
if not bool((total == world.size * (world.size + 1) / 2).all()):
    sys.exit("the sum over the ranks is wrong")
if world.is_root:
    hosts = "1 host" if world.cross_size == 1 else f"{{world.cross_size}} hosts"
    sys.stdout.write(f"{_SAYS} {{world.size}} ranks on {{hosts}} over {{world.backend}}\\n")
"""


def start_ranks(hosts: Sequence[Host], gloo: bool) -> Finding:
    """Start one rank on each host (two on this machine if none is named) through `hvdkit run`."""
    ranks = max(2, len(hosts))
    words = [sys.executable, "-m", "hvdkit.launch.run", "-np", str(ranks), *(["--gloo"] if gloo else [])]
    if hosts:
        words += ["-H", host_list([Host(host.name, max(1, ranks // len(hosts))) for host in hosts])]
    item = f"start {ranks} ranks"
    try:
        result = subprocess.run([*words, "--", "python", "-c", _PROGRAM], capture_output=True, text=True,
                                errors="replace", check=False, timeout=_LIMIT_S, stdin=subprocess.DEVNULL)  # fmt: skip
    except subprocess.TimeoutExpired:
        return problem(item, f"no end after {_LIMIT_S} s", _see(words))
    said = [line.partition(_SAYS)[2].strip() for line in result.stdout.splitlines() if _SAYS in line]
    if result.returncode or not said:
        return problem(item, f"status {result.returncode}: {_reason(result.stderr + result.stdout)}", _see(words))
    return ok(item, f"works: {said[0]}")


def _see(words: list[str]) -> str:
    command = shlex.join(["hvdkit", "run", *words[3:], "--", "python", "-c", "import hvdkit; hvdkit.init()"])
    return f"see all that it prints: {command}"


def _reason(text: str) -> str:
    """The line that most likely tells why: hvdkit's own, else an error's, else the last."""
    lines = [line.strip() for line in text.splitlines() if line.strip(" -=*")]
    lines = [line for line in lines if not line.startswith("hvdkit run: ") or "error:" in line]
    for sign in ("hvdkit", "Error", "error"):
        chosen = [line for line in lines if sign in line]
        if chosen:
            return chosen[0]
    return lines[-1] if lines else "it printed nothing"
