"""The same tests run on one rank and under mpirun; expectations come from the world's rank and size.

Tests marked `launch` start jobs of their own and run only in the one-rank session. Under several ranks the first
failing test prints its report and aborts the job, since the other ranks may be waiting inside a collective.
"""

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvdkit import runtime
from hvdkit.runtime import World, launch_info

_RANKS = launch_info().size


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if _RANKS > 1:
        kept = [item for item in items if item.get_closest_marker("launch") is None]
        items[:] = kept


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.failed and _RANKS > 1:
        sys.stderr.write(f"\n[rank {launch_info().rank} of {_RANKS}] {item.nodeid} failed\n{report.longreprtext}\n")
        sys.stderr.flush()
        runtime.failure.leave(1)


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    if _RANKS > 1 and launch_info().rank > 0:
        # Rank 0 reports for all; a failure is printed by the rank that met it.
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        reporter._tw._file = io.StringIO()


@pytest.fixture(scope="session")
def world() -> World:
    """The world of this test session: all ranks that the launcher started."""
    return runtime.init(process_sets="dynamic")


@pytest.fixture
def shared_path(world: World, tmp_path: Path) -> Path:
    """An empty folder, the same on all ranks."""
    return runtime.share_object(world, tmp_path)


@pytest.fixture(autouse=True)
def _ranks_in_step(request: pytest.FixtureRequest) -> Iterator[None]:
    """Ranks leave each test together, so that a slow one is not taken for a hanging one."""
    yield
    if _RANKS > 1 and "world" in request.fixturenames:
        runtime.gather_objects(runtime.require_world(), request.node.nodeid)
