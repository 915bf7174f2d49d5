"""What must not be written down: values of the environment, and Horovod's key. Canaries stand for them."""

from pathlib import Path

import pytest

from tests.jobs import BIN, ROOT, clean_environ, run_program, run_ranks
from tests.security.watched import RIGHT, results, running
from tests.train.runs import as_words, configure, write_text

pytestmark = pytest.mark.launch

CANARY = "canary-7f3a9c"
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": CANARY,
    "HF_TOKEN": CANARY,
    "HOROVOD_MY_PASSWORD": CANARY,  # `hvdkit run` exports variables of such names
    "WANDB_API_KEY": CANARY,
    "_HOROVOD_SECRET_KEY": f"b'{CANARY}'",
    "HOROVOD_SECRET_KEY": CANARY,
}


def files_with_a_canary(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]


@pytest.mark.parametrize("launcher", ["mpirun", "horovodrun-gloo"])
@pytest.mark.parametrize("fails", [False, True], ids=["well", "failing"])
def test_a_training_run_writes_no_secret(launcher: str, fails: bool, tmp_path: Path) -> None:
    words = as_words(configure(write_text(tmp_path / "data"), tmp_path / "run", steps=4, checkpoint_every=2))
    if fails:
        words += ["--init-from", str(tmp_path / "missing")]
    result = run_ranks(2, "-m", "hvdkit.train", *words, launcher=launcher, env=SECRETS, timeout_s=200)
    assert (result.returncode != 0) == fails, result.stderr
    assert CANARY not in result.stdout + result.stderr
    assert fails or (tmp_path / "run" / "config.yaml").is_file()
    assert files_with_a_canary(tmp_path) == []


@pytest.mark.parametrize(
    "words",
    [("doctor",), ("doctor", "--json"), ("run", "-np", "2", "--dry-run", "--", "python", "x.py")],
    ids=" ".join,
)
def test_commands_print_no_secret(words: tuple[str, ...]) -> None:
    result = run_program([BIN / "hvdkit", *words], env=SECRETS, timeout_s=200)
    assert result.stdout
    assert CANARY not in result.stdout + result.stderr


def test_mpirun_gets_names_alone(tmp_path: Path) -> None:
    """`hvdkit run` on several hosts names the variables for mpirun to export, and no values."""
    words = ["run", "-np", "2", "-H", "node1:1,node2:1", "--launcher", "mpirun", "--dry-run", "--", "python"]
    line = run_program([BIN / "hvdkit", *words], env=SECRETS).stdout
    assert "-x HOROVOD_MY_PASSWORD " in line and CANARY not in line


@pytest.mark.parametrize("launcher", ["mpirun", "horovodrun-mpi", "horovodrun-gloo"])
def test_command_lines_of_a_running_job(launcher: str, tmp_path: Path) -> None:
    """Every user of a machine sees them. horovodrun over Gloo puts the environment there (SECURITY.md): if this fails
    for it, Horovod was mended, and SECURITY.md can drop that."""
    with running(launcher, tmp_path, SECRETS) as job:
        shown = [" ".join(process.cmdline()) for process in job.processes()]
        status, printed = job.end()
    assert status == 0 and results(printed) == RIGHT[launcher], printed
    assert any(CANARY in line for line in shown) == (launcher == "horovodrun-gloo")
    assert CANARY not in printed


def test_an_error_of_a_launcher_shows_no_secret() -> None:
    words = ["run", "-np", "2", "--gloo", "--", "python", "-c", "raise SystemExit('no')"]
    result = run_program([BIN / "hvdkit", *words], env=SECRETS, timeout_s=100)
    assert result.returncode != 0
    assert CANARY not in result.stdout + result.stderr


def test_the_environment_of_these_tests_reaches_the_job() -> None:
    """Else they would find nothing for a bad reason."""
    assert clean_environ(SECRETS)["HF_TOKEN"] == CANARY
    said = run_program([BIN / "python", "-c", "import os; print(os.environ['HF_TOKEN'])"], env=SECRETS, cwd=ROOT)
    assert said.stdout.strip() == CANARY
