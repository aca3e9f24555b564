"""Every family of models we promise: what it learns from, that it learns, and that others load what it has learned."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from finetune_api.spec.method import Method, MethodType
from finetune_api.spec.training import Training
from finetune_trainer.base.chosen_modules import MAMBAS, NO_ADAPTER, NO_FOUR_BIT
from finetune_trainer.base.composite import is_tuned
from finetune_trainer.model.batches import micro_batch
from finetune_trainer.model.isolation import sharing
from finetune_trainer.model.parameters.loading import load_model
from finetune_trainer.model.parameters.trainable import as_published, make_trainable, use_gradient_checkpointing
from finetune_trainer.model.row_losses import row_losses
from finetune_trainer.sizing.saved_modules import PEFT_PREFIX
from finetune_trainer.training.loop import Step, accumulate_gradients, training_steps
from tests.unit.finetune_trainer.model_families import ALONE, COMPOSITE, EXPERTS, FAMILIES, Family, save_family
from tests.unit.finetune_trainer.small_runs import VOCABULARY, examples, fresh_accelerator, resolved

CPU = torch.device("cpu")
ROWS = examples([24, 7, 40, 12, 33, 18])
PLAIN, FOUR_BIT = "peft.tuners.lora.layer", "peft.tuners.lora.bnb"
"""Where PEFT has its adapters of layers in bf16, and in 4 bits."""


@pytest.fixture(scope="module", params=[*FAMILIES, *EXPERTS, *COMPOSITE, *ALONE], ids=lambda family: family.__name__)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model of each family in turn. Read only."""
    family: Family = request.param
    return save_family(family, tmp_path_factory.mktemp("families") / family.__name__)


def names(families: Sequence[Family]) -> list[str]:
    """The folders of these families."""
    return [family.__name__ for family in families]


def loader(folder: Path) -> Any:
    """The class with which others load the family in this folder."""
    return AutoModelForImageTextToText if folder.name in names(COMPOSITE) else AutoModelForCausalLM


def train(model: PreTrainedModel, method: MethodType, steps: int) -> list[Step]:
    settings = resolved(method=method, total_steps=steps, micro_batch_tokens=64)
    return list(training_steps(model, ROWS, Training(global_batch_size=6), settings, fresh_accelerator("bf16")))


@torch.no_grad()
def test_packed_rows_have_the_logits_of_each_row_alone(folder: Path) -> None:
    model = load_model(folder, MethodType.LORA, CPU).to(torch.float64).eval()
    plain = {"attn_implementation": "eager", "experts_implementation": "eager"}
    reference = loader(folder).from_pretrained(folder, dtype=torch.bfloat16, **plain)
    reference.to(torch.float64).eval()
    assert bool(sharing(model).packed) == (folder.name not in [*names(ALONE), "gpt_oss", "qwen3_5_with_images"])
    expected = []
    for row in ROWS:
        batch = micro_batch([row], CPU)
        logits = reference(input_ids=batch.input_ids).logits[0, batch.label_positions]
        expected.append(F.cross_entropy(logits, batch.labels, reduction="sum").item())
    losses, _ = row_losses(model, ROWS, micro_batch_tokens=4096)
    # Eager attention takes its softmax in fp32, and so do states.
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_gradient_checkpointing_gives_the_same_gradients(folder: Path) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = load_model(folder, MethodType.FULL, CPU).to(torch.float64).requires_grad_(True).train()
        use_gradient_checkpointing(model, checkpointing)
        accumulate_gradients(model, ROWS, 64, fresh_accelerator())
        # Weights for images have no gradient.
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    for kept, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, kept, rtol=1e-10, atol=1e-12)


def test_every_expert_has_an_adapter_that_learns_and_the_router_has_none(folder: Path) -> None:
    if folder.name not in names(EXPERTS):
        pytest.skip("it has no experts")
    model = make_trainable(load_model(folder, MethodType.LORA, CPU), Method(), MethodType.LORA, seed=0).train()
    accumulate_gradients(model, ROWS, 64, fresh_accelerator("bf16"))
    second = {name: p.grad for name, p in model.named_parameters() if ".experts." in name and "lora_B" in name}
    assert len(second) == 2 * model.config.num_hidden_layers, "gate_up_proj and down_proj of each layer"
    for name, gradient in second.items():
        assert gradient is not None
        # PEFT holds the experts' matrices side by side: [outputs, rank x experts].
        learning = gradient.view(len(gradient), -1, 4).abs().sum(dim=(0, 1))
        assert (learning > 0).all(), name
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert all(".self_attn." in name or ".experts." in name for name in trained), "the router is frozen"


def test_every_linear_layer_that_can_has_an_adapter_that_learns(folder: Path) -> None:
    base = load_model(folder, MethodType.LORA, CPU)
    refused = NO_ADAPTER if base.config.model_type in MAMBAS else ()
    linear = {
        name
        for name, module in base.named_modules()
        if isinstance(module, torch.nn.Linear)
        and module is not base.get_output_embeddings()
        and not name.endswith(refused)
        and (folder.name not in names(COMPOSITE) or is_tuned(name))
    }
    model = make_trainable(base, Method(), MethodType.LORA, seed=0).train()
    accumulate_gradients(model, ROWS, 64, fresh_accelerator("bf16"))
    learning = {
        name.removeprefix(PEFT_PREFIX).removesuffix(".lora_B.default.weight")
        for name, parameter in model.named_parameters()
        if "lora_B" in name and parameter.grad is not None and parameter.grad.any()
    }
    assert learning >= linear
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if folder.name in names(COMPOSITE):
        assert [name for name in trained if not is_tuned(name.removeprefix(PEFT_PREFIX))] == []


@pytest.mark.thorough_for("[!l]*-QLoRA", "[!l]*-Full")  # of all but Llama
@pytest.mark.parametrize("method", [MethodType.LORA, MethodType.QLORA, MethodType.FULL])
def test_the_model_learns_and_its_saved_weights_give_the_same_logits_elsewhere(
    folder: Path, method: MethodType, tmp_path: Path
) -> None:
    base = load_model(folder, method, CPU)
    if method is MethodType.QLORA and (base.config.model_type in NO_FOUR_BIT or folder.name in names(EXPERTS)):
        pytest.skip("preflight refuses it")
    with torch.no_grad():  # it is measured first, which must not take its gradients
        assert np.isfinite(row_losses(base, ROWS, 64)[0]).all()
    model = make_trainable(base, Method(type=method), method, seed=0)
    adapted = {type(module).__module__ for module in model.modules() if hasattr(module, "lora_A")}
    assert (PLAIN in adapted, FOUR_BIT in adapted) == (method is MethodType.LORA, method is MethodType.QLORA)
    random_state = torch.get_rng_state()
    steps = train(model, method, steps=8)
    assert torch.equal(torch.get_rng_state(), random_state), "what is drawn in the order of packing changes with it"
    assert steps[-1].loss < 0.95 * steps[0].loss

    model = as_published(model).eval()
    model.save_pretrained(tmp_path, **({} if method is MethodType.FULL else {"save_embedding_layers": False}))
    if method is MethodType.FULL:
        loaded = loader(folder).from_pretrained(tmp_path, dtype=torch.bfloat16)
    else:
        loaded = PeftModel.from_pretrained(load_model(folder, method, CPU), tmp_path)
    input_ids = torch.arange(4, 24)[None] % VOCABULARY
    if method is MethodType.LORA and folder.name in names(EXPERTS):
        # PEFT adds the updates of experts to their bf16 weights, which rounds them. Here they are not rounded.
        model, loaded = model.float(), loaded.float()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=model.dtype == torch.bfloat16):
        ours, theirs = (m(input_ids=input_ids, use_cache=False).logits for m in (model, loaded.eval()))
    torch.testing.assert_close(theirs.float(), ours.float(), rtol=1e-2, atol=2e-2)
