"""The random numbers equal those of the published Philox generator and those of PyTorch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.model.layers import philox

WORDS = st.integers(0, 2**64 - 1)


def test_the_generator_is_the_published_one() -> None:
    # The known answer of Philox4x32-10 for zeros, from the authors' Random123.
    low, high = (word % 2**64 for word in philox.fold_in(philox.key(0), 0).view(torch.int64).tolist())
    assert [low % 2**32, low >> 32, high % 2**32, high >> 32] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@given(seed=WORDS, number=st.integers(0, 2**62), rows=st.integers(1, 9), columns=st.integers(1, 41))
def test_every_number_equals_pytorchs(seed: int, number: int, rows: int, columns: int) -> None:
    keyed = pytest.importorskip("torch.func._random", reason="this PyTorch draws none by key")
    ours, theirs = philox.key(seed), keyed.key(seed)
    assert torch.equal(ours, theirs)
    ours, theirs = philox.fold_in(ours, number), keyed.fold_in(theirs, number)
    assert torch.equal(ours, theirs)
    ours, theirs = philox.split(ours, rows), keyed.split(theirs, rows)
    assert torch.equal(ours, theirs)
    ours, theirs = philox.fold_in(ours[:, None], 3), keyed.fold_in(theirs[:, None], 3)
    assert torch.equal(philox.uniform(ours, rows, columns), keyed.uniform(theirs, rows, columns))


def test_the_numbers_fill_the_range_evenly() -> None:
    drawn = philox.uniform(philox.split(philox.key(5), 64)[:, None], 64, 1000)
    assert 0 <= drawn.min() < 1e-3
    assert 1 - 1e-3 < drawn.max() < 1
    assert torch.histc(drawn, 16, 0, 1).std() < 5 * (64_000 / 16) ** 0.5
