"""Every script and every command that the README shows, as printed, with what it prints.

Commands run in a copy of the repository, one after another, as a reader would type them. Three dots in the output
stand for anything; a line of three dots for any lines. Numbers of the main job are a machine's own.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.conftest import hosts as hosts
from tests.jobs import ROOT, run_program

pytestmark = [pytest.mark.launch, pytest.mark.timeout(900)]

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MACHINES_OWN = "make train"
NOT_HERE = {
    "make test": "is what runs this",
    "sbatch mpi_configs/slurm.sbatch --steps 1000": "needs a Slurm cluster; tests/test_mpi_configs.py checks the file",
}
ENVIRONMENT = {
    # Beside the environment under test rather than into it, where an editable hvdkit is.
    'pip install ".[build]"': {"PIP_TARGET": "installed", "PIP_NO_DEPS": "1"},
}


@dataclass(frozen=True)
class Command:
    words: str
    output: str

    @property
    def needs_hosts(self) -> bool:
        return "node1" in self.words


def blocks(language: str) -> list[str]:
    return [body for kind, body in BLOCK.findall((ROOT / "README.md").read_text()) if kind == language]


def commands() -> list[Command]:
    found = []
    for body in blocks("console"):
        for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
            words, _, output = part.partition("\n")
            found.append(Command(words, output))
    return found


def pattern(shown: str) -> re.Pattern[str]:
    lines = [
        r"(?:.*\n)*?" if line == "..." else re.escape(line).replace(r"\.\.\.", ".*") + r"\n"
        for line in shown.splitlines()
    ]
    return re.compile("".join(lines))


def without_numbers(text: str) -> str:
    text = re.sub(r"\d+ min \d+ s", "0 s", re.sub(r"\b[kMG]B\b", "bytes", text))
    return re.sub(r"\d[\d,.]*", "N", text)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The repository as git knows it, and the README's scripts."""
    folder = tmp_path_factory.mktemp("readme")
    names = subprocess.run(
        ["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split("\0")
    if names == [""]:
        pytest.skip("not a git checkout")
    for name in filter(None, names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    for path in [folder / "setup.py", *(folder / "hvdkit/horovod_build").glob("*.py")]:
        os.utime(path, (0, 0))  # so that make does not install the copy into the environment under test
    for body in [*blocks("python"), *blocks("yaml")]:
        name = re.match(r"# (\w+\.(py|yaml))\n", body)
        assert name, f"a script without a name: {body[:60]}"
        (folder / name[1]).write_text(body)
    yield folder


@pytest.mark.parametrize("command", commands(), ids=lambda command: command.words)
def test_command(command: Command, copy: Path, request: pytest.FixtureRequest) -> None:
    if command.words in NOT_HERE:
        pytest.skip(NOT_HERE[command.words])
    words = ["bash", "-c", command.words]
    if command.needs_hosts:
        first = request.getfixturevalue("hosts")[0]
        words = first.enter(
            "env", f"--chdir={copy}", f"PATH={Path(sys.executable).parent}:{os.environ['PATH']}", *words
        )
    environment = {
        "VENV": sys.prefix,  # of make
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        **ENVIRONMENT.get(command.words, {}),
    }
    result = run_program(words, env=environment, cwd=copy, timeout_s=800)
    said = f"--- stdout\n{result.stdout}\n--- stderr\n{result.stderr}"
    assert result.returncode == 0, said
    if command.output:
        compared = without_numbers if command.words == MACHINES_OWN else str
        shown = pattern(compared(command.output))
        # print() writes text and line end apart under horovodrun, and Open MPI may tag both.
        printed = re.sub(r"(?<!^)\[1,\d+\]<stdout>:", "", result.stdout, flags=re.MULTILINE)
        assert shown.fullmatch(compared(printed)), f"{shown.pattern}\n{said}"


def test_the_main_job_learns(copy: Path) -> None:
    """After `make train`: validation loss from about 5.5 to below 2.3 nats per byte, as the README says."""
    from tests.train.runs import losses

    runs = [path for path in (copy / "runs").glob("2*") if len(losses(path, "validation_loss")) > 2]
    assert runs, "run the test of `make train` too"
    found = losses(runs[0], "validation_loss")
    assert found[0] > 5 and found[max(found)] < 2.3


@pytest.mark.parametrize("body", blocks("sh"))
def test_commands_that_need_a_cluster_are_shell(body: str) -> None:
    subprocess.run(["bash", "-n"], input=body, text=True, check=True)
    for word in body.split():
        assert not word.startswith("mpi_configs/") or (ROOT / word).is_file(), word


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert "://" in target or (ROOT / target).exists(), target


def test_the_table_names_every_public_difference() -> None:
    """Every option of DistributedOptimizer that Horovod lacks is explained."""
    text = (ROOT / "README.md").read_text()
    for word in ("weight=", "weigh(", "no_sync", "broadcast_optimizer_state"):
        assert word in text, word
