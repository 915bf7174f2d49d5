"""`Watch` keeps the open collectives of every thread, and the variables that nothing follows are named once."""

import threading

import pytest

import hvdkit as hvd
from hvdkit.runtime import World
from hvdkit.runtime.watch import Watch, ignored_variables, variables, warn_of_ignored_variables


def test_pairs_nest_and_threads_do_not_meet() -> None:
    watch = Watch()

    def names() -> list[tuple[str, str | None]]:
        return sorted((one[2], one[7] and one[7][2]) for one in watch._open.values())

    watch.begin("outer", "all-reduce", "hierarchical", 8)
    watch.begin("inner", "all-gather", "mpi", 4)
    seen: list[list[tuple[str, str | None]]] = []

    def elsewhere() -> None:
        watch.begin("beside", "broadcast", "tree", 1)
        seen.append(names())
        watch.end()

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [[("beside", None), ("inner", "outer")]]
    assert names() == [("inner", "outer")]
    watch.end()
    assert names() == [("outer", None)]
    watch.end()
    assert names() == []


def test_every_world_has_one(world: World) -> None:
    for number in range(3):
        world.watch.begin(f"bucket {number}", "barrier", "mpi", 0)
        if world.comm is not None:
            world.comm.barrier()
        world.watch.end()
    assert world.watch._open == {}
    assert (world.watch._stall is not None) == (world.comm is not None and world.size > 1)


def test_start_timeline_asks_for_dynamic_as_horovod_does(world: World) -> None:
    with pytest.raises(ValueError, match="Set HOROVOD_TIMELINE=DYNAMIC"):
        hvd.start_timeline("nowhere.json")


def test_ignored_variables() -> None:
    environ = {
        "HOROVOD_FUSION_THRESHOLD": "0",
        "HOROVOD_HIERARCHICAL_ALLREDUCE": "1",
        "HOROVOD_HIERARCHICAL_ALLGATHER": "0",  # off is what happens anyway
        "HOROVOD_AUTOTUNE_LOG": "log.csv",
        "HOROVOD_CYCLE_TIME": "",
        "HOROVOD_TIMELINE": "timeline.json",
        "HOROVOD_STALL_CHECK_TIME_SECONDS": "3",
        "HOROVOD_RANK": "0",
        "PATH": "/bin",
    }
    assert ignored_variables(environ) == [
        'HOROVOD_HIERARCHICAL_ALLREDUCE (strategy="hierarchical")',
        "HOROVOD_FUSION_THRESHOLD (bucket_bytes=)",
        'HOROVOD_AUTOTUNE_LOG (strategy="auto", which measures)',
    ]
    assert ignored_variables({}) == []


def test_ignored_variables_are_named_once_by_rank_0(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variables, "_said", [])
    environ = {"HOROVOD_CYCLE_TIME": "5"}
    warn_of_ignored_variables(1, environ)
    assert caplog.messages == []
    warn_of_ignored_variables(0, environ)
    warn_of_ignored_variables(0, environ)
    (line,) = caplog.messages
    assert line.endswith("use: HOROVOD_CYCLE_TIME (nothing: a bucket starts when it is full)") and "\n" not in line
