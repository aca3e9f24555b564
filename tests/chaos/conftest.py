"""The whole cluster with two nodes and proxies, one for all tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.chaos.scene import Scene
from tests.conftest import BUILD, leftovers


@pytest.fixture(scope="session")
def scene() -> Iterator[Scene]:
    with Scene(BUILD / "test-chaos") as scene:
        yield scene
    assert leftovers(scene.cluster) == []
