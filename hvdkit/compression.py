"""Gradient compression, by the names of `horovod.torch.compression`."""

from typing import Any

import torch


class Compressor:
    """Turns a gradient into what is sent, and back."""

    is_elementwise = False
    """Whether many gradients may be compressed as one flat tensor."""

    @staticmethod
    def compress(tensor: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Return what is sent in place of `tensor`, and the context that `decompress` needs."""
        raise NotImplementedError

    @staticmethod
    def decompress(tensor: torch.Tensor, ctx: Any) -> torch.Tensor:
        """Return the gradient from what was received."""
        raise NotImplementedError


class NoneCompressor(Compressor):
    """Sends gradients as they are."""

    is_elementwise = True

    @staticmethod
    def compress(tensor: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Return `tensor` itself."""
        return tensor, None

    @staticmethod
    def decompress(tensor: torch.Tensor, ctx: Any) -> torch.Tensor:
        """Return `tensor` itself."""
        return tensor


class FP16Compressor(Compressor):
    """Sends float32 and float64 as float16; bfloat16 keeps its range and goes as it is (Horovod casts it too)."""

    is_elementwise = True

    @staticmethod
    def compress(tensor: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Return `tensor` as float16 where that halves its bytes at least; the context is its dtype."""
        if tensor.dtype in (torch.float32, torch.float64):
            return tensor.to(torch.float16), tensor.dtype
        return tensor, tensor.dtype

    @staticmethod
    def decompress(tensor: torch.Tensor, ctx: Any) -> torch.Tensor:
        """Return `tensor` in the dtype `ctx`."""
        return tensor.to(ctx)


class Compression:
    """The choices of `DistributedOptimizer(compression=...)`."""

    none = NoneCompressor
    fp16 = FP16Compressor
