"""Gradient compression: what is sent in place of a gradient, and how to choose it by name.

Two kinds. Elementwise compressors, in Horovod's form (`compress`, `decompress`), change the dtype on the wire and
leave the reduction to any collective. Bucket compressors (`int8`, `topk`, `powersgd`) sum a whole bucket their own
way and keep what they did not send for the next step.
"""

from hvdkit.optim.compression.elementwise import BF16Compressor, Compressor, FP16Compressor, NoneCompressor
from hvdkit.optim.compression.int8 import Int8
from hvdkit.optim.compression.interface import BucketCompression, BucketCompressor, ParameterState, SumsEach
from hvdkit.optim.compression.powersgd import PowerSGD
from hvdkit.optim.compression.registry import (
    Compression,
    can_share_buckets,
    names,
    parse_compression,
    register,
    resolve,
)
from hvdkit.optim.compression.residual import average_errors
from hvdkit.optim.compression.topk import TopK

__all__ = [
    "BF16Compressor",
    "BucketCompression",
    "BucketCompressor",
    "Compression",
    "Compressor",
    "FP16Compressor",
    "Int8",
    "NoneCompressor",
    "ParameterState",
    "SumsEach",
    "PowerSGD",
    "TopK",
    "average_errors",
    "can_share_buckets",
    "names",
    "parse_compression",
    "register",
    "resolve",
]
