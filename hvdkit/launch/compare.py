"""Other hosts of a job: the same checks there, over ssh, and what differs from here."""

import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from hvdkit.launch.findings import Finding, ok, problem
from hvdkit.launch.hosts import Host, ask_host, is_local, unreachable
from hvdkit.launch.site import python_there

_LIMIT_S = 240


def compare_hosts(hosts: Sequence[Host], here: Sequence[Finding]) -> list[Finding]:
    """What each host that is not this machine lacks, or has otherwise; one row `ok` for a host that fits."""
    others = [host for host in hosts if not is_local(host.name)]
    if not others:
        return []
    with ThreadPoolExecutor(len(others)) as pool:
        return [finding for findings in pool.map(lambda host: _compare(host, here), others) for finding in findings]


def _compare(host: Host, here: Sequence[Finding]) -> list[Finding]:
    result = ask_host(host.name, _remote_command(host), _LIMIT_S)
    if result.returncode == 255:
        return [problem(host.name, "not reached", unreachable({host.name: result.stderr}))]
    try:
        rows = [Finding(**row) for row in json.loads(result.stdout.splitlines()[-1])["findings"]]
    except (IndexError, KeyError, TypeError, ValueError):
        lines = (result.stderr.strip() or f"status {result.returncode}").splitlines()
        return [problem(host.name, f"the checks do not run there: {lines[-1].strip()}",
                        f"every host needs the environment of {sys.executable} at the same path, with the same "
                        "hvdkit in it (a shared folder, or a copy)")]  # fmt: skip
    return differences(host.name, rows, here)


def differences(name: str, there: Sequence[Finding], here: Sequence[Finding]) -> list[Finding]:
    """The faults of host `name`, whose own checks found `there`; and what must be alike, but is not."""
    rows = {row.item: row for row in there}
    faults = [replace(row, item=f"{name}: {row.item}") for row in there if row.state != "ok"]
    for mine in here:
        other = rows.get(mine.item)
        if mine.state == "ok" and mine.same != (other.same if other else "") and (not other or other.state == "ok"):
            found = f"{other.same if other else 'none'} there, {mine.same} here"
            faults.append(problem(f"{name}: {mine.item}", found, "install the same on all hosts, best as one shared "
                                  "environment"))  # fmt: skip
    return faults if any(fault.state == "problem" for fault in faults) else [ok(name, "fits this host"), *faults]


def _remote_command(host: Host) -> str:
    """The doctor there."""
    return python_there(["-m", "hvdkit.launch.doctor", "--json", "--no-start", "-np", str(host.slots)])
