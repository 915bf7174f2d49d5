"""How a `TorchState` keeps, rolls back and shares models, optimizers, and what else has a `state_dict()`.

Horovod's handlers by their names, with hvdkit's broadcasts (bfloat16, no step taken) and from any rank: `sync_from`.
"""

import copy
from typing import Any

import torch

from hvdkit.elastic.sampler import ElasticSampler
from hvdkit.optim.wrapped import Distributed
from hvdkit.runtime.dropin.functions import broadcast_object, broadcast_optimizer_state, broadcast_parameters
from hvdkit.runtime.engine import horovod

_state: Any = horovod("horovod.torch.elastic.state")
StateHandler = _state.StateHandler
get_handler_registry = _state.get_handler_registry
set_handler_registry = _state.set_handler_registry


class ModelStateHandler(_state.ModelStateHandler):  # type: ignore[misc]
    """Keeps and shares a module's parameters and buffers."""

    def sync_from(self, root: int) -> None:
        """Take rank `root`'s values. Collective."""
        broadcast_parameters(self.value.state_dict(), root_rank=root)

    def sync(self) -> None:
        """Take rank 0's values. Collective."""
        self.sync_from(0)


class OptimizerStateHandler(_state.OptimizerStateHandler):  # type: ignore[misc]
    """Keeps and shares an optimizer's state and options: momentum, learning rate, what compression goes on from."""

    def restore(self) -> None:
        """Go back to the last `save()`, as often as need be: what is loaded is a copy, which training may write to.

        Gradients of the step that failed are dropped, or the next backward of a script that calls `zero_grad` after
        each step would add to them.
        """
        self.value.load_state_dict(copy.deepcopy(self._saved_optimizer_state))
        self.value.zero_grad()

    def sync_from(self, root: int) -> None:
        """Take rank `root`'s state. Collective."""
        broadcast_optimizer_state(self.value, root_rank=root)
        if isinstance(self.value, Distributed):
            self.value.follow_compression(root)

    def sync(self) -> None:
        """Take rank 0's state. Collective."""
        self.sync_from(0)


class SamplerStateHandler(_state.SamplerStateHandler):  # type: ignore[misc]
    """Keeps and shares whatever has a small `state_dict()` and a `load_state_dict()`: samplers, schedulers."""

    def restore(self) -> None:
        """Go back to the last `save()`, as often as need be: what is loaded is a copy, which training may write to."""
        self.value.load_state_dict(copy.deepcopy(self._saved_sampler_state))

    def sync_from(self, root: int) -> None:
        """Take rank `root`'s state. Collective."""
        self.value.load_state_dict(broadcast_object(self.value.state_dict(), root_rank=root))

    def sync(self) -> None:
        """Take rank 0's state. Collective."""
        self.sync_from(0)


_OWN = [
    (torch.nn.Module, ModelStateHandler),
    (torch.optim.Optimizer, OptimizerStateHandler),
    (ElasticSampler, SamplerStateHandler),
    (torch.optim.lr_scheduler.LRScheduler, SamplerStateHandler),
    (getattr(torch.amp, "GradScaler", torch.cuda.amp.GradScaler), SamplerStateHandler),
]
# TorchState asks this registry which handler a value gets; the user's own additions stay.
_own_types = {kind for kind, _ in _OWN}
set_handler_registry([*_OWN, *(pair for pair in get_handler_registry() if pair[0] not in _own_types)])
