"""`run`: calls the training function again, on the workers that there are, until it returns.

Horovod's loop with three differences. After a graceful reset the state is committed as it is, and always shared
(Horovod does not where workers only left, and then its sampler goes on with the old ranks' shares and a worker that
joins at the same time waits for ever). HorovodInternalError in a restart leads to another restart (what Horovod's
library itself meets while it connects still aborts the process). News of hosts that comes during a reset is kept.
"""

import functools
import queue
from collections.abc import Callable
from typing import Any

from hvdkit.runtime import init, shutdown
from hvdkit.runtime.engine import horovod

_common: Any = horovod("horovod.common.elastic")


def run(func: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a training function, whose first argument is a `State`, so that it goes on when workers come and go.

    Before each call the state is shared. Where a worker is lost, every rank goes back to the last commit; where hosts
    changed, which `state.commit()` and `state.check_host_updates()` find out, nothing is undone. Then Horovod starts
    anew, the reset callbacks run, and `func` is called again. Collective; needs `horovodrun --gloo` with
    `--host-discovery-script` for workers to come and go.
    """

    @functools.wraps(func)
    def wrapper(state: Any, *args: Any, **kwargs: Any) -> Any:
        _common.notification_manager.init()
        _common.notification_manager.register_listener(state)
        must_restart = False
        try:
            while True:
                try:
                    if must_restart:
                        news = _restart(state)
                        must_restart = False
                        state.on_reset()
                        _keep(news, state)
                    state.sync()
                    return func(state, *args, **kwargs)
                except _common.HorovodInternalError:
                    if not must_restart:  # else the restart itself failed, and the state is as it was
                        state.restore()
                except _common.HostsUpdatedInterrupt:
                    state.save()
                must_restart = True
        finally:
            _common.notification_manager.remove_listener(state)

    return wrapper


def _restart(state: Any) -> "queue.Queue[Any]":
    """Start Horovod anew on the workers that there are; returns where news of hosts has come meanwhile."""
    # The launcher assigns ranks when all workers ask it to, in init(): what it said before is in the assignment.
    state._host_messages = queue.Queue()
    shutdown()
    init()
    return state._host_messages  # type: ignore[no-any-return]


def _keep(news: "queue.Queue[Any]", state: Any) -> None:
    """Horovod's `on_reset` throws away all news; put that of the restart back."""
    while not news.empty():
        state._host_messages.put(news.get())
