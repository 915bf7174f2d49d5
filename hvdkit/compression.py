"""`horovod.torch.compression` under hvdkit's name; the compressors themselves live in `hvdkit.optim.compression`."""

from hvdkit.optim.compression import (
    BF16Compressor,
    Compression,
    Compressor,
    FP16Compressor,
    NoneCompressor,
    parse_compression,
    register,
)

__all__ = [
    "BF16Compressor",
    "Compression",
    "Compressor",
    "FP16Compressor",
    "NoneCompressor",
    "parse_compression",
    "register",
]
