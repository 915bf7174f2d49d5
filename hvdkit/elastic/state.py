"""`horovod.torch.elastic.state` under hvdkit's name, with models and optimizers synchronised by mended functions."""

from typing import Any

import torch

from hvdkit.runtime.dropin.functions import broadcast_optimizer_state, broadcast_parameters
from hvdkit.runtime.engine import horovod

_state: Any = horovod("horovod.torch.elastic.state")
TorchState = _state.TorchState
StateHandler = _state.StateHandler
SamplerStateHandler = _state.SamplerStateHandler
get_handler_registry = _state.get_handler_registry
set_handler_registry = _state.set_handler_registry


class ModelStateHandler(_state.ModelStateHandler):  # type: ignore[misc]
    """Keeps and broadcasts a module's state, bfloat16 included."""

    def sync(self) -> None:
        """Take rank 0's values. Collective."""
        broadcast_parameters(self.value.state_dict(), root_rank=0)


class OptimizerStateHandler(_state.OptimizerStateHandler):  # type: ignore[misc]
    """Keeps and broadcasts an optimizer's state without taking a step."""

    def sync(self) -> None:
        """Take rank 0's state. Collective."""
        broadcast_optimizer_state(self.value, root_rank=0)


# TorchState asks this registry which handler a value gets; the user's own additions stay.
set_handler_registry(
    [
        (torch.nn.Module, ModelStateHandler),
        (torch.optim.Optimizer, OptimizerStateHandler),
        *(pair for pair in get_handler_registry() if pair[0] not in (torch.nn.Module, torch.optim.Optimizer)),
    ]
)
