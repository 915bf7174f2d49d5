"""A few faults of each sort in real jobs; `make chaos` runs a hundred.

Times are not judged here as strictly as there, since tests share their machine.
"""

from pathlib import Path

import pytest

from tests.faults import disk
from tests.faults.case import Trial
from tests.faults.plan import Case, Fault
from tests.faults.references import References
from tests.faults.verdict import judge

pytestmark = pytest.mark.launch

SLACK = 6.0


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> References:
    """One run that nothing strikes, for all cases."""
    return References(tmp_path_factory.mktemp("references"))


KILLED = Fault("SIGKILL", "step", 1, 11)


@pytest.mark.parametrize(
    ("faults", "launcher", "supervised"),
    [
        ([Fault("SIGKILL", "backward", 1, 7)], "mpirun", True),
        ([Fault("SIGSEGV", "collective", 0, 6)], "horovodrun", True),
        ([Fault("exception", "write", 1, 8)], "mpirun", False),
        ([Fault("SIGSTOP", "step", 1, 9)], "mpirun", True),
        ([Fault("disk full", "write", 0, 8)], "mpirun", True),
        ([KILLED, Fault("bits flipped", "init", 0, 0, attempt=1)], "mpirun", True),
        ([Fault("SIGTERM", "step", 1, 6)], "mpirun", True),
        ([Fault("SIGKILL supervisor", "step", 0, 6)], "mpirun", True),
    ],
    ids=lambda value: value if isinstance(value, str) else value[-1].kind if isinstance(value, list) else "",
)
def test_a_job_with_a_fault(
    faults: list[Fault], launcher: str, supervised: bool, references: References, tmp_path: Path
) -> None:
    if faults[-1].kind == "disk full" and disk.why_not():
        pytest.skip(disk.why_not())
    case = Case(0, tuple(faults), "plain", launcher, 2, supervised, seed=1)
    seen = Trial(case, tmp_path / "case", references).run()
    verdict = judge(case, seen, slack=SLACK)
    assert verdict.outcome != "FAILED", f"{verdict.problems}\n{seen}"
    assert verdict.is_equal
