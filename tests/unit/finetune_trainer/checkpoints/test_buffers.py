"""The copy of the training's state."""

import torch

from finetune_trainer.checkpoints.buffers import Buffers, bytes_of


def test_copies_keep_values_shapes_and_formats_while_the_originals_change() -> None:
    tensors = {
        "a": torch.arange(3.0),
        "b": torch.ones(2, 5, dtype=torch.bfloat16),
        "step": torch.tensor(7.0),
        "u": torch.arange(5, dtype=torch.uint8),
    }
    expected = {name: tensor.clone() for name, tensor in tensors.items()}
    buffers = Buffers()
    copies = buffers.copy(tensors)
    for tensor in tensors.values():
        tensor.zero_()
    for name, copy in copies.items():
        assert copy.dtype == expected[name].dtype
        assert copy.shape == expected[name].shape
        assert torch.equal(copy, expected[name])


def test_memory_is_allocated_once() -> None:
    tensors, buffers = {"a": torch.ones(100)}, Buffers()
    first = buffers.copy(tensors)["a"].data_ptr()
    assert buffers.copy(tensors)["a"].data_ptr() == first
    buffers.release()
    assert not buffers.allocated


def test_the_size_is_that_of_the_tensors() -> None:
    assert bytes_of({"a": torch.ones(3, dtype=torch.bfloat16), "b": torch.tensor(1.0)}) == 10
