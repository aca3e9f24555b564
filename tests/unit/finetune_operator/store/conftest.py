"""A store, and the keys that it has reported."""

import pytest

from finetune_operator.observed.world import Key
from finetune_operator.store.store import Store


@pytest.fixture
def told() -> list[Key]:
    """The keys that the store has reported."""
    return []


@pytest.fixture
def store(told: list[Key]) -> Store:
    return Store(told.append)
