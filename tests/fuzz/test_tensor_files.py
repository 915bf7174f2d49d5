"""Files of submodels: safetensors headers, indexes of several files, PyTorch files, LoRA adapters."""

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import save

from hvdkit.errors import MergeError
from hvdkit.merge.files import Submodel, combined
from hvdkit.merge.files.safetensors_file import SafetensorsFile
from hvdkit.merge.files.torch_file import TorchFile
from tests.fuzz.harness import fuzz
from tests.fuzz.strategies import NAMES, NUMBERS, as_json, changed_bytes, changed_trees, files

TENSORS = {
    "a.weight": torch.arange(12.0).view(3, 4),
    "b": torch.arange(5),
    "c": torch.zeros(0, 3),
    "d": torch.tensor(True),
}
WHOLE = save(TENSORS, {"format": "pt"})
N_HEADER = int.from_bytes(WHOLE[:8], "little")
HEADER = json.loads(WHOLE[8 : 8 + N_HEADER])
ADAPTER_CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "fan_in_fan_out": False, "use_rslora": True,
                  "init_lora_weights": True, "bias": "none", "rank_pattern": {}, "target_modules": ["a"]}  # fmt: skip
ADAPTER = {"base_model.model.a.lora_A.weight": torch.ones(2, 4), "base_model.model.a.lora_B.weight": torch.ones(3, 2)}


def _with_header(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + WHOLE[8 + N_HEADER :]


def _with_length(data: bytes, length: int) -> bytes:
    return (length % 2**64).to_bytes(8, "little") + data[8:]


def _read_all(submodel: Any) -> None:
    for name, info in submodel.infos.items():
        for start in range(0, info.count, 5):
            stop = min(info.count, start + 5)
            assert submodel.read(name, start, stop).numel() == stop - start


@pytest.mark.timeout(0)
def test_safetensors_files(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        model = Submodel(path)
        try:
            _read_all(model)
            combined(model.hashes(), model.infos)
        finally:
            model.close()

    headers = files(changed_trees([HEADER], 4), as_json).map(_with_header)
    whole = changed_bytes(st.just(WHOLE))
    lengths = st.tuples(
        whole, st.one_of(st.sampled_from([n for n in NUMBERS if isinstance(n, int)]), st.integers(0, 400))
    ).map(lambda drawn: _with_length(*drawn))
    fuzz("safetensors", st.one_of(headers, headers, headers, whole, lengths), read, MergeError)


@pytest.mark.timeout(0)
def test_indexes(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "one.safetensors").write_bytes(WHOLE)
    (folder / "two.safetensors").write_bytes(save({"e": torch.ones(2)}))
    (tmp_path / "x").write_bytes(WHOLE)
    (folder / "link").symlink_to(tmp_path / "x")
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "pipe")
    index = {
        "metadata": {"total_size": 3},
        "weight_map": {**dict.fromkeys(TENSORS, "one.safetensors"), "e": "two.safetensors"},
    }

    def read(data: bytes) -> None:
        (folder / "model.safetensors.index.json").write_bytes(data)
        model = Submodel(folder)
        try:
            assert model.infos.keys() <= {*TENSORS, "e"}
        finally:
            model.close()

    fuzz("indexes", files(changed_trees([index]), as_json), read, MergeError)


def _saved(content: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


TORCH_FILES = [
    _saved(TENSORS),
    _saved({"state_dict": TENSORS, "epoch": 3}),
    _saved(TENSORS, _use_new_zipfile_serialization=False),
]


@st.composite
def _repacked(draw: st.DrawFn) -> bytes:
    """A zip file as torch.save makes it, whose pickle or other entries were changed."""
    before = zipfile.ZipFile(io.BytesIO(draw(st.sampled_from(TORCH_FILES[:2]))))
    victim = draw(st.sampled_from([name for name in before.namelist() if "/data" in name or "order" in name]))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as after:
        for name in before.namelist():
            data = before.read(name)
            after.writestr(name, draw(changed_bytes(st.just(data))) if name in (victim, "archive/data.pkl") else data)
    return file.getvalue()


@pytest.mark.timeout(0)
def test_pytorch_files(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        model = Submodel(path)
        try:
            _read_all(model)
        finally:
            model.close()

    fuzz("PyTorch files", st.one_of(changed_bytes(st.sampled_from(TORCH_FILES)), _repacked()), read, MergeError)


@pytest.mark.timeout(0)
def test_lora_adapters(tmp_path: Path) -> None:
    base_path, folder = tmp_path / "base.safetensors", tmp_path / "adapter"
    folder.mkdir()
    base_path.write_bytes(save({"a.weight": torch.zeros(3, 4), "b.weight": torch.zeros(4, 4)}))
    base = Submodel(base_path)
    weights = save(ADAPTER)
    n_header = int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8 : 8 + n_header])

    def read(drawn: tuple[bytes, Any]) -> None:
        (folder / "adapter_config.json").write_bytes(drawn[0])
        changed = as_json(drawn[1])
        (folder / "adapter_model.safetensors").write_bytes(
            len(changed).to_bytes(8, "little") + changed + weights[8 + n_header :]
        )
        _read_all(Submodel(folder, base))

    inputs = st.tuples(files(changed_trees([ADAPTER_CONFIG], 2), as_json), changed_trees([header], 1))
    fuzz("LoRA adapters", inputs, read, MergeError)
    base.close()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda header: header["b"].update(shape="5"),
        lambda header: header["b"].update(shape=[5.0]),
        lambda header: header["c"].update(shape=[0, 2**70]),
        lambda header: header["b"].update(shape=[True, 5]),
        lambda header: header["d"].update(data_offsets=[0.0, 1.0]),
        lambda header: header["b"].update(data_offsets=5),
        lambda header: header.update({"\ud800": header.pop("b")}),
    ],
    ids=range(7),
)
def test_headers_that_once_broke_out(spoil: Callable[[Any], None], tmp_path: Path) -> None:
    header = json.loads(as_json(HEADER))
    spoil(header)
    (tmp_path / "model.safetensors").write_bytes(_with_header(as_json(header)))
    with pytest.raises(MergeError, match="header cannot be understood"):
        SafetensorsFile(tmp_path / "model.safetensors")


def test_a_long_name_in_a_pytorch_file_takes_no_time(tmp_path: Path) -> None:
    before = zipfile.ZipFile(io.BytesIO(TORCH_FILES[0]))
    with zipfile.ZipFile(tmp_path / "model.bin", "w") as after:
        for name in before.namelist():
            pickled = b"\x80\x02cos\n" + b"x" * 2_000_000 + b"\n."
            after.writestr(name, pickled if name.endswith("data.pkl") else before.read(name))
    with pytest.raises(MergeError, match="cannot be read as weights only"):
        TorchFile(tmp_path / "model.bin")


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(1).expand(2**40), torch.zeros(3, device="meta"), torch.eye(3).to_sparse()],
    ids=["larger than its file", "no values", "sparse"],
)
def test_tensors_that_are_not_what_they_seem(tensor: torch.Tensor, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(_saved({"a": tensor}))
    with pytest.raises(MergeError, match="cannot be merged"):
        TorchFile(tmp_path / "model.bin")


@pytest.mark.parametrize(
    ("config", "shapes"),
    [
        ({"lora_alpha": "x"}, None),
        ({"lora_alpha": 10**400}, None),
        ({"lora_alpha": None}, None),
        ({}, ((0, 4), (3, 0))),
        ({}, ((4,), (3,))),
    ],
    ids=range(5),
)
def test_adapters_that_once_broke_out(config: dict[str, Any], shapes: Any, tmp_path: Path) -> None:
    (tmp_path / "base.safetensors").write_bytes(save({"a.weight": torch.zeros(3, 4)}))
    (tmp_path / "adapter_config.json").write_bytes(as_json({**ADAPTER_CONFIG, **config}))
    tensors = dict(zip(ADAPTER, map(torch.ones, shapes), strict=True)) if shapes else ADAPTER
    (tmp_path / "adapter_model.safetensors").write_bytes(save(tensors))
    with pytest.raises(MergeError):
        Submodel(tmp_path, Submodel(tmp_path / "base.safetensors"))


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_an_index_names_files_of_its_folder_only(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "x").write_bytes(WHOLE)
    (folder / "link").symlink_to(tmp_path / "x")
    (folder / "model.safetensors.index.json").write_bytes(as_json({"weight_map": {"a": name}}))
    with pytest.raises(MergeError):
        Submodel(folder)
