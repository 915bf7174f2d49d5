"""`horovod.torch.sync_batch_norm` under hvdkit's name, for scripts that import from it."""

from typing import Any

import hvdkit
from hvdkit.runtime.engine import horovod


def __getattr__(name: str) -> Any:
    if name in hvdkit.__all__:
        return getattr(hvdkit, name)
    return getattr(horovod("horovod.torch.sync_batch_norm"), name)
