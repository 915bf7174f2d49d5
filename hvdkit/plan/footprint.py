"""What a model and a batch need, found without computing: one backward pass on tensors that have no memory.

PyTorch's fake tensors know shapes and dtypes only, and run the same operations in the same order as real ones, so the
bytes that are alive at each moment, and the floating-point operations, can be counted for models of any size.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop, sdpa_flop

from hvdkit.data import Batch
from hvdkit.errors import ConfigError, HvdkitError
from hvdkit.models import LanguageModel, count_parameters
from hvdkit.optim.buckets import DEFAULT_BUCKET_BYTES, LARGE_BYTES
from hvdkit.sharding.layers import find_layers
from hvdkit.sharding.partition import plan_flats
from hvdkit.train.loss import mean_loss


def _ready(formula: Callable[..., int]) -> Callable[..., int]:
    """A formula of torch's, which takes tensors already, marked so that the counter does not wrap it again."""

    def count(*args: Any, **kwargs: Any) -> int:
        return formula(*args, **kwargs)

    count._get_raw = True  # type: ignore[attr-defined]
    return count


_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _ready(sdpa_flop),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _ready(sdpa_backward_flop),
}
"""Operations that torch's counter does not know by itself."""


@dataclass(frozen=True)
class Footprint:
    """Of a model and one micro-batch on one rank; in bytes where it is not said."""

    name: str
    parameters: int
    """Numbers, frozen ones too."""
    frozen: int
    """Numbers that are not trained."""
    itemsize: int
    """Of a parameter."""
    flops: float
    """Floating-point operations of forward and backward; a multiply-add counts as two."""
    activations: int
    """The most that is alive besides parameters, where each gradient is dropped when it is complete."""
    message_bytes: tuple[int, ...]
    """Lengths of the messages that carry the gradients at stage 0: large ones one by one, small ones in buckets."""
    packed: int
    """Of the gradients in buckets, which are copied there."""
    flat_bytes: tuple[int, ...]
    """Lengths of the messages at stages 1 to 3."""
    root: int
    """Of the parameters outside all layers (embeddings, mostly), which stage 3 gathers for the whole pass."""
    layer: int
    """Of the largest layer, which stage 3 gathers at a time."""
    layers: int
    """How many there are."""

    @property
    def trained(self) -> int:
        """Numbers that have a gradient."""
        return self.parameters - self.frozen

    @property
    def gradients(self) -> int:
        """All gradients together."""
        return self.trained * self.itemsize


def measure_footprint(
    build: Callable[[], LanguageModel], batch_size: int, context: int, autocast: bool, *, reads_files: bool = False
) -> Footprint:
    """The footprint of what `build` makes with `batch_size` x `context` tokens.

    `build` is called under fake tensors, unless it `reads_files`: then its model is in memory for a moment. Raises
    ConfigError for a model that cannot run on fake tensors, as one whose code looks at values.
    """
    try:
        made = build() if reads_files else None
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            with _conversions():
                model = build() if made is None else made._apply(mode.from_tensor)
            if not any(parameter.requires_grad for parameter in model.parameters()):
                raise ConfigError("the model trains nothing: none of its parameters requires gradients")
            activations, flops = _backward(model, batch_size, context, autocast)
    except HvdkitError:
        raise
    except Exception as error:
        raise ConfigError(
            f"the model cannot be planned: on tensors without values it fails with {type(error).__name__}: {error}"
        ) from error
    parameters = list(model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    layers = [sum(parameter.nbytes for parameter in layer.parameters()) for layer in find_layers(model)]
    whole = sum(parameter.nbytes for parameter in parameters)
    return Footprint(
        name=model.name,
        parameters=count_parameters(model),
        frozen=count_parameters(model) - sum(parameter.numel() for parameter in trained),
        itemsize=parameters[0].element_size(),
        flops=flops,
        activations=activations,
        message_bytes=_messages(trained),
        packed=sum(parameter.nbytes for parameter in trained if parameter.nbytes < LARGE_BYTES),
        flat_bytes=tuple(
            flat.numel * flat.dtype.itemsize for flat in plan_flats(trained, range(len(trained)), 1) if flat.numel
        ),
        root=max(0, whole - sum(layers)),
        layer=max(layers, default=0),
        layers=len(layers),
    )


def _messages(trained: list[torch.nn.Parameter]) -> tuple[int, ...]:
    large = [parameter.nbytes for parameter in trained if parameter.nbytes >= LARGE_BYTES]
    whole, rest = divmod(sum(parameter.nbytes for parameter in trained) - sum(large), DEFAULT_BUCKET_BYTES)
    return (*large, *[DEFAULT_BUCKET_BYTES] * whole, *([rest] if rest else []))


def fake_batch(batch_size: int, context: int) -> Batch:
    """Zeros, where the values do not matter."""
    tokens = torch.zeros((batch_size, context), dtype=torch.int64)
    return Batch(tokens, tokens.clone(), batch_size * context)


def _backward(model: LanguageModel, batch_size: int, context: int, autocast: bool) -> tuple[int, float]:
    """The most bytes that were alive, and the operations."""
    live = _LiveBytes(model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_drop)
    with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter, live:
        mean_loss(model, fake_batch(batch_size, context), autocast).backward()
    return live.most, float(counter.get_total_flops())


@contextmanager
def _conversions() -> Iterator[None]:
    """Within it modules made of tensors without values can be converted, as by `.to()`, which torch cannot do."""

    def apply(module: torch.nn.Module, function: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        made: dict[int, torch.nn.Parameter] = {}
        for part in module.modules() if recurse else [module]:
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    new = torch.nn.Parameter(function(parameter.detach()), parameter.requires_grad)
                    part._parameters[name] = made.setdefault(id(parameter), new)
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[name] = function(buffer)
        return module

    with mock.patch.object(torch.nn.Module, "_apply", apply):
        yield


def _drop(parameter: torch.Tensor) -> None:
    parameter.grad = None


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operations make, while they are alive; those of `model` are not counted."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.now = self.most = 0
        tensors = (*model.parameters(), *model.buffers())
        self._known = {tensor.untyped_storage()._cdata for tensor in tensors}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for item in tree_leaves(result):
            if isinstance(item, torch.Tensor) and item.layout == torch.strided:
                self._add(item.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, key: int, nbytes: int) -> None:
        self._known.discard(key)
        self.now -= nbytes
