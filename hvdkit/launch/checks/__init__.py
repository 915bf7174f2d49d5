"""The doctor's checks. A check is a function of the facts that yields findings; CHECKS lists them in the table's order.

To add one, write the function in the file of its subject and name it here.
"""

from collections.abc import Callable, Iterable

from hvdkit.launch.checks.libraries import build_tools, built_with, gpu, horovod, python, torch
from hvdkit.launch.checks.machine import cores, shared_memory, ssh
from hvdkit.launch.checks.mpi import horovodrun, linked_library, loaded_library, mpirun, mpirun_on_path, srun
from hvdkit.launch.facts import Facts
from hvdkit.launch.findings import Finding

CHECKS: tuple[Callable[[Facts], Iterable[Finding]], ...] = (
    python,
    torch,
    horovod,
    built_with,
    build_tools,
    gpu,
    linked_library,
    loaded_library,
    mpirun,
    mpirun_on_path,
    horovodrun,
    srun,
    cores,
    shared_memory,
    ssh,
)
