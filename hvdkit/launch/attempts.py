"""A job under supervision: nothing of it is left behind, and it is started again when it fails, if that is wished.

    attempt -> end what it left behind, on every host -> stop, or pause -> which hosts answer? -> next attempt

Nothing of an attempt lives when the next one starts. A host that could not be asked is left out until it answers at a
later restart, and is cleaned up then. A job that hangs is not this program's business: the ranks' stall check ends it,
and an ended job is what is restarted here.
"""

import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hvdkit.contract import ATTEMPT, RUN_NAME
from hvdkit.errors import LaunchError
from hvdkit.launch.account import Account
from hvdkit.launch.command import Wanted, build_command, fills_allocation
from hvdkit.launch.everywhere import Answer, Everywhere
from hvdkit.launch.gloo_status import is_gloo, with_ranks_status
from hvdkit.launch.guard import Guard
from hvdkit.launch.hosts import host_list
from hvdkit.launch.leftovers import RANK_VARIABLES, processes_of, session_folder
from hvdkit.launch.restarts import RestartPolicy, Restarts
from hvdkit.launch.signals import ENDING, Signals
from hvdkit.launch.site import Site
from hvdkit.launch.supervise import run_launcher
from hvdkit.launch.survivors import Survivors
from hvdkit.launch.times import seconds

_FOLDER_VARIABLES = ("OMPI_MCA_orte_tmpdir_base", "PRTE_MCA_prte_tmpdir_base")
_STALE_S = 10.0
"""What hosts answered longer ago is asked again."""


@dataclass(frozen=True)
class Supervision:
    """How a job is supervised."""

    policy: RestartPolicy
    run_name: str
    first_attempt: int = 0
    """Above 0 where the job goes on from an earlier one of the same name."""
    min_ranks: int | None = None
    """Fewest ranks to go on with; None: all."""
    wait_hosts_s: float = 600.0
    """How long to wait for hosts when too few answer."""
    grace_s: float = 25.0
    """What the ranks get for saving when the job is told to end. (Slurm kills 30 s after it told.)"""
    log: Path | None = None
    """A file for events, as JSON lines."""


def new_run_name() -> str:
    """Such as 20261126-194500-1a2b3c."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def supervise_job(wanted: Wanted, site: Site, how: Supervision, show: Callable[[tuple[str, ...]], str]) -> int:
    """Run the job to its end, with restarts; returns the status of the last attempt. `show` makes a line of a command.

    Raises LaunchError where a job of this name runs here already, or seems to, and where a launcher is gone.
    """
    if os.environ.get(RUN_NAME) == how.run_name:
        raise LaunchError(f"{RUN_NAME} is {how.run_name} here already: what else has it would be taken for the job's; "
                          "unset it, or take another name")  # fmt: skip
    if processes_of(how.run_name):
        raise LaunchError(f"a job named {how.run_name} is running on this machine; end it, or take another name")
    site = replace(site, exported=tuple(sorted({*site.exported, RUN_NAME, ATTEMPT})))
    where = Everywhere(how.run_name, wanted.hosts, session_folder(how.run_name, _parent_folder(wanted)))
    _make_private(where.folder)
    account = Account(how.run_name, how.first_attempt, how.log, has_restarts=how.policy.max_restarts > 0)
    with Signals() as signals, Guard(where) as guard:
        return _Job(wanted, site, how, show, signals, where, account, guard).run()


@dataclass
class _Job:
    wanted: Wanted
    site: Site
    how: Supervision
    show: Callable[[tuple[str, ...]], str]
    signals: Signals
    where: Everywhere
    account: Account
    guard: Guard

    def __post_init__(self) -> None:
        fewest = self.how.min_ranks or self.wanted.ranks
        self.survivors = Survivors(self.wanted, fewest, self.how.wait_hosts_s, self.where, self.account, self.signals)

    def run(self) -> int:
        """All attempts."""
        restarts, wanted, attempt = Restarts(self.how.policy), self.wanted, self.how.first_attempt
        while True:
            began_s = time.monotonic()
            status = self._attempt(wanted, attempt)
            ran_s = time.monotonic() - began_s
            said = self.account.ended(status, ran_s)
            answers = self._clean()
            if status == 0 or self.signals.told:
                return self._finish(status, f"{said}, as it was told to" if status else "", answers)
            decision = restarts.after(status, ran_s, time.monotonic())
            if not decision.restart:
                last = f"{said}: no restart, since {decision.reason}" if self.how.policy.max_restarts else ""
                return self._finish(status, last, answers)
            self.account.say(f"{said}: restart {decision.number} of {self.how.policy.max_restarts} in "
                             f"{seconds(decision.pause_s)}")  # fmt: skip
            self.account.note("restart", attempt=attempt + 1, pause_s=decision.pause_s)
            self.signals.pause(decision.pause_s)
            if decision.pause_s > _STALE_S and not self.signals.told:
                answers = self.where.clean()
            survivors = self.survivors.choose(answers)
            if self.signals.told:
                return self._finish(128 + self.signals.told, "told to end between two attempts", answers)
            if survivors is None:
                room = f"no room for {self.survivors.fewest} ranks on the hosts that answer (--min-np)"
                return self._finish(status, f"no restart, since there is {room}", answers)
            wanted, attempt = survivors, attempt + 1

    def _attempt(self, wanted: Wanted, attempt: int) -> int:
        command = build_command(wanted, self.site)
        program = shutil.which(command[0], path=self.site.path)
        if program is None:
            raise LaunchError(f"{command[0]} is not on PATH; `hvdkit doctor` tells what is missing")
        inherited = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
        environment = {**inherited, "PATH": self.site.path, RUN_NAME: self.how.run_name, ATTEMPT: str(attempt)}
        if not fills_allocation(wanted, self.site):  # where no other node could be asked to remove the folder
            environment |= dict.fromkeys(_FOLDER_VARIABLES, str(self.where.folder))
        self.account.say(self.show(command))
        self.account.note("started", attempt=attempt, ranks=wanted.ranks, hosts=host_list(wanted.hosts))
        status = run_launcher(*with_ranks_status(program, command), environment, signals=self.signals,
                              on_start=self.guard.watch, tell_ranks=self._teller(wanted, command),
                              grace_s=self.how.grace_s)  # fmt: skip
        self.guard.watch(0)
        return status

    def _teller(self, wanted: Wanted, command: Sequence[str]) -> Callable[[int], bool]:
        """Hands a signal to the ranks themselves, where the launcher would not, or would leave them no time."""

        def tell(number: int) -> bool:
            if fills_allocation(wanted, self.site) or not (number in ENDING or is_gloo(command)):
                return False
            ranks = replace(self.where, hosts=wanted.hosts).tell(number)
            if ranks and number in ENDING:
                self.account.say(f"told to end: the ranks have {seconds(self.how.grace_s)} to save")
            return ranks > 0

        return tell

    def _finish(self, status: int, said: str, answers: Sequence[Answer]) -> int:
        """The last words; returns `status`."""
        if said:
            self.account.say(said)
        unasked = [answer.host.name for answer in answers if answer.error]
        if unasked:
            self.account.say(f"nobody could look what is left of the job on {', '.join(unasked)}")
        return self.account.finish(status)

    def _clean(self) -> list[Answer]:
        answers = self.where.clean()
        left = [f"{answer.processes} on {answer.host.name}" for answer in answers if answer.processes]
        if left:
            self.account.say(f"processes that it left behind were ended: {', '.join(left)}")
        return answers


def _make_private(folder: Path) -> None:
    """Make the session folder for this user alone; its name can be guessed. Raises LaunchError if it is another's."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise LaunchError(f"{folder} is there already and others may write into it; remove it, or take another name")


def _parent_folder(wanted: Wanted) -> str:
    """Of the session folder: where Open MPI would put its own. Other hosts may not have this one's TMPDIR."""
    given = next((os.environ[name] for name in _FOLDER_VARIABLES if name in os.environ), None)
    if given and Path(given) == session_folder(os.environ.get(RUN_NAME, ""), str(Path(given).parent)):
        given = None  # of the job that this one is started in, whose folder goes with it
    return given or ("/tmp" if wanted.hosts else tempfile.gettempdir())
