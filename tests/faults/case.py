"""One job with its fault, from its start to what is left of it."""

import json
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hvdkit.checkpoint import list_checkpoints, load_checkpoint
from hvdkit.errors import CheckpointError
from tests.cluster.hosts import Host, cluster
from tests.faults import jobs, place
from tests.faults.disk import small_disk
from tests.faults.modes import hang_options, plain, supervised, training
from tests.faults.plan import STARTED_AGAIN, Case
from tests.faults.references import References
from tests.faults.result import read_result
from tests.faults.verdict import KILLED, Evidence
from tests.jobs import ROOT

LIMIT_S = 300.0
"""For each command of a case; most take a tenth of it."""


@dataclass
class Trial:
    """Runs `case` with its files in `folder`, which must not exist."""

    case: Case
    folder: Path
    references: References
    limit_s: float = LIMIT_S
    ended: list[jobs.Ended] = field(default_factory=list)
    hosts: list[Host] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    """Behind the first command."""

    def __post_init__(self) -> None:
        self.mark = f"chaos-{self.case.number}-{secrets.token_hex(3)}"
        self.records, self.temporary = self.folder / "records", self.folder / "tmp"
        self.log = self.folder / "log.jsonl"

    def run(self) -> Evidence:
        """Run it, and say what was seen."""
        reference = self.references.get(self.case.mode, self.case.launcher, self.case.ranks)
        for folder in (self.records, self.temporary):
            folder.mkdir(parents=True)
        with self._surroundings() as run:
            if self.case.supervised:
                self._supervised(run)
            else:
                self._by_hand(run)
            differences = self._differences(run, reference)
            leftovers = [*self._leftovers(), *_hidden(run)]
        return Evidence(
            statuses=[ended.status for ended in self.ended],
            attempts=len({event["attempt"] for event in self._events("started")}),
            seconds_to_end=self._seconds_to_end(),
            steps=self._steps(),
            differences=differences,
            leftovers=leftovers,
            output=self.ended[0].output,
        )

    def _supervised(self, run: Path) -> None:
        words = self._words(run, attempt=0)
        first = self._command(supervised(self.case, self.mark, self.log, words))
        if self.case.fault.kind == "SIGKILL supervisor" and first.status == KILLED:
            # Its guard ends the job.
            self.left += jobs.wait_for_none(self.mark, 30)
            self.ended[0] = jobs.Ended(first.status, time.time(), first.output)
        if self.case.fault.kind in STARTED_AGAIN and first.status is not None:
            self._command(supervised(self.case, self.mark, self.log, words, again=True))

    def _by_hand(self, run: Path) -> None:
        case = self.case
        first = self._command(plain(case.launcher, case.ranks, self._words(run, attempt=0)))
        if first.status is None:
            return
        self.left += jobs.wait_for_none(self.mark)
        found = list_checkpoints(run / "checkpoints")
        for folder in found:
            load_checkpoint(folder)  # raises if it is not whole
        options = ["--resume", str(run)] if found else ["--out", str(run)]
        if not found:
            shutil.rmtree(run, ignore_errors=True)
        self._command(plain(case.launcher, case.ranks, self._words(run, attempt=1, options=options)))

    def _words(self, run: Path, *, attempt: int, options: list[str] | None = None) -> list[str]:
        faults = self.folder / f"faults-{attempt}.json"
        faults.write_text(
            json.dumps({
                "faults": [asdict(fault) for fault in self.case.faults], "records": str(self.records), "run": str(run),
                "seed": self.case.seed, "attempt": attempt,
            })
        )  # fmt: skip
        train = training(self.case.mode, self.case.launcher, self.references.text)
        train += hang_options(self.case)
        return ["-m", "tests.faults.victim", str(faults), *train, *(options or ["--out", str(run)])]

    def _command(self, command: list[str]) -> jobs.Ended:
        env = self.references.environment
        if self.hosts:
            settings = {**env, "PYTHONPATH": str(ROOT), jobs.MARK: self.mark}
            command = self.hosts[0].enter("env", *(f"{name}={value}" for name, value in settings.items()), *command)
        output = self.folder / f"output-{len(self.ended)}.txt"
        self.ended.append(jobs.run(command, self.mark, self.temporary, output, limit_s=self.limit_s, env=env))
        return self.ended[-1]

    @contextmanager
    def _surroundings(self) -> Iterator[Path]:
        """Within it the case has the hosts and the disk that it needs; yields the folder of its run."""
        with ExitStack() as stack:
            folder = self.folder
            if self.case.fault.kind == "disk full":
                folder = stack.enter_context(small_disk(self.folder / "disk"))
            if self.case.two_hosts:
                (self.folder / "hosts").mkdir()
                self.hosts = stack.enter_context(cluster(self.folder / "hosts", ["node1", "node2"]))
            yield folder / "run"

    def _differences(self, run: Path, reference: Any) -> list[str]:
        try:
            return read_result(run).differences(reference)
        except (OSError, CheckpointError, KeyError, ValueError) as problem:
            return [f"no result: {problem}"]

    def _leftovers(self) -> list[str]:
        told = [path.read_text() for name in ("failed.txt", "alive-*.txt") for path in self.records.glob(name)]
        left = [*self.left, *jobs.wait_for_none(self.mark)]
        left += [
            f"process left on {host.name}: {process.name()}" for host in self.hosts for process in host.processes()
        ]  # fmt: skip
        files = [f"{self.temporary}/{name} left" for name in sorted(jobs.entries(self.temporary))]
        return [*told, *left, *files, *place.shared_memory_left()]

    def _seconds_to_end(self) -> dict[int, float]:
        struck = [json.loads(path.read_text()) for path in self.records.glob("struck-*.json")]
        ends = {event["attempt"]: event["time"] for event in self._events("ended")}
        if self.ended and (not self.case.supervised or 0 not in ends):
            ends[0] = self.ended[0].time
        return {item["attempt"]: ends[item["attempt"]] - item["time"] for item in struck if item["attempt"] in ends}

    def _steps(self) -> list[tuple[int, int]]:
        path = self.records / "steps.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(attempt), int(step)) for attempt, step in (line.split() for line in lines)]

    def _events(self, kind: str) -> list[dict[str, Any]]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [event for event in map(json.loads, lines) if event["event"] == kind]


def _hidden(run: Path) -> list[str]:
    return [f"{path} left" for path in (run / "checkpoints").glob(".*")]
