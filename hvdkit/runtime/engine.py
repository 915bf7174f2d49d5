"""Horovod's modules, loaded at first use, so that `import hvdkit` is light and works without Horovod."""

import functools
import importlib
import sys
from types import ModuleType
from typing import Any

from hvdkit.errors import HorovodMissingError

HOW_TO_GET_HOROVOD = "run `hvdkit horovod build` (or `python -m hvdkit.horovod_build`) in this environment"


@functools.cache
def horovod(name: str = "horovod.torch") -> Any:
    """The module `name` of the horovod package; raises HorovodMissingError with the remedy where it cannot load."""
    try:
        module: ModuleType = importlib.import_module(name)
        # horovod.torch prints a warning and goes on without its operations where its library does not load.
        if name == "horovod.torch":
            importlib.import_module("horovod.torch.mpi_ops")
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "horovod":
            raise HorovodMissingError(f"Horovod is not installed: {HOW_TO_GET_HOROVOD}") from None
        raise HorovodMissingError(
            f"Horovod is installed but does not load ({error}): it was probably built against another torch or MPI; "
            f"{HOW_TO_GET_HOROVOD} to build it again"
        ) from error
    return module


def lost_another_rank(error: BaseException) -> bool:
    """Whether `error` is what Horovod raises on the ranks that remain when one of them has gone."""
    exceptions = sys.modules.get("horovod.common.exceptions")
    return exceptions is not None and isinstance(error, exceptions.HorovodInternalError)
