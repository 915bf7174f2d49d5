"""Real elastic jobs: hosts join and leave, workers are killed; every sample counts once, as in one process.

Names of this machine stand for hosts, since a host with a dead worker is not used again.
"""

from pathlib import Path

import pytest

from tests.elastic.jobs import Plan, check, run_job
from tests.jobs import run_ranks, succeed

pytestmark = pytest.mark.launch


def test_a_slot_is_added_and_taken_away(tmp_path: Path) -> None:
    plan = Plan(hosts={4: "localhost:2\n", 13: "localhost:1\n"})
    ends = run_job(tmp_path, plan, "localhost:1\n", workers=1)
    assert list(ends) == ["localhost.0"]
    sizes = check(tmp_path, plan)
    assert sizes[:4] == [1] * 4 and sizes[4:13] == [2] * 9 and set(sizes[13:]) == {1}


def test_a_worker_is_killed_in_the_middle_of_a_step_and_another_joins(tmp_path: Path) -> None:
    plan = Plan(kills={8: "127.0.0.1.0"}, hosts={16: "localhost:1\n127.0.0.1:1\n127.1:1\n"}, epoch_at_top=False)
    ends = run_job(tmp_path, plan, "localhost:1\n127.0.0.1:1\n", workers=2)
    assert sorted(ends) == ["127.1.0", "localhost.0"]
    sizes = check(tmp_path, plan)
    assert sizes[:6] == [2] * 6 and sizes[6:16] == [1] * 10 and set(sizes[16:]) == {2}


def test_the_host_of_rank_0_leaves(tmp_path: Path) -> None:
    plan = Plan(hosts={7: "127.0.0.1:1\n"})
    ends = run_job(tmp_path, plan, "localhost:1\n127.0.0.1:1\n", workers=2)
    assert list(ends) == ["127.0.0.1.0"]
    sizes = check(tmp_path, plan)
    assert sizes[:7] == [2] * 7 and set(sizes[7:]) == {1}


def test_all_but_the_newcomer_die_before_its_first_commit(tmp_path: Path) -> None:
    plan = Plan(commit_every=1000, hosts={5: "localhost:1\n127.0.0.1:1\n"}, kills={9: "localhost.0"})
    ends = run_job(tmp_path, plan, "localhost:1\n", workers=1)
    assert list(ends) == ["127.0.0.1.0"]
    sizes = check(tmp_path, plan)
    assert set(sizes) == {1} and len(sizes) == 2 * 23


@pytest.mark.parametrize("launcher", ["python", "horovodrun-gloo"])
def test_what_is_undone_and_what_is_kept(launcher: str) -> None:
    result = succeed(run_ranks(1, Path(__file__).with_name("alone.py"), launcher=launcher))
    assert "as it should be" in result.stdout
