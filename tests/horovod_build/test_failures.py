"""A build that fails, for want of disk, of a compiler, or because somebody stops it, leaves everything as it was."""

import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.horovod_build.environments import Environment, build_environ, mpi_folder, script, small_disk
from tests.jobs import clean_environ

pytestmark = pytest.mark.launch

# Lets the questions pass that are asked before the build; what Horovod's own build compiles meets the rest.
UNLESS_ASKED = 'case "$*" in *check.cc*|*--version*) exec c++ "$@";; esac\n'


def compiler(path: Path, text: str) -> str:
    """A C++ compiler that does `text` once the build has begun."""
    return str(script(path / "cxx", UNLESS_ASKED + text))


@pytest.fixture
def with_earlier(environment: Environment) -> Environment:
    """An environment that has some earlier Horovod, which must survive."""
    package = environment.site / "horovod"
    package.mkdir()
    (package / "__init__.py").write_text("__version__ = '0.27.0'\n")
    info = environment.site / "horovod-0.27.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: horovod\nVersion: 0.27.0\n")
    (info / "INSTALLER").write_text("pip\n")
    (info / "RECORD").write_text(
        "horovod/__init__.py,,\n"
        + "".join(f"horovod-0.27.0.dist-info/{name},,\n" for name in ("METADATA", "INSTALLER", "RECORD"))
    )
    return environment


def failed(environment: Environment, tmp_path: Path, archive: Path, **env: str) -> str:
    """What a build says that must fail: status 1, the earlier Horovod there, nothing else left but the log."""
    result = environment.build(
        *("--mpi", mpi_folder(), "--gpu", "none", "--source", archive), env=build_environ(tmp_path, **env)
    )
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Traceback" not in result.stderr, result.stderr
    unchanged(environment, tmp_path)
    return result.stderr


def unchanged(environment: Environment, tmp_path: Path) -> None:
    assert environment.horovod_version() == "0.27.0"
    assert environment.leftovers() == ["horovod", "horovod-0.27.0.dist-info"]
    assert list((tmp_path / "tmp").iterdir()) == []
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".log"] == []


def test_a_compile_error_names_the_first_error_and_the_log(
    with_earlier: Environment, tmp_path: Path, archive: Path
) -> None:
    cxx = compiler(tmp_path, "echo 'common.cc:7:1: fatal error: no such moon' >&2; exit 1")
    said = failed(with_earlier, tmp_path, archive, CXX=cxx)
    found = re.search(r"Horovod did not compile: (.*)\. The whole log: (\S+)", said)
    assert found, said
    log = Path(found[2]).read_text()
    assert found[1].endswith("common.cc:7:1: fatal error: no such moon")
    assert found[1] in log and "-- The CXX compiler identification is" in log, "the log is whole"


def test_a_disk_that_is_full_before_or_during_the_build_is_named(
    with_earlier: Environment, tmp_path: Path, archive: Path
) -> None:
    cxx = compiler(tmp_path, "cat /dev/zero > filling; exit 1")
    with small_disk(tmp_path / "small", 620) as disk:
        said = failed(with_earlier, tmp_path, archive, CXX=cxx, TMPDIR=str(disk))
        assert f"the disk of {disk} ran full; free some space, or set TMPDIR to a folder on a larger disk" in said
        assert "The whole log: " in said
        assert list(disk.iterdir()) == []
        (disk / "taken").write_bytes(bytes(100 * 2**20))
        said = failed(with_earlier, tmp_path, archive, TMPDIR=str(disk))
        assert re.search(rf"{disk} has \d+ MB free, the build needs 600; free some, or set TMPDIR", said), said
        (disk / "taken").write_bytes(bytes(550 * 2**20))
        said = failed(with_earlier, tmp_path, archive, XDG_CACHE_HOME=str(disk))
        assert re.search(r"small/hvdkit has \d+ MB free and needs 100; free some, or set XDG_CACHE_HOME", said), said


def test_a_cache_that_cannot_be_written_is_named(with_earlier: Environment, tmp_path: Path, archive: Path) -> None:
    said = failed(with_earlier, tmp_path, archive, XDG_CACHE_HOME=str(archive))
    assert "the cache folder cannot be written (" in said and "set XDG_CACHE_HOME" in said


def runs(process: int) -> bool:
    """Whether it does; one that has ended may wait a moment for somebody to take note."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_an_interrupted_build_leaves_nothing(with_earlier: Environment, tmp_path: Path, archive: Path) -> None:
    reached = tmp_path / "reached"
    cxx = compiler(tmp_path, f"echo $$ > {reached}.part; mv {reached}.part {reached}; exec sleep 300")
    process = subprocess.Popen(
        with_earlier.command("--mpi", mpi_folder(), "--gpu", "none", "--source", archive),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environ(build_environ(tmp_path, CXX=cxx)),
    )
    try:
        limit = time.monotonic() + 100
        while not reached.exists() and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.1)
        assert reached.exists(), process.communicate()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 1
    assert said.strip() == "hvdkit horovod build: error: interrupted; nothing was installed. Run it again when you like"
    unchanged(with_earlier, tmp_path)
    assert not runs(int(reached.read_text())), "the compiler outlived the build"
