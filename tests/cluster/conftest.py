"""Two hosts on this machine, shared by all tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.cluster.hosts import Host, cluster, why_not


@pytest.fixture(scope="session")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Host]]:
    """node1 and node2."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with cluster(tmp_path_factory.mktemp("cluster"), ["node1", "node2"]) as found:
        yield found
