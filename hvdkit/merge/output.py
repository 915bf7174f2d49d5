"""The merged model's files: safetensors whose headers are written first, so that every rank can place its blocks.

Complete or absent, like a checkpoint: all is written into a hidden folder beside, flushed, and renamed at the end.
"""

import contextlib
import fcntl
import functools
import glob
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import torch

from hvdkit.errors import MergeError
from hvdkit.files.durable import complete_folder
from hvdkit.files.tensors import header
from hvdkit.merge.c_library import start_writing
from hvdkit.merge.files import Info

_UNIQUE = re.compile(r"[0-9a-f]{32}")

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Layout:
    """Which tensor lies where: one file, or several and an index where one would exceed `shard_bytes`."""

    infos: Mapping[str, Info]
    shard_bytes: int

    def files(self) -> dict[str, list[str]]:
        """The tensors of each file, in order."""
        groups: list[list[str]] = [[]]
        filled = 0
        for name, info in self.infos.items():
            if groups[-1] and filled + info.n_bytes > self.shard_bytes:
                groups.append([])
                filled = 0
            groups[-1].append(name)
            filled += info.n_bytes
        if len(groups) == 1:
            return {"model.safetensors": groups[0]}
        return {f"model-{number:05d}-of-{len(groups):05d}.safetensors": names for number, names in enumerate(groups, 1)}


def rounded(name: str, values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`values` in `dtype`. Raises MergeError, naming the tensor, where they are too large for it."""
    is_narrower = dtype.is_floating_point and dtype.itemsize < values.dtype.itemsize and values.numel() > 0
    if is_narrower and float(values.abs().max()) > torch.finfo(dtype).max:
        kind = str(dtype).removeprefix("torch.")
        raise MergeError(f"{name}: the merged values are too large for {kind}; use dtype: bfloat16 or float32")
    return values.to(dtype)


def _told(method: F) -> F:
    """`method`, whose OSError becomes a MergeError."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except OSError as error:
            raise MergeError(f"the merged model cannot be written ({error.strerror or error})") from error

    return cast(F, call)


class OutputFiles:
    """The files of `layout` in `folder`, open for writing blocks. Made on one rank by `create`, then on all.

    Every method raises MergeError where the disk does not do what it should.
    """

    @_told
    def __init__(self, folder: Path, layout: Layout) -> None:
        self._infos = layout.infos
        self._places: dict[str, tuple[int, int]] = {}
        self._descriptors = []
        for file, names in layout.files().items():
            descriptor = os.open(folder / file, os.O_WRONLY | os.O_CLOEXEC)
            self._descriptors.append(descriptor)
            start = len(_header(names, layout.infos))
            for name in names:
                self._places[name] = descriptor, start
                start += layout.infos[name].n_bytes

    @staticmethod
    @_told
    def create(folder: Path, layout: Layout) -> None:
        """Make the files, with their headers and all the room that they will take."""
        for file, names in layout.files().items():
            header = _header(names, layout.infos)
            descriptor = os.open(folder / file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                os.write(descriptor, header)
                os.posix_fallocate(descriptor, 0, len(header) + sum(layout.infos[name].n_bytes for name in names))
            finally:
                os.close(descriptor)
        if len(layout.files()) > 1:
            where = {name: file for file, names in layout.files().items() for name in names}
            total = sum(info.n_bytes for info in layout.infos.values())
            index = {"metadata": {"total_size": total}, "weight_map": where}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")

    @_told
    def write(self, name: str, start: int, values: torch.Tensor) -> None:
        """Put `values`, (n,) of any dtype, into elements [start, start + n) of the tensor."""
        info = self._infos[name]
        descriptor, place = self._places[name]
        stored = rounded(name, values, info.dtype)
        data = stored.contiguous().view(torch.uint8).numpy().data
        place += start * info.dtype.itemsize
        while data:
            written = os.pwrite(descriptor, data, place)
            data, place = data[written:], place + written

    def done(self, name: str) -> None:
        """The tensor is whole, as far as this rank is concerned: it may go to disk while others are merged."""
        descriptor, place = self._places[name]
        start_writing(descriptor, place, self._infos[name].n_bytes)

    @_told
    def close(self) -> None:
        """Flush what this rank wrote to disk and close."""
        for descriptor in self._descriptors:
            os.fsync(descriptor)
            os.close(descriptor)


def check_free(out: Path) -> None:
    """Raises MergeError if there is something under that name."""
    if out.exists():
        raise MergeError(f"--out {out} exists: name another folder, or remove it")


@contextmanager
def output_folder(out: Path) -> Iterator[Path]:
    """On one rank: a hidden folder beside `out` that takes its name when the block ends well, and else disappears.

    Raises MergeError if `out` exists or another merge is writing it. What killed merges left behind is removed.
    """
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    with _locked(out):
        check_free(out)
        for left in out.parent.glob(f".{glob.escape(out.name)}.*.part"):
            if _UNIQUE.fullmatch(left.name.removeprefix(f".{out.name}.").removesuffix(".part")):
                shutil.rmtree(left, ignore_errors=True)
        with complete_folder(out) as beside:
            yield beside


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Nobody else writes `out` meanwhile, on a file system that has locks; the kernel lets go for who is killed."""
    path = out.with_name(f".{out.name}.lock")
    while True:
        with _lock_file(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise MergeError(f"--out {out}: another merge is writing it") from None
            except OSError:
                pass
            try:
                if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    continue  # who had it before has just removed it
                yield
                return
            finally:
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()


def _lock_file(path: Path) -> IO[bytes]:
    """Its name can be guessed: whoever may write to the folder must not be able to make us empty another file."""
    try:
        return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "r+b", 0)
    except OSError as error:
        raise MergeError(f"{path}: cannot be opened ({error.strerror}); remove what is there") from None


def _header(names: Sequence[str], infos: Mapping[str, Info]) -> bytes:
    return header({name: (infos[name].dtype, infos[name].shape) for name in names})
