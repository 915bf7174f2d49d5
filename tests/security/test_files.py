"""Files of others: names and links that lead out of their folder, and what a user's own files may be read by."""

import contextlib
import json
import os
import pickle
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hvdkit.errors import HvdkitError, MergeError
from hvdkit.merge.execute import merge_files
from hvdkit.merge.files import Submodel
from hvdkit.merge.files.torch_file import TorchFile
from hvdkit.merge.output import output_folder
from hvdkit.merge.recipe import parse_recipe
from hvdkit.models import load_model
from hvdkit.runtime import World
from hvdkit.untrusted import inside
from tests.jobs import run_ranks, succeed
from tests.merge.submodels import tensors_of, write
from tests.security.watched import running

pytestmark = pytest.mark.launch  # one rank is enough


class Trap:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize(
    "write_trap",
    [torch.save, lambda trap, path: path.write_bytes(pickle.dumps(trap))],
    ids=["torch", "pickle"],
)
def test_nothing_in_a_pytorch_file_runs(write_trap: Callable[[Any, Path], Any], tmp_path: Path) -> None:
    write_trap({"a": torch.ones(2), "b": Trap(tmp_path / "ran")}, tmp_path / "model.bin")
    with pytest.raises(MergeError, match="weights only"):
        TorchFile(tmp_path / "model.bin")
    assert not (tmp_path / "ran").exists()


def test_names_stay_in_their_folder(tmp_path: Path) -> None:
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    (folder / "sub").mkdir(parents=True)
    outside.mkdir()
    (folder / "file").touch()
    (folder / "to-outside").symlink_to(outside)
    (folder / "to-sub").symlink_to("sub")
    (folder / "loop").symlink_to("loop")
    for name in ("file", "sub/x", "to-sub/x", "sub/../file", "new"):
        assert inside(folder, name) == folder / name
    too_long = "x" * 256
    for name in ("../outside", "..", str(outside), "to-outside", "to-outside/x", "sub/../../outside", "", "a\0b", 3,
                 None, too_long):  # fmt: skip
        with pytest.raises(ValueError, match=r"outside its folder|is not the name|cannot be followed"):
            inside(folder, name)
    (tmp_path / "other").symlink_to(folder)  # how the user got to the folder is the user's business
    assert inside(tmp_path / "other", "file") == tmp_path / "other" / "file"


def _merge(world: World, tmp_path: Path, path: Path) -> Path:
    return merge_files(world, parse_recipe({"models": [str(path), str(path)]}), tmp_path / "merged", lambda text: None)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "vocab.txt"])
def test_a_merge_copies_no_file_that_a_link_leads_to(name: str, world: World, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", tensors_of(1))
    secret = tmp_path / "secret"
    secret.write_text("{}")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(secret)
    with pytest.raises(MergeError, match=f"'{name}' points outside its folder"):
        _merge(world, tmp_path, folder)
    assert not (tmp_path / "merged").exists()


def test_the_cache_of_hugging_face_is_made_of_links(world: World, tmp_path: Path) -> None:
    folder = write(tmp_path / "models--a--b" / "snapshots" / "0123", tensors_of(1))
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir()
    for path in list(folder.iterdir()):
        path.rename(blobs / path.name)
        path.symlink_to(Path("../../blobs") / path.name)
    assert (_merge(world, tmp_path, folder) / "tokenizer.json").is_file()
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to(tmp_path / "merged" / "config.json")
    with pytest.raises(MergeError, match="points outside its folder"):
        Submodel(folder).close()
        merge_files(world, parse_recipe({"models": [str(folder)]}), tmp_path / "again", lambda text: None)


def test_the_lock_of_a_merge_empties_no_file(tmp_path: Path) -> None:
    """Its name can be guessed: in a folder that others may write to, it may be a link that someone put there."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / ".out.lock").symlink_to(victim)
    with pytest.raises(MergeError, match="remove what is there"), output_folder(tmp_path / "out"):
        pass
    assert victim.read_text() == "precious"


def test_a_model_folder_has_no_say_in_what_runs(tmp_path: Path) -> None:
    """A function that config.json names is imported and called with two numbers, but none of the folder's own."""
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": torch.ones(1)}, folder / "model.safetensors")
    (folder / "evil.py").write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()")
    description = {"function": "evil:make", "objective": "causal", "vocab_size": 3, "context": 3}
    (folder / "config.json").write_text(json.dumps({"hvdkit_model": description}))
    with pytest.raises(HvdkitError, match="cannot be imported"):
        load_model(folder)
    assert not (tmp_path / "ran").exists()


def _open_to_others(path: Path) -> bool:
    return bool(stat.S_IMODE(path.lstat().st_mode) & 0o077)


def _reachable(path: Path) -> bool:
    """Whether another user gets at it: through every folder on the way, and the file's own mode."""
    return _open_to_others(path) and not any(
        not stat.S_IMODE(folder.stat().st_mode) & 0o011 for folder in path.parents if folder != folder.parent
    )


@pytest.mark.parametrize("launcher", ["mpirun", "horovodrun-mpi", "horovodrun-gloo"])
def test_shared_memory_and_temporary_files_are_private(launcher: str, tmp_path: Path) -> None:
    """Everything that the processes of a job, libraries included, have open or mapped in /dev/shm and /tmp."""
    before = os.umask(0o022)
    temporary = tmp_path / "tmp"
    temporary.mkdir(mode=0o777)
    temporary.chmod(0o1777)
    tmp_path.chmod(0o755)
    try:
        with running(launcher, tmp_path, {"TMPDIR": str(temporary)}) as job:
            checked = 0
            for process in job.processes():
                # What has been deleted meanwhile is still reached by these names, for whoever may open it.
                found = [*Path(f"/proc/{process.pid}/fd").iterdir(), *Path(f"/proc/{process.pid}/map_files").iterdir()]
                for path in found:
                    with contextlib.suppress(OSError):
                        where = str(path.readlink())
                        if where.startswith(("/dev/shm/", str(temporary))):
                            checked += 1
                            mode = stat.S_IMODE(path.stat().st_mode)
                            assert not mode & 0o077 or not _reachable(Path(where)), f"{where} has mode {mode:o}"
            assert checked or launcher == "horovodrun-gloo"
            # torch makes the folder of its compiler, which hvdkit does not use (SECURITY.md).
            for path in (path for path in temporary.iterdir() if not path.name.startswith("torchinductor_")):
                assert not _open_to_others(path), f"{path} has mode {stat.S_IMODE(path.stat().st_mode):o}"
            assert job.end()[0] == 0
    finally:
        os.umask(before)


def test_shared_tensors_are_private() -> None:
    program = (
        "import os, hvdkit as hvd; from hvdkit.collectives import empty_shared\n"
        "real = os.truncate\n"
        "def truncate(file, n):\n"
        "    print('mode', oct(os.fstat(file).st_mode & 0o777), flush=True)\n"
        "    real(file, n)\n"
        "os.truncate = truncate; os.umask(0); hvd.init(); empty_shared(10)"
    )
    assert "mode 0o600" in succeed(run_ranks(2, "-c", program)).stdout
