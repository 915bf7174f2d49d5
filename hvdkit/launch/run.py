"""`hvdkit run -np N -- command`: picks launcher and flags, prints the command line, and runs it."""

import argparse
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

from hvdkit.errors import LaunchError
from hvdkit.launch.attempts import supervise_job
from hvdkit.launch.command import LAUNCHERS, Wanted, build_command
from hvdkit.launch.hosts import check_reachable, parse_hosts, read_hostfile
from hvdkit.launch.restart_options import add_restart_options, supervision
from hvdkit.launch.site import Site, find_site


def main(argv: list[str] | None = None) -> int:
    """Start the ranks and wait for them; returns the job's exit status, or 2 where nothing could start."""
    options = _parser().parse_args(argv)
    try:
        wanted, how, site = _wanted(options), supervision(options), find_site()
        command = build_command(wanted, site)
        if options.dry_run:
            print(copyable(command, site))
            return 0
        _check_program(wanted.command[0], site)
        check_reachable(wanted.hosts, sys.executable)
        return supervise_job(wanted, site, how, lambda command: copyable(command, site))
    except LaunchError as error:
        print(f"hvdkit run: error: {error}", file=sys.stderr)
        return 2


def copyable(command: tuple[str, ...], site: Site) -> str:
    """The command as a shell takes it, with PATH in front of it where it differs from this process's."""
    plain = os.environ.get("PATH", "")
    line = shlex.join(command)
    if site.path == plain:
        return line
    added = site.path.removesuffix(plain)
    return f'PATH={shlex.quote(added)}"$PATH" {line}'


def _wanted(options: argparse.Namespace) -> Wanted:
    words = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not words:
        raise LaunchError("nothing to run; write for example `hvdkit run -np 2 -- python -m hvdkit.train`")
    # Some environments have python3 alone; another folder's python would be another environment.
    is_python = re.fullmatch(r"python(3(\.\d+)?)?", words[0])
    if is_python and not (Path(sys.executable).parent / words[0]).exists():
        words = [sys.executable, *words[1:]]
    hosts = parse_hosts(options.hosts) if options.hosts else ()
    return Wanted(
        ranks=options.ranks,
        command=tuple(words),
        hosts=read_hostfile(options.hostfile) if options.hostfile else hosts,
        launcher=options.launcher,
        gloo=options.gloo,
        interface=options.network_interface,
    )


def _check_program(program: str, site: Site) -> None:
    if shutil.which(program, path=site.path) is None:
        raise LaunchError(f"{program} is not a program on PATH; give the command that each rank runs after --")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hvdkit run",
        usage="hvdkit run -np N [options] -- command ...",
        description="Start a command on N ranks with the right launcher and flags; prints the command line it runs.",
    )
    parser.add_argument("-np", dest="ranks", type=int, required=True, metavar="N", help="number of ranks")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("-H", dest="hosts", help="hosts and slots: node1:4,node2:4 (default: this machine)")
    where.add_argument("--hostfile", type=Path, help="a file with lines of `host slots=N`")
    parser.add_argument("--launcher", default="auto", choices=LAUNCHERS, help="default: horovodrun where it works")
    parser.add_argument("--gloo", action="store_true", help="let Horovod use Gloo instead of MPI")
    parser.add_argument("--network-interface", metavar="NAME", help="the interface that all hosts share, such as eth0")
    parser.add_argument("--dry-run", action="store_true", help="print the command line and stop")
    add_restart_options(parser)
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- and the command that each rank runs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
