"""`hvdkit doctor` on this machine, and on machines that lack something."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import hvdkit
from tests.jobs import BIN, run_program, succeed

pytestmark = pytest.mark.launch

PLAIN_SHELL = "/usr/local/bin:/usr/bin:/bin"


def row(result: subprocess.CompletedProcess[str], item: str) -> tuple[str, str]:
    """State and finding of one row of the table."""
    found = re.search(rf"^{re.escape(item)} +(ok|warning|problem) +(.*)$", result.stdout, re.MULTILINE)
    assert found, f"no row {item!r}\n{result.stdout}\n{result.stderr}"
    return found[1], found[2]


def test_this_machine_can_train() -> None:
    result = succeed(run_program([BIN / "hvdkit", "doctor"], env={"PATH": PLAIN_SHELL}, timeout_s=240))
    for item in ("Python", "torch", "Horovod", "built with", "Horovod links", "mpi4py loads", "mpirun", "horovodrun"):
        assert row(result, item)[0] == "ok"
    assert sys.executable in row(result, "Python")[1]
    assert row(result, "start 2 ranks") == ("ok", "works: 2 ranks on 1 host over mpi")
    assert result.stdout.endswith("\nTraining can work here.\n")


def test_without_horovod(tmp_path: Path) -> None:
    """An environment that has all packages but Horovod."""
    environment = environment_without_horovod(tmp_path)
    result = run_program([environment / "bin" / "python", "-m", "hvdkit.launch.doctor"], env={"PATH": PLAIN_SHELL})
    assert result.returncode == 1
    assert row(result, "Horovod") == ("problem", "not installed")
    assert re.search(r"^Horovod .*\n +-> build it: `hvdkit horovod build`$", result.stdout, re.MULTILINE)
    assert row(result, "torch")[0] == "ok"
    assert row(result, "build tools")[0] in ("ok", "problem")
    assert "start 2 ranks" not in result.stdout and "Training cannot work here" in result.stdout


def test_mpirun_of_another_mpi_first_on_path(mpich_bin: Path) -> None:
    """`hvdkit run` is not led astray by it; who types mpirun is."""
    path = f"{mpich_bin}:{PLAIN_SHELL}"
    result = succeed(run_program([BIN / "hvdkit", "doctor", "--no-start"], env={"PATH": path}))
    state, found = row(result, "mpirun on PATH")
    assert state == "warning" and f"{mpich_bin}/mpirun: it cannot start ranks of" in found
    assert re.search(r"^mpirun on PATH .*\n +-> start with `hvdkit run`, or put .* first on PATH$", result.stdout, re.M)
    assert row(result, "mpirun")[0] == "ok"


def test_json_for_machines() -> None:
    result = succeed(run_program([BIN / "hvdkit", "doctor", "--no-start", "--json", "-np", "1000"]))
    findings = {finding["item"]: finding for finding in json.loads(result.stdout)["findings"]}
    assert findings["torch"]["state"] == "ok" and findings["torch"]["same"]
    assert findings["cores"]["state"] == "warning" and "for 1000 ranks" in findings["cores"]["found"]
    wrong = run_program([BIN / "hvdkit", "doctor", "-H", "a:x"])
    assert wrong.returncode == 2 and "'a:x' is not of the form host or host:slots" in wrong.stderr


def environment_without_horovod(folder: Path) -> Path:
    """A virtual environment whose packages are links to this one's."""
    succeed(run_program([sys._base_executable, "-m", "venv", "--without-pip", folder]))  # type: ignore[attr-defined]
    packages = next(folder.glob("lib/python*/site-packages"))
    ours = next(Path(path) for path in sys.path if path.endswith("site-packages"))
    for entry in ours.iterdir():
        if not entry.name.startswith(("horovod", "__editable__")) and entry.suffix != ".pth":
            (packages / entry.name).symlink_to(entry)
    (packages / "hvdkit.pth").write_text(f"{Path(hvdkit.__file__).parents[1]}\n")
    for library in (Path(sys.prefix) / "lib").glob("*.so*"):  # the MPI wheel's, for mpi4py to find
        shutil.copy(library, folder / "lib" / library.name, follow_symlinks=False)
    return folder
