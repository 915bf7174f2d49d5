"""One submodel of a merge, in whatever files it lies, with the hash of what was read of it."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
import xxhash

from hvdkit.checkpoint import find_model
from hvdkit.errors import CheckpointError, MergeError
from hvdkit.merge.files.adapter import CONFIG_FILE as ADAPTER_CONFIG
from hvdkit.merge.files.adapter import Adapter
from hvdkit.merge.files.interface import Info, TensorFile
from hvdkit.merge.files.safetensors_file import SafetensorsFile
from hvdkit.merge.files.torch_file import TorchFile
from hvdkit.untrusted import inside, parse_json, shown

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


class Submodel:
    """The tensors of a model: a safetensors or PyTorch file, a Hugging Face folder of one or many, a run, checkpoint or
    model folder of hvdkit, or the folder of a LoRA adapter (then `base` is needed).

    Raises MergeError naming the path for what is none of them.
    """

    def __init__(self, path: Path, base: "Submodel | None" = None) -> None:
        self.path = path
        self._hashes: dict[str, _Hash] = {}
        self.folder: Path | None = None
        """Of its configuration and tokenizer, where it has one."""
        self._files: dict[str, TensorFile] = {}
        """By tensor."""
        for file in self._open(base):
            for name in file.infos:
                if name in self._files:
                    raise MergeError(f"{path}: {name} is in two of its files")
                self._files[name] = file
        self.infos: Mapping[str, Info] = {name: file.infos[name] for name, file in self._files.items()}

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """See `TensorFile`; the first reading from begin to end also makes the tensor's hash."""
        values = self._files[name].read(name, start, stop)
        self._hashes.setdefault(name, _Hash()).add(start, values)
        return values

    def hashes(self) -> dict[str, str]:
        """XXH3 (128 bits, in hexadecimal) of the tensors that this process has read whole."""
        return {name: found.digest() for name, found in self._hashes.items() if found.done == self.infos[name].count}

    def close(self) -> None:
        """Let go of all files."""
        for file in {id(file): file for file in self._files.values()}.values():
            file.close()

    def _open(self, base: "Submodel | None") -> list[TensorFile]:
        if self.path.is_file():
            return [_open_file(self.path)]
        if (self.path / ADAPTER_CONFIG).is_file():
            if base is None:
                raise MergeError(f"{self.path} is a LoRA adapter: name the model that it belongs to as base")
            self.folder = base.folder
            return [Adapter(self.path, base)]
        self.folder = self._model_folder()
        for name in _WEIGHTS:
            if (self.folder / name).is_file():
                return [_open_file(file_in(self.folder, name))]
            if (self.folder / f"{name}.index.json").is_file():
                return [_open_file(file_in(self.folder, part)) for part in _parts(self.folder / f"{name}.index.json")]
        return [_open_file(file_in(self.folder, part.name)) for part in sorted(self.folder.glob("*.safetensors"))]

    def _model_folder(self) -> Path:
        if not self.path.is_dir():
            raise MergeError(f"{self.path}: there is no such file or folder")
        try:
            return find_model(self.path)
        except CheckpointError:
            names = [path.name for path in self.path.iterdir()]
            if not any(name.endswith((".safetensors", *_WEIGHTS)) for name in names):
                raise MergeError(f"{self.path}: holds neither a model nor files of tensors") from None
            return self.path


def combined(hashes: Mapping[str, str], infos: Mapping[str, Info]) -> str:
    """One hash of a whole model: SHA-256 of its tensors' names, dtypes, shapes and hashes, in order of names."""
    lines = [f"{name} {infos[name].dtype} {infos[name].shape} {hashes[name]}\n" for name in sorted(hashes)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


class _Hash:
    """Of a tensor that is read in order; what is read again is not counted again."""

    def __init__(self) -> None:
        self.done = 0
        self._hash = xxhash.xxh3_128()

    def add(self, start: int, values: torch.Tensor) -> None:
        if start == self.done and values.numel():
            self._hash.update(values.view(torch.uint8).numpy().data)
            self.done += values.numel()

    def digest(self) -> str:
        return self._hash.hexdigest()


def file_in(folder: Path, name: str) -> Path:
    """A file of a model folder that someone else may have made: links lead to no other folder (in Hugging Face's cache,
    which is made of links, to no other model). Raises MergeError."""
    is_cached = folder.absolute().parent.name == "snapshots"
    try:
        return inside(folder, name, folder.absolute().parents[1] if is_cached else folder)
    except ValueError as error:
        raise MergeError(f"{folder}: {error}; if you made that link, name the folder that it leads to") from None


def _open_file(path: Path) -> TensorFile:
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    if path.suffix in (".bin", ".pt", ".pth", ".ckpt"):
        return TorchFile(path)
    raise MergeError(f"{path}: neither .safetensors nor a PyTorch file (.pt, .pth, .bin, .ckpt)")


def _parts(index: Path) -> list[str]:
    """The files that an index names, each once; none outside its folder."""
    try:
        names = set(parse_json(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise MergeError(f"{index}: cannot be understood ({error})") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or "\0" in name:
            raise MergeError(f"{index}: {shown(name)} points outside its folder")
        if not file_in(index.parent, name).is_file():
            raise MergeError(f"{index}: names {shown(name)}, which is not there")
    return sorted(names)
