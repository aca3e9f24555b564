"""The whole cluster with two nodes and proxies, one for all tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.chaos import trial
from tests.chaos.scene import Scene
from tests.chaos.trial import Undisturbed
from tests.conftest import BUILD, leftovers


@pytest.fixture(scope="session")
def scene() -> Iterator[Scene]:
    with Scene(BUILD / "test-chaos") as scene:
        yield scene
    assert leftovers(scene.cluster) == []


@pytest.fixture(scope="session")
def basis(scene: Scene) -> Undisturbed:
    """What a job without a fault shows. One job in the first lane is enough: each fault is tried only once."""
    return trial.undisturbed(scene.lanes[:1])
