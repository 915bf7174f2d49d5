"""`hvdkit doctor`: what is here, whether it fits together, and what to do about it."""

import argparse
import json
import socket
import sys
from collections.abc import Iterator

from hvdkit.errors import LaunchError
from hvdkit.launch.checks import CHECKS
from hvdkit.launch.compare import compare_hosts
from hvdkit.launch.facts import gather
from hvdkit.launch.findings import Finding
from hvdkit.launch.hosts import Host, is_local, parse_hosts
from hvdkit.launch.start import start_ranks

_WIDTH = 16


def main(argv: list[str] | None = None) -> int:
    """Print the table; returns 1 if training could not work, 0 otherwise, 2 for a wrong option."""
    options = _parser().parse_args(argv)
    try:
        hosts = parse_hosts(options.hosts) if options.hosts else ()
    except LaunchError as error:
        print(f"hvdkit doctor: error: {error}", file=sys.stderr)
        return 2
    findings: list[Finding] = []
    for finding in examine(hosts, options.ranks, options.start):
        findings.append(finding)
        if not options.json:
            _print(finding)
    problems = sum(finding.state == "problem" for finding in findings)
    if options.json:
        print(json.dumps({"host": socket.gethostname(), "findings": [vars(finding) for finding in findings]}))
    elif problems:
        print(f"\nTraining cannot work here until the {problems} problem{'s' * (problems > 1)} above are solved.")
    else:
        print("\nTraining can work here.")
    return int(problems > 0)


def examine(hosts: tuple[Host, ...], ranks: int | None, start: bool) -> Iterator[Finding]:
    """All findings, as they come: this machine's, those on the other hosts, and real ranks if nothing forbids them."""
    own_slots = sum(host.slots for host in hosts if is_local(host.name))
    facts = gather(ranks or own_slots or 2)
    here = [finding for check in CHECKS for finding in check(facts)]
    yield from here
    there = compare_hosts(hosts, here)
    yield from there
    if start and not any(finding.state == "problem" for finding in (*here, *there)):
        yield start_ranks(hosts, gloo=not facts.library or facts.site.mpi is None)


def _print(finding: Finding) -> None:
    print(f"{finding.item:<{_WIDTH}} {finding.state:<8} {finding.found}", flush=True)
    if finding.remedy:
        print(f"{'':<{_WIDTH}} {'':<8} -> {finding.remedy}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hvdkit doctor",
        description="Check whether this machine (and other hosts) can train, with a remedy for each problem. "
        "Exit status: 1 if training could not work.",
    )
    parser.add_argument("-H", dest="hosts", default="", help="also check these hosts over ssh: node1:4,node2:4")
    parser.add_argument("-np", dest="ranks", type=int, help="ranks on this machine (default: its slots of -H, or 2)")
    parser.add_argument("--no-start", dest="start", action="store_false", help="start no ranks (login nodes)")
    parser.add_argument("--json", action="store_true", help="print JSON, for machines")
    return parser


if __name__ == "__main__":
    sys.exit(main())
