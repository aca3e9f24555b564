"""With dropout a step is the same step too, however its rows lie in memory: each document loses the same inputs."""

from collections.abc import Callable, Sequence
from math import inf
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetune_api.spec.method import Method, MethodType
from finetune_trainer.handover.prepared import Example
from finetune_trainer.model.batches import micro_batches
from finetune_trainer.model.parameters.loading import load_model
from finetune_trainer.model.parameters.trainable import attach_lora, trainable_parameters, use_gradient_checkpointing
from finetune_trainer.training.loop import accumulate_gradients
from tests.integration.finetune_trainer.proofs.runs import in_fp32
from tests.integration.finetune_trainer.proofs.test_packing import CPU, EVEN, UNEVEN, distance
from tests.unit.finetune_trainer.conftest import save_model
from tests.unit.finetune_trainer.model_families import gpt2, save_family
from tests.unit.finetune_trainer.small_runs import fresh_accelerator, tiny_llama

Gradient = Callable[..., Tensor]


def lora(folder: Path, dropout: float, **settings: Any) -> nn.Module:
    """On every linear layer of a Llama."""
    method = Method.model_validate({"lora": {"dropout": dropout, **settings}})
    return attach_lora(tiny_llama(), method, seed=0).double()


def dora(folder: Path, dropout: float) -> nn.Module:
    """Whose base is given the dropped inputs too."""
    return lora(folder, dropout, useDora=True)


def head(folder: Path, dropout: float) -> nn.Module:
    """With the output head, which is given the label positions only, and modules trained whole."""
    return lora(folder, dropout, targetModules=["q_proj", "lm_head"], modulesToSave=["input_layernorm"])


def conv1d(folder: Path, dropout: float) -> nn.Module:
    """On GPT-2, which asks for dropout of its own as well."""
    base = load_model(save_family(gpt2, folder), MethodType.LORA, CPU).double()
    return attach_lora(base, Method.model_validate({"lora": {"dropout": dropout}}), seed=0).double()


def qlora(folder: Path, dropout: float) -> nn.Module:
    """On 4-bit layers, which compute in fp32 at best."""
    save_model(folder)
    base = in_fp32(load_model(folder, MethodType.QLORA, CPU))
    return attach_lora(base, Method.model_validate({"type": "QLoRA", "lora": {"dropout": dropout}}), seed=0)


@pytest.fixture(params=[lora, dora, head, conv1d, qlora], ids=lambda build: build.__name__)
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Gradient, float]:
    """A step's gradient with each kind of adapted layer, and how close two of them have to be."""
    build, tolerance = request.param, 1e-5 if request.param is qlora else 1e-10
    models: dict[float, nn.Module] = {}

    def gradient(
        rows: Sequence[Example], tokens: int, dropout: float, seed: int = 0, step: int = 0, checkpointing: bool = False
    ) -> Tensor:
        model = models.setdefault(dropout, build(tmp_path, dropout)).train()
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # they start at 0, where the gradient of A is 0 whatever happens
                nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
        use_gradient_checkpointing(model, checkpointing)
        model.zero_grad()
        torch.rand(3)  # something else draws too
        accumulate_gradients(model, rows, tokens, fresh_accelerator(), seed, step)
        return torch.cat([p.grad.flatten() for p in trainable_parameters(model)])  # type: ignore[union-attr]

    return gradient, tolerance


def test_16_rows_at_once_4_by_4_and_1_by_1_give_one_gradient(kind: tuple[Gradient, float]) -> None:
    gradient, tolerance = kind
    assert [len(micro_batches(EVEN, tokens, inf, CPU)) for tokens in (256, 64, 16)] == [1, 4, 16]
    at_once = gradient(EVEN, 256, 0.1)
    for tokens in (64, 16):
        assert distance(gradient(EVEN, tokens, 0.1), at_once) < tolerance
    assert distance(gradient(EVEN, 256, 0.0), at_once) > 0.02, "and something was dropped"


def test_packed_rows_give_the_gradient_of_rows_alone(kind: tuple[Gradient, float]) -> None:
    gradient, tolerance = kind
    alone = gradient(UNEVEN, 1, 0.5)
    for tokens in (100, 10_000):
        assert distance(gradient(UNEVEN, tokens, 0.5), alone) < tolerance


def test_recomputed_activations_have_the_same_dropout_mask(kind: tuple[Gradient, float]) -> None:
    gradient, tolerance = kind
    kept = gradient(UNEVEN, 100, 0.3)
    assert distance(gradient(UNEVEN, 100, 0.3, checkpointing=True), kept) < tolerance


def test_another_seed_and_another_step_drop_other_inputs(kind: tuple[Gradient, float]) -> None:
    gradient, _ = kind
    first = gradient(EVEN, 256, 0.1, seed=3, step=5)
    assert torch.equal(gradient(EVEN, 256, 0.1, seed=3, step=5), first)
    for seed, step in ((4, 5), (3, 6), (5, 3)):
        assert distance(gradient(EVEN, 256, 0.1, seed, step), first) > 0.02
