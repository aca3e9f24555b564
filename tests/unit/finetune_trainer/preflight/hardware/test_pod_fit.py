"""Jobs whose pods have too little memory on their nodes, or too little disk space."""

from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune_api.bundle import Bundle, JobIdentity
from finetune_api.quantity import bytes_of
from finetune_api.reasons import FailureReason
from finetune_api.spec.gpu_type import GpuType
from finetune_api.spec.training import Publish
from finetune_api.status.preflight import Estimate
from finetune_trainer.base.base_model import BaseModel, inspect_model
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.preflight.hardware.pod_fit import require_memory, require_scratch, without_checkpoints
from finetune_trainer.preflight.recipe import prepare
from finetune_trainer.sources.findings import Findings
from finetune_trainer.storage.job_storage import open_storage
from tests.unit.finetune_trainer.conftest import MakeBundle, save_model, save_tokenizer
from tests.unit.finetune_trainer.model_families import mixtral, save_family
from tests.unit.finetune_trainer.preflight.hardware.test_prediction import FULL, LORA, SHAPE, resolved, spec

GIB = 2**30
WHOLE, SHARDED = GpuType(name="large"), GpuType(name="small")
P = SHAPE.stored_parameters
JOB = JobIdentity(namespace="tenant", name="job", uid="1")


def bundle(gpus: int = 2, memory: str = "8Gi", nodes: int = 1, types: Any = (SHARDED,), **parts: Any) -> Bundle:
    compute = {
        "gpusPerNode": gpus,
        "memory": memory,
        "nodes": nodes,
        "gpuType": types[0].name if len(types) == 1 else None,
    }
    return Bundle(job=JOB, spec=spec(compute=compute), gpu_types=list(types), **parts)


def estimates(*sharded: bool) -> list[Estimate]:
    names = {True: "small", False: "large"}
    return [Estimate(gpu_type=names[each], memory="9Gi", fits=True, sharded=each or None) for each in sharded]


@pytest.fixture
def model(tiny_model_dir: Path, make_bundle: MakeBundle, tmp_path: Path) -> BaseModel:
    """A model with 8 billion parameters in bf16."""
    found = inspect_model(open_storage(make_bundle()), str(tiny_model_dir), tmp_path / "inspected")
    return replace(found, shape=SHAPE, converted=0, files={"model.safetensors": 2 * P})


def in_half(model: BaseModel) -> BaseModel:
    """The model in fp16, which every rank of a sharded model converts."""
    return replace(model, converted=P)


@pytest.mark.parametrize(("gpus", "memory", "nodes"), [(2, "8Gi", 1), (4, "8Gi", 1), (2, "8Gi", 3)])
def test_a_model_that_every_rank_converts_is_refused_with_a_memory_that_is_enough(
    model: BaseModel, gpus: int, memory: str, nodes: int
) -> None:
    with pytest.raises(TrainerFailure) as caught:
        require_memory(bundle(gpus, memory, nodes), estimates(True), resolved(LORA), in_half(model))
    assert caught.value.reason is FailureReason.DOES_NOT_FIT
    assert "spec.compute.memory is 8Gi for each of its GPUs" in caught.value.finding
    remedy = caught.value.remedy or ""
    assert remedy.startswith("Set spec.compute.memory to ")
    enough = remedy.split()[3]
    assert bytes_of(enough) > 2 * P
    assert require_memory(bundle(gpus, enough, nodes), estimates(True), resolved(LORA), in_half(model))


@pytest.mark.parametrize(("method", "sharded"), [(FULL, True), (FULL, False), (LORA, True), (LORA, False)])
def test_a_model_that_is_mapped_into_memory_needs_no_more_than_the_default(
    model: BaseModel, method: Any, sharded: bool
) -> None:
    found = estimates(sharded)
    assert require_memory(bundle(types=(SHARDED, WHOLE)), found, resolved(method), model) == found


def test_a_gpu_type_that_needs_more_memory_than_the_pods_have_is_not_used(model: BaseModel) -> None:
    small, large = require_memory(
        bundle(types=(SHARDED, WHOLE)), estimates(True, False), resolved(LORA), in_half(model)
    )
    assert (small.fits, large.fits) == (False, True)
    assert "With spec.compute.memory " in (small.alternative or "")


def test_a_job_that_may_train_on_the_cpu_is_not_refused(model: BaseModel) -> None:
    job = bundle(memory="150Mi")
    with pytest.raises(TrainerFailure):
        require_memory(job, estimates(True), resolved(LORA), model)
    require_memory(job.model_copy(update={"allow_cpu": True}), estimates(True), resolved(LORA), model)


def test_a_run_without_memory_for_checkpoints_is_advised_and_not_refused(model: BaseModel) -> None:
    (advice,) = without_checkpoints(bundle(), estimates(True), resolved(FULL), model)
    assert advice.reason == "NoMemoryForCheckpoints"
    enough = advice.message.split("Set spec.compute.memory to ")[1].split()[0]
    assert without_checkpoints(bundle(memory=enough), estimates(True), resolved(FULL), model) == []
    for found, method in ((estimates(False), FULL), (estimates(True), LORA)):
        assert without_checkpoints(bundle(types=(SHARDED, WHOLE)), found, resolved(method), model) == []


@pytest.mark.parametrize(
    ("limit", "parameters", "best", "fits"),
    [
        (None, 8 * 10**9, True, True),
        (None, 14 * 10**9, True, False),
        (None, 15 * 10**9, False, True),
        (None, 16 * 10**9, False, False),
        ("400Gi", 16 * 10**9, False, True),
        ("100Gi", 8 * 10**9, False, False),
    ],
)
def test_a_checkpoint_that_could_not_be_read_back_is_known_before_the_training(
    model: BaseModel, limit: str | None, parameters: int, best: bool, fits: bool
) -> None:
    large = replace(model, shape=replace(SHAPE, parameters=parameters), files={"model.safetensors": 2 * parameters})
    wish = resolved(FULL).model_copy(update={"publish": Publish.BEST if best else Publish.LAST})
    job = bundle(scratch_size_limit=limit)
    if fits:
        require_scratch(job, estimates(True), wish, large, GIB)
        return
    with pytest.raises(TrainerFailure) as caught:
        require_scratch(job, estimates(True), wish, large, GIB)
    assert caught.value.reason is FailureReason.DOES_NOT_FIT
    assert "for a checkpoint from which an attempt goes on" in caught.value.finding
    assert f"Its scratch volume has {limit or '200Gi'}, by spec.pods.scratchSizeLimit" in caught.value.finding
    enough = (caught.value.remedy or "").split("profile to ")[1].split()[0]
    require_scratch(bundle(scratch_size_limit=enough), estimates(True), wish, large, GIB)
    require_scratch(job.model_copy(update={"job": None}), estimates(True), wish, large, GIB)


def store_in(dtype: torch.dtype, folder: Path) -> None:
    """Converts the weights in the folder."""
    for file in folder.glob("*.safetensors"):
        save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file, {"format": "pt"})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_weights_that_are_not_in_bf16_are_converted(make_bundle: MakeBundle, tmp_path: Path, dtype: Any) -> None:
    save_tokenizer(tmp_path / "model")
    save_model(tmp_path / "model")
    store_in(dtype, tmp_path / "model")
    found = inspect_model(open_storage(make_bundle()), str(tmp_path / "model"), tmp_path / "inspected")
    assert found.converted == (0 if dtype is torch.bfloat16 else found.shape.stored_parameters)


def test_experts_that_are_stacked_are_converted_too(make_bundle: MakeBundle, tmp_path: Path) -> None:
    folder = save_family(mixtral, tmp_path / "model")
    save_tokenizer(folder)
    store_in(torch.bfloat16, folder)
    found = inspect_model(open_storage(make_bundle()), str(folder), tmp_path / "inspected")
    experts = sum(prod(size) for size in found.sizes.values() if len(size) == 3)
    assert 0 < found.converted == experts < found.shape.stored_parameters


@pytest.mark.parametrize(
    ("compute", "limit", "remedy"),
    [
        ({"memory": "256Mi"}, None, "Set spec.compute.memory to 3Gi or more."),
        ({}, "1Ki", "Set spec.pods.scratchSizeLimit of the profile to 1Gi or more"),
    ],
)
def test_preflight_refuses_what_the_pods_cannot_hold_before_it_writes_anything(
    make_bundle: MakeBundle, tmp_path: Path, compute: Any, limit: str | None, remedy: str
) -> None:
    gpus = [{"name": "h100", "memory": "80Gi"}]
    job = make_bundle(compute=compute, gpuTypes=gpus, allowCPU=False).model_copy(
        update={"job": JOB, "scratch_size_limit": limit}
    )
    with pytest.raises(TrainerFailure, match=remedy) as caught:
        prepare(job, open_storage(job), Findings(), tmp_path / "work")
    assert caught.value.reason is FailureReason.DOES_NOT_FIT
