"""One thread on which collectives run in the order in which they were made, while another computes."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch


class Queue:
    """One thread that does calls in order, begun when something is first started on it."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._thread: int | None = None

    @property
    def is_elsewhere(self) -> bool:
        """Whether calls belong on a thread that is not the current one."""
        return self._pool is not None and threading.get_ident() != self._thread

    def start(self, work: Callable[[], Any]) -> "Future[Any]":
        """Do `work` on the thread, after what was started before."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="hvdkit-collectives")
            self._thread = self._pool.submit(threading.get_ident).result()
        return self._pool.submit(work)

    def close(self) -> None:
        """Stop the thread when it has done what was started."""
        if self._pool is not None:
            self._pool.shutdown()


class Started:
    """What `Queue.start` began, as `Work`."""

    def __init__(self, future: "Future[torch.Tensor]") -> None:
        self._future = future

    def wait(self) -> torch.Tensor:
        """See `Work`."""
        return self._future.result()
