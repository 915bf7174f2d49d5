"""Submodels are read piece by piece as other libraries read them whole, in whatever file; bad files are named."""

import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hvdkit.errors import MergeError
from hvdkit.merge.files import Info, Submodel
from hvdkit.merge.output import Layout, OutputFiles

Tensors = dict[str, torch.Tensor]


def some_tensors() -> Tensors:
    random = torch.Generator().manual_seed(1)
    tensors = {
        str(dtype).removeprefix("torch."): torch.randn(3, 4, generator=random).to(dtype)
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn)
    }
    return {**tensors, "number": torch.tensor(7), "none": torch.empty(0, 4), "mask": torch.tensor([True, False])}


def whole(submodel: Submodel) -> Tensors:
    """Everything, in pieces of five elements."""
    found = {}
    for name, info in submodel.infos.items():
        starts = range(0, info.count, 5)
        pieces = [submodel.read(name, start, min(start + 5, info.count)).clone() for start in starts]
        found[name] = torch.cat(pieces).view(info.shape) if pieces else torch.empty(info.shape, dtype=info.dtype)
    return found


def assert_equal(found: Tensors, wanted: Tensors) -> None:
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert found[name].view(torch.uint8).tolist() == tensor.view(torch.uint8).tolist() if tensor.dim() else True
        assert found[name].tolist() == tensor.tolist() if not tensor.dim() else True


def one_file(folder: Path, tensors: Tensors) -> Path:
    save_file(tensors, folder / "some.safetensors")
    return folder / "some.safetensors"


def sharded(folder: Path, tensors: Tensors) -> Path:
    where = {name: f"model-{number % 2}.safetensors" for number, name in enumerate(tensors)}
    for file in set(where.values()):
        save_file({name: tensor for name, tensor in tensors.items() if where[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (folder / "config.json").write_text("{}")
    return folder


def torch_file(folder: Path, tensors: Tensors) -> Path:
    torch.save(tensors, folder / "some.pt")
    return folder / "some.pt"


def nested_torch_file(folder: Path, tensors: Tensors) -> Path:
    torch.save({"step": 3, "state_dict": tensors, "optimizer": {"lr": 0.1}}, folder / "pytorch_model.bin")
    (folder / "config.json").write_text("{}")
    return folder


def loose_files(folder: Path, tensors: Tensors) -> Path:
    for name, tensor in tensors.items():
        save_file({name: tensor}, folder / f"{name}.safetensors")
    return folder


def run_folder(folder: Path, tensors: Tensors) -> Path:
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    save_file(tensors, folder / "model" / "model.safetensors")
    return folder


@pytest.mark.parametrize("make", [one_file, sharded, torch_file, nested_torch_file, loose_files, run_folder])
def test_reads_what_was_written(make: Callable[[Path, Tensors], Path], tmp_path: Path) -> None:
    tensors = some_tensors()
    submodel = Submodel(make(tmp_path, tensors))
    assert_equal(whole(submodel), tensors)
    # The hash is of the values, wherever they lie.
    (other := tmp_path / "other").mkdir()
    again = Submodel(one_file(other, tensors))
    whole(again)
    assert submodel.hashes() == again.hashes() and len(again.hashes()) == len(tensors) - 1  # but the empty one
    changed = {**tensors, "float32": tensors["float32"] + 1e-6}
    third = Submodel(one_file(other, changed))
    whole(third)
    assert {name for name, digest in third.hashes().items() if digest != again.hashes()[name]} == {"float32"}
    submodel.close()


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


def _cut(path: Path, n_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:n_bytes])


def _with_header(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.unlink(), "there is no such file or folder"),
        (lambda path: _cut(path, 0), "no safetensors file"),
        (lambda path: _cut(path, 100), "cut short within its header"),
        (lambda path: _cut(path, path.stat().st_size - 1), "bytes and should have"),
        (lambda path: path.write_bytes(b"\x02" + bytes(7) + b"[]" + bytes(40)), "cannot be understood"),
        (lambda path: path.write_bytes((2**60).to_bytes(8, "little") + bytes(40)), "no safetensors file"),
        (
            lambda path: _with_header(path, lambda h: h["float32"].update(shape=[3, 5])),
            "float32 does not fit its shape",
        ),
        (lambda path: _with_header(path, lambda h: h["float32"].update(shape=[-3, -4])), "cannot be understood"),
        (lambda path: _with_header(path, lambda h: h["float32"].update(dtype="F7")), "float32 has dtype 'F7'"),
        (
            lambda path: _with_header(path, lambda h: h["float32"].update(data_offsets=[0, 48])),
            "does not fit its shape",
        ),
    ],
)
def test_a_bad_safetensors_file(spoil: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    path = one_file(tmp_path, some_tensors())
    spoil(path)
    with pytest.raises(MergeError, match=said) as caught:
        Submodel(path)
    assert str(path) in str(caught.value)


def test_other_files_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MergeError, match="neither a model nor files of tensors"):
        Submodel(tmp_path)
    Path("evil.pt").write_bytes(pickle.dumps({"x": _Evil()}))
    torch.save({"x": _Evil()}, "evil2.pt")
    Path("text.pt").write_text("no tensors")
    torch.save({"step": 3}, "step.pt")
    Path("weights.npz").touch()
    for path in ("evil.pt", "evil2.pt", "text.pt", "step.pt", "weights.npz"):
        with pytest.raises(MergeError, match=path):
            Submodel(Path(path))
    assert not Path("executed").exists()
    for weight_map in ({"x": "../some.safetensors"}, {"x": "/etc/passwd"}, {"x": 3}, {"x": "gone.safetensors"}, []):
        Path("model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        Path("config.json").write_text("{}")
        with pytest.raises(MergeError, match=r"index.json"):
            Submodel(tmp_path)


def adapter(folder: Path, tensors: Tensors, **config: Any) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 8, **config}))
    save_file(
        {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}, folder / "adapter_model.safetensors"
    )
    return folder


@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_an_adapter_is_its_base_and_the_product(is_transposed: bool, use_rslora: bool, tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(1)
    base = {"up.weight": torch.randn(6, 4, generator=random).bfloat16(), "norm.weight": torch.ones(4)}
    down, up = torch.randn(2, 4, generator=random), torch.randn(6, 2, generator=random)
    if is_transposed:
        base["up.weight"] = base["up.weight"].T.contiguous()
    save_file(base, tmp_path / "base.safetensors")
    folder = adapter(tmp_path / "a", {"up.lora_A.weight": down, "up.lora_B.weight": up}, use_rslora=use_rslora,
                     fan_in_fan_out=is_transposed)  # fmt: skip
    found = whole(Submodel(folder, Submodel(tmp_path / "base.safetensors")))
    product = up @ down * (8 / math.sqrt(2) if use_rslora else 4)
    wanted = base["up.weight"].float() + (product.T if is_transposed else product)
    assert torch.allclose(found["up.weight"], wanted, atol=1e-5)
    assert torch.equal(found["norm.weight"], base["norm.weight"])


@pytest.mark.parametrize(
    ("tensors", "config", "said"),
    [
        ({"up.lora_A.weight": torch.ones(2, 4)}, {}, "has no partner"),
        ({"in.lora_A.weight": torch.ones(2, 4), "in.lora_B.weight": torch.ones(6, 2)}, {}, r"its base no in\.weight"),
        ({"up.lora_A.weight": torch.ones(2, 5), "up.lora_B.weight": torch.ones(6, 2)}, {}, r"\(6, 5\)"),
        ({"up.lora_embedding_A": torch.ones(2, 4)}, {}, "only LoRA of linear layers"),
        ({}, {"use_dora": True}, "use_dora=True"),
        ({}, {"bias": "all"}, "bias='all'"),
        ({}, {"peft_type": "IA3"}, "only LoRA"),
    ],
)
def test_adapters_that_are_refused(tensors: Tensors, config: dict[str, Any], said: str, tmp_path: Path) -> None:
    save_file({"up.weight": torch.ones(6, 4)}, tmp_path / "base.safetensors")
    folder = adapter(tmp_path / "a", tensors, **config)
    with pytest.raises(MergeError, match="name the model that it belongs to"):
        Submodel(folder)
    with pytest.raises(MergeError, match=said):
        Submodel(folder, Submodel(tmp_path / "base.safetensors"))


@pytest.mark.parametrize("shard_bytes", [10**9, 100, 1])
def test_what_is_written_is_read_by_the_library(shard_bytes: int, tmp_path: Path) -> None:
    tensors = some_tensors()
    infos = {name: Info(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    layout = Layout(infos, shard_bytes)
    OutputFiles.create(tmp_path, layout)
    files = OutputFiles(tmp_path, layout)
    for name, tensor in tensors.items():
        flat = tensor.reshape(-1)
        for start in reversed(range(0, len(flat), 5)):  # in any order
            files.write(name, start, flat[start : start + 5])
    files.close()
    found: Tensors = {}
    for file in layout.files():
        found.update(load_file(tmp_path / file))
    assert_equal(found, tensors)
    if shard_bytes == 10**9:
        assert list(layout.files()) == ["model.safetensors"]
    else:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"]) == set(tensors)
        assert_equal(whole(Submodel(tmp_path)), tensors)


def test_values_too_large_for_float16(tmp_path: Path) -> None:
    layout = Layout({"x": Info(torch.float16, (2,))}, 10**9)
    OutputFiles.create(tmp_path, layout)
    with pytest.raises(MergeError, match="x: the merged values are too large for float16"):
        OutputFiles(tmp_path, layout).write("x", 0, torch.tensor([1.0, 70000.0]))
