"""Experts and their adapters: the same results as in PEFT and Transformers, without a second copy of all experts."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor
from transformers import PreTrainedModel

from finetune_api.spec.method import Method, MethodType
from finetune_trainer.model.layers.experts import NAME
from finetune_trainer.model.parameters.loading import load_model
from finetune_trainer.model.parameters.targets import adapter_targets
from finetune_trainer.model.parameters.trainable import make_trainable, trained_weights
from tests.unit.finetune_trainer.model_families import EXPERTS, Family, save_family

CPU = torch.device("cpu")
TOKENS = torch.arange(4, 24)[None]


@pytest.fixture(scope="module", params=EXPERTS, ids=lambda family: family.__name__)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model of each family with experts in turn. Read only."""
    family: Family = request.param
    return save_family(family, tmp_path_factory.mktemp("experts") / family.__name__)


def base(folder: Path) -> PreTrainedModel:
    return load_model(folder, MethodType.LORA, CPU).double()


def adapted(folder: Path, **lora: object) -> PeftModel:
    """The model in fp64 with an adapter whose updates are as large as the weights."""
    model = make_trainable(base(folder), Method.model_validate({"lora": lora}), MethodType.LORA, seed=0).double()
    assert isinstance(model, PeftModel)
    for weight in trained_weights(model).values():
        torch.nn.init.normal_(weight, std=0.2)
    return model.eval()


def logits(model: PreTrainedModel | PeftModel) -> Tensor:
    found: Tensor = model(input_ids=TOKENS, use_cache=False).logits
    return found


def as_in_peft(model: PeftModel) -> None:
    """Restores PEFT's own forward pass, and Transformers' own experts."""
    for module in model.modules():
        if isinstance(module, ParamWrapper):
            vars(module).pop("forward", None)
    model.get_base_model().set_experts_implementation("eager")


def test_experts_give_the_results_of_transformers(folder: Path) -> None:
    model = base(folder).eval()
    assert model.config._experts_implementation == NAME
    ours = logits(model)
    model.set_experts_implementation("eager")
    torch.testing.assert_close(ours, logits(model), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "targets", [["all-linear"], ["gate_up_proj"], ["down_proj", "q_proj"]], ids=lambda names: names[0]
)
def test_adapters_of_experts_have_the_results_and_gradients_of_peft(folder: Path, targets: list[str]) -> None:
    model = adapted(folder, targetModules=targets, r=3, useRslora=True)
    found = []
    for _ in range(2):
        output = logits(model)
        output.square().sum().backward()  # type: ignore[no-untyped-call]
        gradients = {name: weight.grad for name, weight in trained_weights(model).items()}
        model.zero_grad()
        found.append((output, gradients))
        as_in_peft(model)
    (ours, our_gradients), (theirs, their_gradients) = found
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert our_gradients.keys() == their_gradients.keys()
    for name, gradient in our_gradients.items():
        torch.testing.assert_close(gradient, their_gradients[name], rtol=1e-7, atol=1e-9)
    assert any(gradient is not None and gradient.any() for gradient in our_gradients.values())


@torch.no_grad()
def test_a_disabled_adapter_gives_the_base_model_and_a_merged_one_the_tuned_model(folder: Path) -> None:
    model, plain = adapted(folder), logits(base(folder).eval())
    tuned = logits(model)
    assert not torch.allclose(tuned, plain)
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), plain)
    torch.testing.assert_close(logits(model), tuned)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), tuned, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(logits(model.merge_and_unload()), tuned, rtol=1e-7, atol=1e-8)


def test_autograd_keeps_no_second_copy_of_the_experts(folder: Path) -> None:
    model = adapted(folder, r=2)
    experts = next(module for module in model.modules() if isinstance(module, ParamWrapper)).get_base_layer()
    stack, kept = experts.gate_up_proj, list[Tensor]()

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits(model)
    storages = {tensor.untyped_storage().data_ptr(): tensor for tensor in kept}
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    copies = [t for place, t in storages.items() if place not in own and t.untyped_storage().nbytes() >= stack.nbytes]
    assert not [copy for copy in copies if copy.untyped_storage().nbytes() == stack.nbytes and copy.ndim == 3]


def test_names_of_experts_choose_parameters_and_other_names_choose_modules(folder: Path) -> None:
    stacks = ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]
    model = base(folder)
    attention = ["k_proj", "o_proj", "q_proj", "v_proj"]
    assert adapter_targets(model, ["all-linear"]) == (attention, stacks)
    assert adapter_targets(model, ["q_proj"]) == (["q_proj"], None)
    assert adapter_targets(model, ["experts.down_proj"]) == ([], stacks[:1])
    assert adapter_targets(model, ["v_proj", "gate_up_proj"]) == (["v_proj"], stacks[1:])
