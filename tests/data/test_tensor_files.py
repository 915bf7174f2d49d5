"""Tensors are written as safetensors reads them, and are as they were."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from hvdkit.files.hashes import hash_file
from hvdkit.files.tensors import write_tensors


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    tensors = {
        "a row": torch.arange(10.0),
        "a number": torch.tensor(3.0, dtype=torch.bfloat16),
        "nothing": torch.empty(0, 4),
        "not contiguous": torch.arange(6).reshape(2, 3).T,
        "a part": torch.arange(8, dtype=torch.uint8)[3:5],
        "float64": torch.ones(3, dtype=torch.float64),
    }
    path = tmp_path / "tensors"
    digest = write_tensors(path, tensors)
    assert digest == hash_file(path)
    found = load_file(path)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_memory_that_was_written_can_be_given_back(tmp_path: Path) -> None:
    """As `--sharding 3` does after a save."""
    whole = torch.arange(10.0)
    write_tensors(tmp_path / "tensors", {"whole": whole})
    whole.untyped_storage().resize_(0)
