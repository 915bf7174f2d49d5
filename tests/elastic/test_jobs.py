"""Real elastic jobs: hosts join and leave, workers are killed; every sample counts once, as in one process.

Names of this machine stand for hosts, since a host with a dead worker is not used again.
"""

from pathlib import Path

import pytest

from tests.elastic.jobs import Plan, check, run_job
from tests.jobs import run_ranks, succeed

pytestmark = pytest.mark.launch


def test_slots_and_hosts_join_and_leave_and_at_last_that_of_rank_0(tmp_path: Path) -> None:
    plan = Plan(hosts={4: "localhost:2\n", 9: "localhost:1\n", 12: "localhost:1\n127.0.0.1:1\n", 20: "127.0.0.1:1\n"})
    ends = run_job(tmp_path, plan, "localhost:1\n", workers=1)
    assert list(ends) == ["127.0.0.1.0"]
    sizes = check(tmp_path, plan)
    assert sizes[:20] == [1] * 4 + [2] * 5 + [1] * 3 + [2] * 8 and set(sizes[20:]) == {1}


def test_a_worker_is_killed_in_the_middle_of_a_step_and_another_joins(tmp_path: Path) -> None:
    plan = Plan(kills={8: "127.0.0.1.0"}, hosts={16: "localhost:1\n127.0.0.1:1\n127.1:1\n"}, epoch_at_top=False)
    ends = run_job(tmp_path, plan, "localhost:1\n127.0.0.1:1\n", workers=2)
    assert sorted(ends) == ["127.1.0", "localhost.0"]
    sizes = check(tmp_path, plan)
    assert sizes[:6] == [2] * 6 and sizes[6:16] == [1] * 10 and set(sizes[16:]) == {2}


def test_all_but_the_newcomer_die_before_its_first_commit(tmp_path: Path) -> None:
    plan = Plan(commit_every=1000, hosts={5: "localhost:1\n127.0.0.1:1\n"}, kills={9: "localhost.0"})
    ends = run_job(tmp_path, plan, "localhost:1\n", workers=1)
    assert list(ends) == ["127.0.0.1.0"]
    sizes = check(tmp_path, plan)
    assert set(sizes) == {1} and len(sizes) == 2 * 23


def test_what_is_undone_and_what_is_kept() -> None:
    result = succeed(run_ranks(1, Path(__file__).with_name("alone.py"), launcher="horovodrun-gloo"))
    assert "as it should be" in result.stdout
