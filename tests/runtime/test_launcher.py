"""Every launcher's variables, as real launchers set them (recorded from Open MPI 4.1, MPICH 5.0, Slurm 22.05)."""

from dataclasses import replace

import pytest

from hvdkit.runtime.launcher import LaunchInfo, launch_info

MPIRUN = {
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_NODE_RANK": "1",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "PMIX_NAMESPACE": "219086849",
    "PMIX_RANK": "3",
}
HYDRA = {"MPI_LOCALNRANKS": "2", "MPI_LOCALRANKID": "1", "PMI_FD": "11", "PMI_RANK": "3", "PMI_SIZE": "4"}
SRUN = {
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_PROCID": "3",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}
GLOO = {
    "HOROVOD_CONTROLLER": "gloo",
    "HOROVOD_CPU_OPERATIONS": "gloo",
    "HOROVOD_LOCAL_RANK": "1",
    "HOROVOD_LOCAL_SIZE": "2",
    "HOROVOD_RANK": "3",
    "HOROVOD_SIZE": "4",
}
# What a process of a Slurm allocation has around it when Hydra or mpirun starts its ranks through srun: the
# variables of the one task per node that is the launcher's own.
INSIDE_SLURM = {
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_PROCID": "0",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "1",
    "SLURM_STEP_TASKS_PER_NODE": "1",
}


@pytest.mark.parametrize(
    ("environ", "launcher"),
    [
        pytest.param(MPIRUN, "mpirun (Open MPI)", id="mpirun"),
        pytest.param(MPIRUN | INSIDE_SLURM, "mpirun (Open MPI)", id="mpirun in Slurm"),
        pytest.param(HYDRA, "mpiexec (MPICH)", id="mpiexec"),
        pytest.param(HYDRA | INSIDE_SLURM, "mpiexec (MPICH)", id="mpiexec in Slurm"),
        pytest.param(SRUN, "srun", id="srun --mpi=none"),
        pytest.param(
            SRUN | {"PMIX_NAMESPACE": "slurm.pmix.28.0", "PMIX_RANK": "3", "SLURM_MPI_TYPE": "pmix"},
            "srun",
            id="srun --mpi=pmix",
        ),
        pytest.param(
            SRUN | {"PMI_FD": "11", "PMI_JOBID": "2.0", "PMI_RANK": "3", "PMI_SIZE": "4", "SLURM_MPI_TYPE": "pmi2"},
            "srun",
            id="srun --mpi=pmi2",
        ),
        pytest.param(GLOO, "horovodrun --gloo", id="horovodrun --gloo"),
    ],
)
def test_rank_3_of_4_on_the_second_node(environ: dict[str, str], launcher: str) -> None:
    gloo = launcher == "horovodrun --gloo"
    assert launch_info(environ) == LaunchInfo(launcher, rank=3, size=4, local_rank=1, local_size=2, uses_gloo=gloo)


@pytest.mark.parametrize(
    "environ",
    [
        pytest.param({}, id="plain"),
        pytest.param({"SLURM_JOB_ID": "12", "SLURM_NTASKS": "2", "SLURM_TASKS_PER_NODE": "2"}, id="salloc"),
        pytest.param(
            {"SLURM_JOB_ID": "11", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"},
            id="sbatch",
        ),
        pytest.param(
            INSIDE_SLURM | {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "2"}, id="interactive salloc shell"
        ),
    ],
)
def test_no_launch_of_ours(environ: dict[str, str]) -> None:
    assert launch_info(environ) == LaunchInfo("python")
    assert not launch_info(environ).is_launched


@pytest.mark.parametrize(
    ("counts", "node", "expected"),
    [("4", 0, 4), ("2(x3),1", 0, 2), ("2(x3),1", 2, 2), ("2(x3),1", 3, 1), ("3,2(x2)", 1, 2)],
)
def test_ranks_of_this_node_in_slurms_list(counts: str, node: int, expected: int) -> None:
    environ = SRUN | {"SLURM_STEP_TASKS_PER_NODE": counts, "SLURM_NODEID": str(node)}
    assert launch_info(environ).local_size == expected


@pytest.mark.parametrize(
    ("name", "attempt", "expected"),
    [
        ("20261126-194500-1a2b3c", "0", ("20261126-194500-1a2b3c", 0)),
        ("slurm_12.3", "2", ("slurm_12.3", 2)),
        ("job", "", ("job", 0)),
        ("job", "-1", ("job", 0)),
        ("job", "two", ("job", 0)),
        ("job", "٣", ("job", 0)),
        ("", "2", (None, 0)),
        ("../job", "2", (None, 0)),
        (".job", "2", (None, 0)),
        ("job\n", "2", (None, 0)),
        ("j" * 101, "2", (None, 0)),
    ],
)
def test_run_name_and_attempt(name: str, attempt: str, expected: tuple[str | None, int]) -> None:
    """What is no plain file name, or no number, is as good as not there; the ranks' places do not depend on it."""
    found = launch_info(GLOO | {"HVDKIT_RUN_NAME": name, "HVDKIT_ATTEMPT": attempt})
    assert (found.run_name, found.attempt) == expected
    assert replace(found, run_name=None, attempt=0) == launch_info(GLOO)


def test_attempt_alone_is_none() -> None:
    assert launch_info({"HVDKIT_ATTEMPT": "3"}) == LaunchInfo("python")
    assert launch_info({"HVDKIT_RUN_NAME": "job"}) == LaunchInfo("python", run_name="job", attempt=0)


def test_gloo_by_environment_without_launcher() -> None:
    assert launch_info({"HOROVOD_CONTROLLER": "gloo"}) == LaunchInfo("python", uses_gloo=True)
