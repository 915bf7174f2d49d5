"""Every kind of compression by its name: `Compression.<name>` in a script, `name:option=value` on a command line.

`Compression` is the registry itself. `register` adds to it, `parse_compression` looks up, and `resolve` takes all
that a user may pass. A built-in kind stands in the class, for readers and type checkers.
"""

import dataclasses
from typing import Any, get_type_hints

from hvdkit.optim.compression.elementwise import BF16Compressor, FP16Compressor, NoneCompressor
from hvdkit.optim.compression.int8 import Int8
from hvdkit.optim.compression.interface import BucketCompressor
from hvdkit.optim.compression.powersgd import PowerSGD
from hvdkit.optim.compression.topk import TopK


class Compression:
    """The choices of `DistributedOptimizer(compression=...)`, as they are or called with options.

    `Compression.powersgd` is `Compression.powersgd(rank=4)`. The first three have no options and are not called.
    """

    none = NoneCompressor
    fp16 = FP16Compressor
    bf16 = BF16Compressor
    int8 = Int8
    topk = TopK
    powersgd = PowerSGD


def names() -> list[str]:
    """The names of all registered kinds."""
    return [name for name in vars(Compression) if not name.startswith("_")]


def register(name: str, kind: Any) -> None:
    """Make `kind` available as `Compression.<name>` and `parse_compression(name)`, on this process.

    `kind` has Horovod's `compress` and `decompress`, or is a `BucketCompressor` class: a dataclass of int, float,
    str or bool options that all have defaults. Raises ValueError for a name that is taken or not an identifier,
    TypeError for anything else than a kind.
    """
    if name in names() or not name.isidentifier() or name.startswith("_"):
        raise ValueError(f"register: {name!r} must be a new identifier without a leading underscore; taken: {names()}")
    is_kind = isinstance(kind, type) and dataclasses.is_dataclass(kind) and hasattr(kind, "for_bucket")
    if not is_kind and not _is_elementwise_form(kind):
        raise TypeError(
            f"register: {kind!r} is no compression: it needs compress and decompress, or for_bucket in a dataclass"
        )
    setattr(Compression, name, kind)


def parse_compression(text: str) -> Any:
    """The compression that `text` names, as "powersgd" or "powersgd:rank=8,..." (each option a field of its class).

    Returns an object with Horovod's `compress` and `decompress`, or a `BucketCompressor`. Raises ValueError for an
    unknown name or option, naming those there are, and for a value that is not of the option's type or range.
    """
    name, has_options, rest = text.partition(":")
    if name not in names():
        raise ValueError(f"compression {name!r} is not one of {', '.join(names())}")
    kind = getattr(Compression, name)
    fields = [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
    options: dict[str, Any] = {}
    for part in rest.split(",") if has_options else ():
        key, is_set, value = (piece.strip() for piece in part.partition("="))
        if key not in fields or not is_set or key in options:
            known = ", ".join(f"{field}=..." for field in fields) or "none"
            raise ValueError(f"compression {text!r}: {part!r} must set one of its options once; it has: {known}")
        options[key] = _converted(text, key, value, get_type_hints(kind)[key])
    return kind(**options) if dataclasses.is_dataclass(kind) else kind  # type: ignore[operator]


def resolve(compression: Any) -> Any:
    """What `DistributedOptimizer(compression=...)` was given, made usable: see `parse_compression` for the result.

    Takes a text for `parse_compression`, a bucket compressor or its class (then with its default options), and
    anything with `compress` and `decompress`. Raises TypeError for anything else.
    """
    if isinstance(compression, str):
        return parse_compression(compression)
    if isinstance(compression, type) and hasattr(compression, "for_bucket"):
        return compression()
    if isinstance(compression, BucketCompressor) or _is_elementwise_form(compression):
        return compression
    raise TypeError(
        f"compression={compression!r} must be hvd.Compression.{', hvd.Compression.'.join(names())}, a text like "
        "'powersgd:rank=4', or have compress() and decompress()"
    )


def can_share_buckets(compression: Any) -> bool:
    """Whether several parameters may be compressed together.

    A compressor of the user's own may depend on a parameter's shape, unless it says `is_elementwise`.
    """
    return isinstance(compression, BucketCompressor) or bool(getattr(compression, "is_elementwise", False))


def _is_elementwise_form(kind: Any) -> bool:
    return callable(getattr(kind, "compress", None)) and callable(getattr(kind, "decompress", None))


def _converted(text: str, key: str, value: str, kind: type) -> Any:
    if kind is bool:
        if value in ("true", "false"):
            return value == "true"
        raise ValueError(f"compression {text!r}: {key} must be true or false, not {value!r}")
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"compression {text!r}: {key}={value!r} is no {kind.__name__}") from None
