"""The optimizer and its parameter groups."""

from typing import Any

import pytest
import torch
from bitsandbytes.optim import AdamW8bit
from transformers import Trainer

from finetune_api.spec.method import Method, MethodType
from finetune_api.spec.training import Optimizer, Training
from finetune_trainer.model.batches import micro_batch
from finetune_trainer.model.loss import token_losses
from finetune_trainer.model.parameters.trainable import make_trainable, trainable_parameters
from finetune_trainer.training.optimizer import make_optimizer, state_bytes
from tests.unit.finetune_trainer.model_families import FAMILIES, Family
from tests.unit.finetune_trainer.small_runs import examples, tiny_llama


@pytest.mark.parametrize("family", FAMILIES)
def test_what_decays_is_what_decays_under_transformers_trainer(family: Family) -> None:
    model = family()
    theirs = set(Trainer.get_decay_parameter_names(None, model))
    ours = make_optimizer(model, Training(weight_decay=0.1)).param_groups
    decaying = {id(parameter) for group in ours if group["weight_decay"] for parameter in group["params"]}
    named = model.named_parameters(remove_duplicate=False)
    assert {name for name, parameter in named if id(parameter) in decaying} == theirs
    assert sum(len(group["params"]) for group in ours) == len(trainable_parameters(model)), "none twice, none left out"


@pytest.mark.parametrize("optimizer", Optimizer)
def test_each_optimizer_lowers_the_loss(optimizer: Optimizer) -> None:
    model = make_trainable(tiny_llama(torch.float32), Method(), MethodType.FULL, seed=0)
    adamw, batch = make_optimizer(model, Training(optimizer=optimizer)), micro_batch(examples([40, 30]), model.device)
    losses = []
    for _ in range(12):
        for group in adamw.param_groups:
            group["lr"] = 3e-3
        loss = token_losses(model, batch).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        adamw.step()
        adamw.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_the_8_bit_optimizer_stores_its_state_in_bytes() -> None:
    model = make_trainable(tiny_llama(torch.float32), Method(), MethodType.FULL, seed=0)
    adamw = make_optimizer(model, Training(optimizer=Optimizer.PAGED_ADAMW_8BIT))
    assert isinstance(adamw, AdamW8bit), "pages are a GPU's"
    token_losses(model, micro_batch(examples([40]), model.device)).mean().backward()  # type: ignore[no-untyped-call]
    adamw.step()
    embedding = model.get_input_embeddings().weight
    large = {p: state["state1"].dtype for p, state in adamw.state.items() if p.numel() >= 4096}
    assert large.pop(embedding) is torch.float32, "as under Transformers' Trainer"
    assert set(large.values()) == {torch.uint8}


@pytest.mark.parametrize("optimizer", Optimizer)
@pytest.mark.parametrize("lora", [None, {"modulesToSave": ["embed_tokens", "lm_head"]}])
def test_what_its_state_will_take_is_known_before(optimizer: Optimizer, lora: dict[str, Any] | None) -> None:
    method = Method.model_validate({"lora": lora or {"r": 512}})
    model = make_trainable(tiny_llama(torch.float32), method, MethodType.LORA if lora else MethodType.FULL, seed=0)
    expected = state_bytes(model, optimizer)
    adamw = make_optimizer(model, Training(optimizer=optimizer))
    token_losses(model, micro_batch(examples([40]), model.device)).mean().backward()  # type: ignore[no-untyped-call]
    adamw.step()
    moments = (value for state in adamw.state.values() for value in state.values() if torch.is_tensor(value))
    # Small parameters are never in 8 bits, and each 8-bit parameter has a table of the values of its bytes.
    small = 8 * sum(p.numel() for p in trainable_parameters(model) if p.numel() < 4096)
    held = {value.data_ptr(): value.numel() * value.element_size() for value in moments}
    assert expected <= sum(held.values()) <= expected + small + 10_000
