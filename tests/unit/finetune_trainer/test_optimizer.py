"""What turns gradients into updates."""

import pytest
import torch
from bitsandbytes.optim import AdamW8bit
from transformers import Trainer

from finetune_api.method import Method, MethodType
from finetune_api.training import Optimizer, Training
from finetune_trainer.batches import micro_batch
from finetune_trainer.loss import token_losses
from finetune_trainer.optimizer import make_optimizer
from finetune_trainer.trainable import make_trainable, trainable_parameters
from tests.unit.finetune_trainer.families import FAMILIES, Family
from tests.unit.finetune_trainer.tiny import examples, tiny_llama


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


def test_the_8_bit_optimizer_holds_its_state_in_bytes() -> None:
    model = make_trainable(tiny_llama(torch.float32), Method(), MethodType.FULL, seed=0)
    adamw = make_optimizer(model, Training(optimizer=Optimizer.PAGED_ADAMW_8BIT))
    assert isinstance(adamw, AdamW8bit), "pages are a GPU's"
    token_losses(model, micro_batch(examples([40]), model.device)).mean().backward()  # type: ignore[no-untyped-call]
    adamw.step()
    large = {parameter: state for parameter, state in adamw.state.items() if parameter.numel() >= 4096}
    assert {state["state1"].dtype for state in large.values()} == {torch.uint8}
