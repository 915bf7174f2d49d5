"""Horovod's elastic training by its own names, on hvdkit's start-up and mended state. Needs `horovodrun --gloo`."""

from collections.abc import Callable
from typing import Any

from hvdkit.elastic.sampler import ElasticSampler
from hvdkit.elastic.state import TorchState
from hvdkit.runtime import init, shutdown
from hvdkit.runtime.engine import horovod

__all__ = ["ElasticSampler", "TorchState", "run"]


def run(func: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a training function of a state and more, so that it goes on when workers come and go.

    As Horovod's: the state is synchronised before each (re)start, and a failed collective or a change of hosts
    restarts Horovod and calls `func` again.
    """
    wrapped: Callable[..., Any] = horovod("horovod.common.elastic").run_fn(func, _reset)
    return wrapped


def _reset() -> None:
    shutdown()
    init()
