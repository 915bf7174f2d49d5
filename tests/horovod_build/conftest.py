"""Horovod's source release, the session's Horovod as a wheel, and environments to install it in."""

from pathlib import Path

import pytest

from hvdkit.errors import BuildError
from hvdkit.horovod_build.cache import cache_folder
from hvdkit.horovod_build.source import ARCHIVE, fetch_source
from tests.horovod_build.environments import Environment, make_environment, pack_installed_horovod


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Horovod's source release: the one that the session's Horovod was built from, else fetched anew."""
    kept = cache_folder() / "sources" / ARCHIVE
    if kept.exists():
        return kept
    try:
        return fetch_source(tmp_path_factory.mktemp("sources"))
    except BuildError as error:
        pytest.skip(f"no source release here: {error}")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The session's Horovod as a wheel."""
    return pack_installed_horovod(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment without Horovod, in which nothing may be installed."""
    return make_environment(tmp_path_factory.mktemp("bare") / "venv")


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    """A fresh environment without Horovod."""
    return make_environment(tmp_path / "venv")
