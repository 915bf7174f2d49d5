"""The runs that nothing strikes, one for each way in which cases run, made when first asked for and kept."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.faults import jobs
from tests.faults.modes import plain, training
from tests.faults.result import Result, read_result, restore, store

_LIMIT_S = 400.0


@dataclass(frozen=True)
class References:
    """Kept in `folder`."""

    folder: Path

    @property
    def text(self) -> Path:
        """What all runs train on."""
        return self.folder / "text"

    @property
    def environment(self) -> dict[str, str]:
        """What all runs have in their environment: a cache of tokens of their own."""
        return {"XDG_CACHE_HOME": str(self.folder / "cache")}

    def get(self, mode: str, launcher: str, ranks: int) -> Result:
        """The result of the run that nothing struck. Raises RuntimeError if that fails."""
        backend = "gloo" if launcher == "gloo" else "mpi"
        name = f"{mode.replace(' ', '')}-{ranks}-{backend}"
        kept = self.folder / f"{name}.json"
        if not kept.exists():
            store(self._make(name, mode, launcher, ranks), kept)
        return restore(kept)

    def _make(self, name: str, mode: str, launcher: str, ranks: int) -> Result:
        run, temporary = self.folder / name / "run", self.folder / name / "tmp"
        shutil.rmtree(self.folder / name, ignore_errors=True)
        temporary.mkdir(parents=True)
        words = ["-m", "hvdkit.train", *training(mode, launcher, self.text), "--out", str(run)]
        ended = jobs.run(
            plain(launcher, ranks, words), f"reference-{name}", temporary, self.folder / name / "output.txt",
            limit_s=_LIMIT_S, env=self.environment,
        )  # fmt: skip
        if ended.status != 0:
            raise RuntimeError(f"the run that nothing strikes ended with {ended.status}:\n{ended.output}")
        result = read_result(run)
        shutil.rmtree(self.folder / name)
        return result
