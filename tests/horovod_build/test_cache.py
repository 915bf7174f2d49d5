"""The cache's key changes with everything that changes the wheel, and a wheel is kept whole or not at all."""

import base64
import csv
import hashlib
import json
import zipfile
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from hvdkit.errors import BuildError
from hvdkit.horovod_build import cache as cache_module
from hvdkit.horovod_build.cache import cache_key, find_wheel, keep_wheel, open_cache
from hvdkit.horovod_build.cuda import Cuda
from hvdkit.horovod_build.edits import EDITS
from hvdkit.horovod_build.mpi import Mpi
from hvdkit.horovod_build.record import RECORD
from hvdkit.horovod_build.toolchain import Toolchain, Torch

pytestmark = pytest.mark.launch  # nothing here depends on the number of ranks

TOOLCHAIN = Toolchain(
    python="CPython 3.11.7 cpython-311-x86_64-linux-gnu",
    machine="Linux x86_64 glibc 2.36 avx f16c fma",
    torch=Torch("2.13.0+cpu", "abc", None, None, True, 17),
    mpi=Mpi(Path("/opt/mpi/bin"), "/opt/mpi/bin/mpirun", "Open MPI v4.1.8", "/opt/mpi/lib/libmpi.so.40"),
    cxx="c++",
    cc="cc",
    compiler="g++ 12.2.0",
    cmake="3.31.6",
    cmake_program="/usr/bin/cmake",
    cuda=Cuda("/usr/local/cuda", "13.0", "/nccl/include", "/nccl/lib", "2.27.3"),
    flags=(("CXXFLAGS", "-O2"),),
)


def variations(item: Any) -> list[tuple[str, Any]]:
    """`item` with each field changed in turn, also those of the dataclasses in it."""
    changed = []
    for field in fields(item):
        value = getattr(item, field.name)
        if is_dataclass(value):
            changed += [(f"{field.name}.{name}", replace(item, **{field.name: v})) for name, v in variations(value)]
        elif isinstance(value, bool | int):
            changed.append((field.name, replace(item, **{field.name: value + 1})))
        else:
            changed.append((field.name, replace(item, **{field.name: f"{value}x"})))
    return changed


def test_the_key_changes_with_everything_that_changes_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {name: cache_key(toolchain) for name, toolchain in variations(TOOLCHAIN)}
    same = {name for name, key in keys.items() if key == cache_key(TOOLCHAIN)}
    assert same == {"cxx", "cc", "cmake_program"}  # where programs are; their versions count
    assert len(set(keys.values())) == len(keys) - len(same) + 1
    before = cache_key(TOOLCHAIN)
    assert cache_key(replace(TOOLCHAIN, cuda=None)) not in (before, *keys.values())
    monkeypatch.setattr(cache_module, "EDITS", (*EDITS[:-1], replace(EDITS[-1], replacement="another")))
    assert cache_key(TOOLCHAIN) != before


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """A wheel as pip builds it, small."""
    path = tmp_path / "horovod-0.28.1-cp311-cp311-linux_x86_64.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("horovod/__init__.py", "__version__ = '0.28.1'\n")
        archive.writestr("horovod-0.28.1.dist-info/RECORD", "horovod/__init__.py,sha256=x,24\n")
    return path


def test_a_kept_wheel_is_found_again_with_its_record(built: Path, tmp_path: Path) -> None:
    assert find_wheel(tmp_path, TOOLCHAIN) is None
    kept = keep_wheel(tmp_path, TOOLCHAIN, built)
    assert find_wheel(tmp_path, TOOLCHAIN) == kept
    assert find_wheel(tmp_path, replace(TOOLCHAIN, cmake="4.0.0")) is None
    assert [path.name for path in kept.parent.iterdir()] == [built.name]
    with zipfile.ZipFile(kept) as archive:
        content = archive.read(RECORD)
        lines = archive.read("horovod-0.28.1.dist-info/RECORD").decode().splitlines()
    listed = {name: (digest, size) for name, digest, size in csv.reader(lines)}
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    assert listed[RECORD] == (f"sha256={digest}", str(len(content)))
    record = json.loads(content)
    assert record["toolchain"] == TOOLCHAIN.describe()
    assert len(record["edits"]) == len(EDITS)


def test_a_damaged_wheel_in_the_cache_is_not_used(built: Path, tmp_path: Path) -> None:
    kept = keep_wheel(tmp_path, TOOLCHAIN, built)
    kept.write_bytes(kept.read_bytes()[:-30])
    assert find_wheel(tmp_path, TOOLCHAIN) is None
    assert find_wheel(tmp_path, TOOLCHAIN) is None
    assert keep_wheel(tmp_path, TOOLCHAIN, built) == kept == find_wheel(tmp_path, TOOLCHAIN)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(BuildError, match=r"the cache folder cannot be written .*; set XDG_CACHE_HOME to a folder"):
        open_cache()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert open_cache() == tmp_path / "hvdkit"
    assert sorted(path.name for path in (tmp_path / "hvdkit").iterdir()) == ["logs", "sources", "wheels"]
