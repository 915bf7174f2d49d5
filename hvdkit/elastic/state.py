"""`TorchState`: Horovod's name and signature; all that it holds is committed, rolled back and shared as one.

What Horovod's gets wrong, and this one does not:

- Plain attributes are saved by reference: a list that grew after the commit is not rolled back with the weights.
- `sync()` shares weights as they are and plain attributes as they were at the last commit: after a graceful reset in
  between, counters say less than what the weights were trained on.
- `sync()` commits no model, optimizer or sampler: a worker that has just joined and loses another before its first
  commit goes back to what it was made with, and if it is rank 0 by then all others follow.
- After a rollback an optimizer goes on in the very tensors of the commit: a second rollback finds its momentum changed.
"""

import copy
from typing import Any

import torch

from hvdkit.elastic.handlers import (
    ModelStateHandler,
    OptimizerStateHandler,
    SamplerStateHandler,
    StateHandler,
    get_handler_registry,
    set_handler_registry,
)
from hvdkit.errors import HvdkitError
from hvdkit.runtime import gather_objects, require_world
from hvdkit.runtime.dropin.functions import broadcast_object
from hvdkit.runtime.engine import horovod

_common: Any = horovod("horovod.common.elastic")
_state: Any = horovod("horovod.torch.elastic.state")
State = _common.State
ObjectState = _common.ObjectState

__all__ = [
    "ModelStateHandler",
    "ObjectState",
    "OptimizerStateHandler",
    "SamplerStateHandler",
    "State",
    "StateHandler",
    "TorchState",
    "get_handler_registry",
    "set_handler_registry",
]


class TorchState(_state.TorchState):  # type: ignore[misc]
    """Model, optimizer, sampler and anything else that workers must share, as attributes.

    Learning-rate schedulers and `GradScaler`s are kept in place like models; other values are copied at each commit
    and must be picklable.
    """

    def __init__(
        self, model: torch.nn.Module | None = None, optimizer: torch.optim.Optimizer | None = None, **kwargs: Any
    ) -> None:
        self._age = 0
        """How often it was shared; 0 in a worker that has just started."""
        self._saved_state: dict[str, Any] = {}
        super().__init__(model=model, optimizer=optimizer, **kwargs)
        self._bcast_object = broadcast_object
        self._saved_state = copy.deepcopy(self._saved_state)

    def save(self) -> None:
        """Commit the state to this process's memory. Not collective."""
        for handler in self._handlers.values():
            handler.save()
        self._saved_state = copy.deepcopy(self._current())

    def restore(self) -> None:
        """Go back to the last commit. Not collective."""
        for handler in self._handlers.values():
            handler.restore()
        for name, value in copy.deepcopy(self._saved_state).items():
            setattr(self, name, value)

    def sync(self) -> None:
        """Take over the state of the lowest rank that has been in the job longest, and commit it. Collective.

        That is rank 0 wherever Horovod's launcher ranks workers by age. One broadcast of all that the state holds.
        """
        world = require_world()
        ages = gather_objects(world, self._age)
        root = ages.index(max(ages))
        for name, handler in self._handlers.items():
            if hasattr(handler, "sync_from"):
                handler.sync_from(root)
            elif root == 0:
                handler.sync()
            else:
                raise HvdkitError(
                    f"TorchState: rank {root} has been in the job longest, but the handler of {name!r} "
                    f"({type(handler).__name__}) can take over rank 0's state only; give it a method sync_from(root)"
                )
        for name, value in broadcast_object(self._current(), root_rank=root, name="hvdkit.elastic.state").items():
            setattr(self, name, value)
        self._age = max(ages) + 1
        self.save()

    def _current(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._saved_state}
