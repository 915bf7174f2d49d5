"""Elementwise compressors in Horovod's form: a narrower dtype on the wire, reduced by any collective.

hvdkit's own collectives add 16-bit floats in float32 and round once, and Horovod's engine is given bfloat16 as
float32 (it knows none); Horovod's engine adds float16 in float16.
"""

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


class BF16Compressor(Compressor):
    """Sends float32 and float64 as bfloat16: float32's range, 8 bits of precision; float16 goes as it is."""

    is_elementwise = True

    @staticmethod
    def compress(tensor: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Return `tensor` as bfloat16 where that halves its bytes at least; the context is its dtype."""
        if tensor.dtype in (torch.float32, torch.float64):
            return tensor.to(torch.bfloat16), tensor.dtype
        return tensor, tensor.dtype

    @staticmethod
    def decompress(tensor: torch.Tensor, ctx: Any) -> torch.Tensor:
        """Return `tensor` in the dtype `ctx`."""
        return tensor.to(ctx)
