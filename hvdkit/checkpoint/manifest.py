"""The manifest of a checkpoint: what wrote it, and the length and hash of every other file of its folder."""

import json
import math
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import xxhash

from hvdkit.errors import CheckpointError
from hvdkit.files.hashes import hash_file
from hvdkit.untrusted import inside, parse_json, shown

MANIFEST = "manifest.json"
_FORMAT = 2
_HASH_DIGITS = 32
_SEAL = "xxh3_128_of_the_rest"


@dataclass(frozen=True)
class Written:
    """A file as it was written."""

    n_bytes: int
    xxh3_128: str


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says. Names are relative to the folder, with `/` between parts."""

    step: int
    world_size: int
    files: Mapping[str, Written]
    validation_loss: float | None = None
    """Measured at this very step; None where it was not."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The options of the run."""
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """The text of the file."""
        content = {"format": _FORMAT, **asdict(self)}
        if self.validation_loss is not None and not math.isfinite(self.validation_loss):
            content["validation_loss"] = None  # JSON has no NaN
        return sealed(content)


def sealed(content: Mapping[str, Any]) -> str:
    """`content` as JSON, with a hash of all of it."""
    return json.dumps({**content, _SEAL: _hash(content)}, indent=1)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of the checkpoint in `folder`; raises CheckpointError where it cannot be trusted."""
    try:
        _check_inside(folder, MANIFEST)
        content = parse_json((folder / MANIFEST).read_text(encoding="utf-8"))
        if not isinstance(content, dict) or "format" not in content:
            raise ValueError("it is no manifest")
        if content["format"] != _FORMAT:
            raise CheckpointError(
                f"checkpoint {folder} has format {shown(content['format'])}; this hvdkit reads format {_FORMAT}"
            )
        return _checked(folder, content)
    except (OSError, KeyError, TypeError, ValueError) as problem:
        raise CheckpointError(f"checkpoint {folder} cannot be read: {problem}") from problem


def verify(folder: Path, manifest: Manifest, names: Iterable[str]) -> None:
    """Read the files `names` of the manifest, as the disk has them; raises CheckpointError for one that is not what was
    written."""
    for name in names:
        written = manifest.files[name]
        path = folder / name
        try:
            is_whole = path.stat().st_size == written.n_bytes and hash_file(path, from_disk=True) == written.xxh3_128
        except OSError as problem:
            raise CheckpointError(f"checkpoint {folder} cannot be read: {problem}") from problem
        if not is_whole:
            raise CheckpointError(f"checkpoint {folder} is damaged: {name} is not what was written; use another")


def versions() -> dict[str, str]:
    """Of what computes in this process."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("hvdkit", "horovod", "mpi4py", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _hash(content: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in content.items() if key != _SEAL}
    return xxhash.xxh3_128_hexdigest(json.dumps(rest, sort_keys=True).encode())


def _checked(folder: Path, content: Mapping[str, Any]) -> Manifest:
    step, world_size, loss = content["step"], content["world_size"], content["validation_loss"]
    if not (_is_count(step) and _is_count(world_size) and world_size > 0):
        raise ValueError(f"step={shown(step)} and world_size={shown(world_size)} are no counts")
    if not (loss is None or isinstance(loss, int | float)):
        raise ValueError(f"validation_loss={shown(loss)} is no number")
    if not all(isinstance(content[name], dict) for name in ("files", "config", "versions")):
        raise ValueError("its files, config and versions must be tables")
    if world_size > len(content["files"]):
        raise ValueError(f"{world_size} ranks cannot have written {len(content['files'])} files")
    files = {}
    for name, entry in content["files"].items():
        n_bytes, digest = entry["n_bytes"], entry["xxh3_128"]
        if not (_is_count(n_bytes) and isinstance(digest, str) and len(digest) == _HASH_DIGITS):
            raise ValueError(f"{name}: {shown(entry)} is no length and hash")
        _check_inside(folder, name)
        files[name] = Written(n_bytes, digest)
    if content[_SEAL] != _hash(content):
        raise ValueError("its manifest is not what was written")
    return Manifest(step, world_size, files, loss, content["config"], content["versions"])


def _check_inside(folder: Path, name: str) -> None:
    try:
        path = inside(folder, name)
    except ValueError as problem:
        raise CheckpointError(f"checkpoint {folder}: {problem}") from None
    if path.exists() and not path.is_file():  # reading a pipe would never end
        raise CheckpointError(f"checkpoint {folder}: {shown(name)} is not a regular file")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
