"""Tensors as a .safetensors file, compared with the library's own reader."""

import gc
import weakref
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load

from finetune_trainer.model.parameters import tensor_file
from finetune_trainer.model.parameters.tensor_file import DTYPES, open_tensors, write_tensors

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


@given(st.dictionaries(st.sampled_from("abcd"), tensors, max_size=4), st.sampled_from([torch.float32, torch.bfloat16]))
def test_a_written_file_has_the_converted_tensors(named: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    with TemporaryDirectory() as folder:
        write_tensors(Path(folder) / "file", named, dtype)
        found = load((Path(folder) / "file").read_bytes())
    assert found.keys() == named.keys()
    for name, tensor in named.items():
        assert torch.equal(found[name], tensor.to(dtype))


def test_writing_gathers_a_tensor_when_the_one_before_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered = list[weakref.ref[torch.Tensor]]()

    def whole(tensor: torch.Tensor) -> torch.Tensor:
        gc.collect()
        # The file may still have a buffer of the last one.
        assert sum(earlier() is not None for earlier in gathered) <= 1
        full = tensor.clone()
        gathered.append(weakref.ref(full))
        return full

    monkeypatch.setattr(tensor_file, "whole", whole)
    write_tensors(tmp_path / "file", {str(number): torch.ones(1000) for number in range(8)}, torch.float32)
    assert len(gathered) == 8
