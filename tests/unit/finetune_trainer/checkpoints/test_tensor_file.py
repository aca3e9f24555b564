"""Tensors as a .safetensors file, compared with the library's own reader."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load

from finetune_trainer.checkpoints.tensor_file import DTYPES, open_tensors

shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
tensors = st.builds(
    lambda shape, dtype, seed: (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 100).to(dtype),
    shapes,
    st.sampled_from(list(DTYPES)),
    st.integers(0, 9),
)


@given(
    st.dictionaries(st.text(st.characters(codec="ascii", exclude_characters='"\\'), min_size=1), tensors, max_size=6)
)
def test_the_library_reads_the_same_tensors(named: dict[str, torch.Tensor]) -> None:
    named.pop("__metadata__", None)
    found = load(open_tensors(named).read())
    assert found.keys() == named.keys()
    for name, tensor in named.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name], tensor)


def test_parts_can_be_read_in_any_order() -> None:
    named = {
        "a": torch.arange(10.0),
        "empty": torch.zeros(0),
        "t": torch.arange(6).reshape(2, 3).T,
        "n": torch.ones(()),
    }
    with open_tensors(named) as file:
        whole = file.read()
        assert file.tell() == len(whole) == file.seek(0, 2)
        for start in range(0, len(whole), 7):
            file.seek(start)
            assert file.read(13) == whole[start : start + 13]
    assert torch.equal(load(whole)["t"], named["t"])
