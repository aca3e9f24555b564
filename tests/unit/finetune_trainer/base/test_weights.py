"""Rows of a matrix in a .safetensors file, read without the rest of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from finetune_api.bundle import Bundle
from finetune_trainer.base.weights import Tensor, is_quantized, read_header, read_rows
from finetune_trainer.storage.job_storage import JobStorage, open_storage
from tests.unit.finetune_trainer.conftest import S3, MakeBundle

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(scope="module")
def matrix() -> torch.Tensor:
    return torch.randn(400, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, matrix: torch.Tensor) -> dict[torch.dtype, Path]:
    folder, found = tmp_path_factory.mktemp("weights"), {}
    for dtype in DTYPES:
        found[dtype] = folder / f"{dtype}.safetensors"
        save_file({"a": torch.ones(3), "matrix": matrix.to(dtype), "z": torch.zeros(2)}, found[dtype])
    return found


def storage_of_files() -> JobStorage:
    spec = {"model": {"uri": "/m"}, "dataset": {"train": [{"uri": "/d"}]}, "output": {"uri": "/o"}}
    return open_storage(Bundle.model_validate({"spec": spec}))


@given(rows=st.lists(st.integers(0, 399), min_size=1, max_size=30), dtype=st.sampled_from(DTYPES))
def test_rows_are_those_that_were_saved(
    rows: list[int], dtype: torch.dtype, files: dict[torch.dtype, Path], matrix: torch.Tensor
) -> None:
    storage, path = storage_of_files(), files[dtype]
    tensor = read_header(storage, str(path), path.stat().st_size)["matrix"]
    assert np.array_equal(read_rows(storage, tensor, rows), matrix[rows].to(dtype).float().numpy())


def test_rows_are_read_from_s3_without_the_rest(
    s3: S3, make_bundle: MakeBundle, files: dict[torch.dtype, Path]
) -> None:
    bucket, path = s3.bucket("rows-of-weights"), files[torch.bfloat16]
    s3.client().upload_file(str(path), bucket, "model.safetensors")
    storages = [{"buckets": [bucket], "endpoint": s3.endpoint, "credentialsSecretName": "owner"}]
    storage = open_storage(make_bundle(storages=storages), s3.secrets_dir)
    uri = f"s3://{bucket}/model.safetensors"
    local = read_header(storage_of_files(), str(path), path.stat().st_size)["matrix"]
    found = read_header(storage, uri, path.stat().st_size)["matrix"]
    read: list[int | None] = []
    whole = storage.read_bytes

    def counted(uri: str, start: int = 0, length: int | None = None) -> bytes:
        read.append(length)
        return whole(uri, start, length)

    storage.read_bytes = counted  # type: ignore[method-assign]
    rows = read_rows(storage, found, [399, 0, 1, 7])
    assert np.array_equal(rows, read_rows(storage_of_files(), local, [399, 0, 1, 7]))
    assert read == [8 * 6 * 2, 6 * 2], "two stretches, not the 394 rows between them"


@pytest.mark.parametrize(
    ("dtype", "shape", "quantized"),
    [("BF16", (4, 4), False), ("F8_E4M3", (4, 4), True), ("U8", (8, 1), True), ("I32", (4, 4), True)],
)
def test_a_weight_that_is_no_float_is_quantized(dtype: str, shape: tuple[int, ...], quantized: bool) -> None:
    assert is_quantized(Tensor("", 0, dtype, shape)) is quantized
