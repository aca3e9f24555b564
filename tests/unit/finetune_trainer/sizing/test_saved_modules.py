"""What modulesToSave selects is what PEFT trains whole."""

import warnings
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft.utils.other import ModulesToSaveWrapper
from transformers import PreTrainedModel

from finetune_trainer.sizing.saved_modules import PEFT_PREFIX, is_in_saved, is_saved
from tests.unit.finetune_trainer.model_families import gpt2, llama, phi, qwen3

FAMILIES = {family.__name__: family for family in (gpt2, llama, phi, qwen3)}


@cache
def modules(family: str) -> tuple[str, ...]:
    return tuple(name for name, _ in FAMILIES[family]().named_modules() if name)


def saved_by_peft(model: PreTrainedModel, names: list[str]) -> set[str] | None:
    """The modules that PEFT trains whole; None if it refuses them."""
    # The adapter is on one layer that is not named, so it says nothing about the rule.
    config = LoraConfig(target_modules=r".*\.1\.(mlp|self_attn)\.(c_fc|k_proj)", modules_to_save=[*names])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = get_peft_model(model, config)
    except (TypeError, ValueError):
        return None
    wrapped = {name for name, module in found.named_modules() if isinstance(module, ModulesToSaveWrapper)}
    return {name.removeprefix(PEFT_PREFIX) for name in wrapped if "modules_to_save" not in name}


@st.composite
def named(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A family, and ends of the names of some of its modules, cut anywhere."""
    family = draw(st.sampled_from(sorted(FAMILIES)))
    whole = draw(st.lists(st.sampled_from(modules(family)), min_size=1, max_size=3))
    return family, [name[draw(st.integers(0, len(name) - 1)) :] for name in whole]


@given(named())
def test_it_selects_the_modules_that_peft_wraps(drawn: tuple[str, list[str]]) -> None:
    family, names = drawn
    theirs = saved_by_peft(FAMILIES[family](), names)
    if theirs is None:
        return
    ours = {module for module in modules(family) if is_saved(module, names)}
    # What is inside of a module that is trained whole is trained with it.
    outermost = {module for module in ours if not is_in_saved(module.rpartition(".")[0], names)}
    assert {module for module in theirs if ".original_module" not in module} >= outermost
    assert {module.partition(".original_module")[0] for module in theirs} <= ours


@pytest.mark.parametrize(
    ("names", "module", "selected"),
    [
        (["norm"], "model.layers.0.input_layernorm", True),
        (["head"], "lm_head", True),
        (["lm_head"], "lm_head", True),
        (["embed"], "model.embed_tokens", False),
        (["base_model.model.lm_head"], "lm_head", True),
        (["lm_head", "norm"], "model.norm", True),
    ],
)
def test_the_end_of_a_name_need_not_begin_at_a_dot(names: list[str], module: str, selected: bool) -> None:
    assert is_saved(module, names) is selected
