"""The copy of the training's state, and the memory for it."""

from pathlib import Path

import torch

from finetune_trainer.checkpoints.buffers import Buffers, bytes_of, free_memory, given_back

GB = 2**30


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


def test_memory_that_the_process_gave_back_is_needed_again(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t    5000 kB\nVmRSS:\t    2000 kB\n")
    assert given_back(tmp_path / "status") == 3000 * 1024


def test_free_memory_is_bounded_by_the_node_and_by_the_pod(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal:       999 kB\nMemAvailable:   {8 * GB // 1024} kB\n")
    assert free_memory(tmp_path / "none", meminfo) == 8 * GB
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(tmp_path, meminfo) == 8 * GB
    (tmp_path / "memory.max").write_text(f"{6 * GB}\n")
    (tmp_path / "memory.current").write_text(f"{5 * GB}\n")
    (tmp_path / "memory.stat").write_text(f"anon 1\ninactive_file {2 * GB}\nactive_file {1 * GB}\n")
    assert free_memory(tmp_path, meminfo) == 4 * GB, "the kernel gives cached files back"
