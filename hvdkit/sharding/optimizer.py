"""What sharding adds to an optimizer: it steps this rank's pieces, and all ranks learn the result."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from hvdkit.collectives import Collectives
from hvdkit.errors import HvdkitError
from hvdkit.optim.options import ReducerOptions
from hvdkit.optim.reducer import Reducer
from hvdkit.optim.wrapped import Distributed, Settings, change_class
from hvdkit.sharding.gradients import ShardedExchange
from hvdkit.sharding.layers import Layers
from hvdkit.sharding.memory import StateBytes, state_bytes
from hvdkit.sharding.shards import HeldPiece, Shards
from hvdkit.sharding.storage import PartStorage


class Sharded(Distributed):
    """The methods of a sharded optimizer, besides those of `DistributedOptimizer`.

    Its `param_groups` hold this rank's pieces of the parameters, and gradients are found there after `backward()`;
    those of the parameters themselves are gone.
    """

    state: dict[torch.Tensor, Any]
    shards: Shards
    layers: Layers | None
    """At stage 3."""
    group_indices: list[list[int]]
    """Of each group, the indices of its parameters in `shards`."""

    @torch.no_grad()
    def clip_grad_norm_(self, max_norm: float, norm_type: float = 2.0) -> torch.Tensor:
        """Scale all gradients so that their norm over the whole model is at most `max_norm`; returns the norm before.

        To be called between backward and `step()`, on all ranks: collective. The same bits on every rank. In place
        of `torch.nn.utils.clip_grad_norm_`, which would see this rank's part only.
        """
        self.synchronize()
        total = self.grad_norm(norm_type)
        factor = min(1.0, max_norm / (float(total) + 1e-6))
        if factor < 1.0:
            torch._foreach_mul_([gradient for _, gradient in self.held_gradients()], factor)
        return total.float()

    def held_gradients(self) -> list[tuple[str, torch.Tensor]]:
        """The gradients that this rank holds, of pieces of the parameters with these names."""
        held = [(self.shards.names[one.piece.index], one.tensor.grad) for one in self.shards.held()]
        return [(name, gradient) for name, gradient in held if gradient is not None]

    @torch.no_grad()
    def grad_norm(self, norm_type: float = 2.0) -> torch.Tensor:
        """The norm, () float64, of the aggregated gradients of the whole model, the same on all ranks. Collective."""
        gradients = [gradient for _, gradient in self.held_gradients()]
        device = self.shards.parameters[0].device
        norms = torch._foreach_norm(gradients, norm_type) if gradients else []
        mine = torch.stack([norm.double() for norm in norms]) if norms else torch.zeros(1, dtype=torch.float64)
        collectives = self.shards.collectives
        if norm_type == float("inf"):
            total = mine.max().view(1).to(device)
            collectives.all_reduce_async_(total, f"{self.shards.key}.norm", op="max").wait()
        else:
            total = mine.pow(norm_type).sum().view(1).to(device)
            collectives.all_reduce_async_(total, f"{self.shards.key}.norm").wait()
            total = total.pow(1 / norm_type)
        return total[0]

    def summarise(self) -> list[str]:
        """What the ranks held in the last step, beside the formula, in lines. Collective."""
        shards = self.shards
        held = self.memory()
        everyones = shards.collectives.gather_objects([held], f"{shards.key}.summarise")
        lines = [f"model state of rank {rank}: {_megabytes(item[0])}" for rank, item in enumerate(everyones)]
        whole = sum(parameter.numel() for parameter in shards.parameters)
        trained = sum(shard.flat.numel for shard in shards.shards if shard.flat.trains)
        per_element = sum(
            value.numel()
            for entries in self.state.values()
            for value in entries.values()
            if torch.is_tensor(value) and value.dim()
        ) / max(1, sum(held.tensor.numel() for held in shards.held()))
        wanted = state_bytes(
            shards.stage,
            whole,
            shards.collectives.size,
            itemsize=shards.parameters[0].element_size(),
            frozen=whole - trained,
            state_per_parameter=per_element * shards.parameters[0].element_size() / 4,
            shared_weights=shards.is_shared_by_node,
        )
        return [*lines, f"by the formula, per rank: {_megabytes(wanted)}"]

    @contextmanager
    def whole_on(self, rank: int) -> Iterator[None]:
        """Within it rank `rank` has all parameters, and may use or save the model alone. Collective.

        The others go on, and wait for it in their next collective. Parameters must not be changed within it.
        """
        if self.layers is None:
            yield
            return
        self.layers.hold_on(rank)
        try:
            yield
        finally:
            self.layers.hold_no_more()

    def memory(self) -> StateBytes:
        """The bytes that this rank holds for parameters, gradients (in the last step) and the optimizer's state.

        See `hvdkit.sharding.memory` for what counts, and `state_bytes` there for the formula.
        """
        held = self.shards.bytes_held()
        state = sum(
            value.nbytes for entries in self.state.values() for value in entries.values() if torch.is_tensor(value)
        )
        return StateBytes(held["parameters"], self.shards.gradient_bytes, state + held["masters"])

    def describe(self) -> list[str]:
        """What the ranks hold, in lines. Collective."""
        shards = self.shards
        pieces = sum(shard.flat.counts[shard.rank] for shard in shards.shards)
        everyones = shards.collectives.gather_objects([pieces], f"{shards.key}.describe")
        whole = sum(parameter.numel() for parameter in shards.parameters)
        what = {1: "optimizer state", 2: "optimizer state and gradients", 3: "parameters, gradients, optimizer state"}
        counts = ", ".join(f"{item[0]:,}" for item in everyones)
        lines = [f"sharding stage {shards.stage}: {what[shards.stage]} of {whole:,} parameters cut: {counts} per rank"]
        if shards.is_shared_by_node:
            lines.append("one copy of the weights for all ranks, in shared memory")
        return lines

    def full_parameter(self, name: str) -> torch.Tensor:
        """A copy of the whole parameter called `name` in the model, on every rank, to look at. Collective.

        Raises KeyError for an unknown name.
        """
        if name not in self.shards.names:
            raise KeyError(f"{name!r} is not a parameter of the sharded model")
        return self.shards.full(self.shards.names.index(name))

    def is_cut(self, parameter: torch.Tensor) -> bool:
        """Whether a rank has only its part of `parameter` between steps (stage 3)."""
        return any(
            one is parameter
            for shard in self.shards.shards
            if isinstance(shard.storage, PartStorage)
            for one in shard.parameters
        )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, whatever `set_to_none` says; the next backward begins a new step."""
        self._reducer.restart()
        if self.layers is not None and torch._C._current_graph_task_id() == -1:
            self.layers.restart()
        for parameter in self.shards.parameters:
            parameter.grad = None
        for held in self.shards.held():
            held.tensor.grad = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Raises HvdkitError: what a rank holds is settled by `hvd.shard()`."""
        if "_reducer" in vars(self):
            raise HvdkitError("a sharded optimizer takes no more parameters: add them before hvd.shard()")
        super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """As the wrapped optimizer's, of this rank's pieces; see `hvd.full_state_dict` for all of it."""
        return super().state_dict()

    def consolidated_state_dict(self) -> dict[str, Any]:
        """Raises HvdkitError: no rank has it; see `hvd.full_state_dict`."""
        raise HvdkitError("a sharded optimizer's state is on all ranks: use hvd.full_state_dict(model, optimizer)")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As the wrapped optimizer's, with this rank's `state_dict()`; an unfinished step is forgotten."""
        Distributed.load_state_dict(self, state_dict)

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a sharded optimizer cannot be copied or pickled: use hvd.sharded_state_dict(model, optimizer)")

    def _aggregated_step(self, step: Callable[..., Any], closure: Callable[[], Any] | None, kwargs: Any) -> Any:
        if self._reducer.is_paused:
            raise HvdkitError("step() within no_sync(): a sharded model has no weights of its own on each rank")
        result = super()._aggregated_step(step, closure, kwargs)
        if self.layers is not None:
            self.layers.release_all()
        with torch.no_grad():
            self.shards.spread()
        return result


def wrap(
    optimizer: torch.optim.Optimizer,
    shards: Shards,
    layers: Layers | None,
    options: ReducerOptions,
    connect: Callable[[], Collectives | None],
) -> None:
    """Give `optimizer` the pieces of `shards` in place of the parameters, with its groups and state, and step them."""
    held_of: dict[int, list[HeldPiece]] = {}
    for held in shards.held():
        held_of.setdefault(id(shards.parameters[held.piece.index]), []).append(held)
    state = dict(optimizer.state)
    optimizer.state.clear()
    index_of = {id(parameter): index for index, parameter in enumerate(shards.parameters)}
    group_indices = [[index_of[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        found = [held for parameter in group["params"] for held in held_of.get(id(parameter), [])]
        group["params"] = [held.tensor for held in found]
        for held in found:
            if old := state.get(shards.parameters[held.piece.index]):
                optimizer.state[held.tensor] = {
                    name: cut(name, value, shards.parameters[held.piece.index], held) for name, value in old.items()
                }

    def make_exchange(collectives: Collectives, agreed: Any, parameters: Sequence[torch.Tensor], *rest: Any) -> Any:
        exchange = ShardedExchange(shards, collectives, agreed, parameters, *rest)
        if layers is not None:
            layers.exchange = exchange
        return exchange

    settings = Settings(options, tuple(shards.names), None)
    reducer = Reducer(shards.names, shards.parameters, options, connect, make_exchange)
    change_class(optimizer, type(optimizer), Sharded, settings, connect, reducer)  # type: ignore[arg-type]
    assert isinstance(optimizer, Sharded)
    optimizer.shards, optimizer.layers, optimizer.group_indices = shards, layers, group_indices
    if layers is not None:
        layers.reducer = reducer
    reducer.prepare()  # now, since the first gradients may come at different moments


_SCALARS = frozenset(("step", "mu_product", "eta", "mu"))
"""What torch's optimizers keep of a parameter as a whole, in tensors without dimensions."""


def is_cut(key: str, value: Any, shape: torch.Size) -> bool:
    """Whether an optimizer's `value` under `key` has an element for each of a parameter of `shape`."""
    return torch.is_tensor(value) and value.shape == shape and (value.dim() > 0 or key not in _SCALARS)


def cut(key: str, value: Any, parameter: torch.Tensor, held: HeldPiece) -> Any:
    """A copy of this rank's piece of `value`, in the piece's dtype and place; of what is not cut, a copy of it."""
    if not is_cut(key, value, parameter.shape):
        return value.clone() if torch.is_tensor(value) else value
    piece, like = held.piece, held.tensor
    mine = value.detach().reshape(-1)[piece.begin : piece.end].view(like.shape)
    return mine.to(like.device, like.dtype if mine.is_floating_point() else mine.dtype, copy=True)


def _megabytes(held: StateBytes) -> str:
    parts = (held.parameters, held.gradients, held.optimizer)
    parameters, gradients, optimizer = (f"{part / 1e6:.1f}" for part in parts)
    total = held.total / 1e6
    return f"parameters {parameters} MB, gradients {gradients} MB, optimizer {optimizer} MB, in all {total:.1f} MB"
