"""The options of `hvdkit run` that make it start a failed job again."""

import argparse
import re
from pathlib import Path

from hvdkit.contract import is_run_name
from hvdkit.errors import LaunchError
from hvdkit.launch.attempts import Supervision, new_run_name
from hvdkit.launch.restarts import RestartPolicy
from hvdkit.launch.times import parse_seconds

_BACKOFF_S = 1.0
_QUICK_FAILURE_S = 60.0
_WAIT_HOSTS_S = 600.0


def supervision(options: argparse.Namespace) -> Supervision:
    """What the parsed options ask for. Raises LaunchError for options without their use."""
    if options.min_ranks is not None and not 1 <= options.min_ranks <= options.ranks:
        raise LaunchError(f"--min-np {options.min_ranks} is not between 1 and -np {options.ranks}")
    if not options.max_restarts:
        given = {
            "--restart-window": options.restart_window, "--backoff": options.backoff,
            "--quick-failure": options.quick_failure, "--min-np": options.min_ranks, "--wait-hosts": options.wait_hosts,
        }  # fmt: skip
        useless = [option for option, value in given.items() if value is not None]
        if useless:
            raise LaunchError(f"{useless[0]} is for jobs that are started again; add --max-restarts N")
    if options.restart_window == 0:
        raise LaunchError("--restart-window 0 allows restarts without end; give a time, or leave it out")
    if options.log is not None and not options.dry_run:
        _check_log(options.log)
    return Supervision(
        policy=RestartPolicy(
            options.max_restarts,
            options.restart_window,
            _BACKOFF_S if options.backoff is None else options.backoff,
            _QUICK_FAILURE_S if options.quick_failure is None else options.quick_failure,
        ),
        run_name=options.resume_run or options.run_name or new_run_name(),
        first_attempt=int(options.resume_run is not None),
        min_ranks=options.min_ranks,
        wait_hosts_s=_WAIT_HOSTS_S if options.wait_hosts is None else options.wait_hosts,
        grace_s=options.grace,
        log=options.log,
    )


def add_restart_options(parser: argparse.ArgumentParser) -> None:
    """Add the group `restarts`."""
    group = parser.add_argument_group(
        "restarts",
        "A job that fails is started again, on the hosts that still answer; hvdkit.train goes on from its last "
        "complete checkpoint. Not restarted: a job that was told to end (SIGTERM, and others); one with status 75, "
        "which means that it saved and can go on; one that would fail again. Times: 90 (s), 5m, 1h.",
    )
    group.add_argument("--max-restarts", type=_whole, default=0, metavar="N", help="at most so many (default: none)")
    group.add_argument("--restart-window", type=_time, metavar="TIME", help="N within this time (default: in all)")
    group.add_argument("--backoff", type=_time, metavar="TIME",
                       help="pause before the first restart, doubled from one to the next, to 5 minutes; anew after an "
                       "attempt of 10 minutes (default: 1s)")  # fmt: skip
    group.add_argument("--quick-failure", type=_time, metavar="TIME",
                       help="two attempts in a row that end sooner, with the same status, are the last (default: 60s; "
                       "0: never)")  # fmt: skip
    group.add_argument("--min-np", dest="min_ranks", type=_whole, metavar="M",
                       help="go on with M ranks or more when hosts do not answer (default: all)")  # fmt: skip
    group.add_argument("--wait-hosts", type=_time, metavar="TIME",
                       help="how long to wait for room for M ranks (default: 10m)")  # fmt: skip
    group.add_argument("--grace", type=_time, default=25.0, metavar="TIME",
                       help="what ranks get for saving when the job is told to end (default: 25s)")  # fmt: skip
    name = group.add_mutually_exclusive_group()
    name.add_argument("--run-name", type=_name, metavar="NAME", help="the job's name (default: the time and a number)")
    name.add_argument("--resume-run", type=_name, metavar="NAME", help="go on with the job of that name")
    group.add_argument("--log", type=Path, metavar="FILE", help="also write what happens there, as JSON lines")


def _check_log(path: Path) -> None:
    try:
        path.open("a").close()
    except OSError as problem:
        raise LaunchError(f"--log {path} cannot be written: {problem.strerror or problem}") from None


def _time(text: str) -> float:
    try:
        return parse_seconds(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write such as 90s, 5m, 1h") from None


def _whole(text: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 on")
    return int(text)


def _name(text: str) -> str:
    if not is_run_name(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a folder: letters, digits, and . _ - after the first")
    return text
