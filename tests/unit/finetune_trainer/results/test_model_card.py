"""The model card has metadata for model hubs, and commands that produce the prompts of the training."""

from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from peft import LoraConfig

from finetune_api.spec.method import Quantization, QuantizationType
from finetune_api.status.evaluation import Merged
from finetune_trainer.results.model_card import base_license, model_card
from finetune_trainer.results.pages import fenced
from finetune_trainer.results.results import Results
from tests.unit.finetune_trainer.complete_run import json_results
from tests.unit.finetune_trainer.conftest import MakeBundle
from tests.unit.finetune_trainer.small_runs import results


def of_the_hub(make_bundle: MakeBundle) -> Results:
    """Results of a run on a hub's model."""
    run = results(make_bundle())
    spec = run.bundle.spec.model_copy(
        update={"model": run.bundle.spec.model.model_copy(update={"uri": "hf://acme/base"})}
    )
    return replace(run, bundle=run.bundle.model_copy(update={"spec": spec}))


def test_its_front_matter_is_readable_for_hubs(make_bundle: MakeBundle) -> None:
    run = of_the_hub(make_bundle)
    data = ModelCard(model_card(run, "adapter")).data
    assert (data.base_model, data.library_name, data.license) == ("acme/base", "peft", "apache-2.0")
    assert data.tags == ["lora", "finetune-operator"]
    figures = {result.metric_type: result.metric_value for result in data.eval_results or []}
    assert run.evaluation.tuned
    assert figures == {"exact_match": 0.5, "loss": run.evaluation.tuned.loss}


def test_a_base_model_in_s3_is_not_named_as_a_hub_repository(make_bundle: MakeBundle) -> None:
    run = results(make_bundle())
    card = ModelCard(model_card(run, "adapter"))
    assert card.data.base_model is None
    assert f"`{run.bundle.spec.model.uri}`" in card.text


def test_it_has_the_verdict_the_prompt_and_both_ways_to_serve(make_bundle: MakeBundle) -> None:
    run = results(make_bundle())
    card = model_card(run, "adapter")
    assert (run.evaluation.verdict or "?") in card
    assert run.serving.rendered in card
    assert "PeftModel.from_pretrained" in card
    assert "--enable-lora --max-lora-rank 16" in card
    assert '"stop_token_ids": [3]' in card
    assert "&#" not in card, "no HTML escapes in Markdown"


def test_the_template_arguments_are_in_every_snippet(make_bundle: MakeBundle) -> None:
    run = results(make_bundle())
    thinking = replace(run, serving=replace(run.serving, template_arguments={"enable_thinking": False}))
    card = model_card(thinking, "adapter")
    assert "enable_thinking=False" in card
    assert '"chat_template_kwargs": {"enable_thinking": false}' in card


def test_the_snippets_for_a_text_model_send_the_beginning_of_a_text(make_bundle: MakeBundle) -> None:
    run = results(make_bundle())
    card = model_card(replace(run, serving=replace(run.serving, rendered="", beginning="")), "adapter")
    assert 'tokenizer("The beginning of a text"' in card
    assert "/v1/completions" in card
    assert "messages" not in card


def test_the_card_of_an_adapter_that_vllm_cannot_load_names_the_cause(make_bundle: MakeBundle) -> None:
    run = replace(results(make_bundle()), adapter=LoraConfig(use_dora=True))
    card = model_card(run, "adapter")
    assert "vLLM cannot serve this adapter, because it does not support DoRA." in card
    assert "--enable-lora" not in card


def test_after_qlora_the_adapter_is_served_over_four_bits_as_it_was_measured(make_bundle: MakeBundle) -> None:
    run = json_results()
    card = model_card(run, "adapter")
    assert "--quantization bitsandbytes --enable-lora --max-lora-rank 16 --lora-modules" in card
    assert 'bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True' in card
    assert "The tuned model was measured over the 4-bit base model. Over a bfloat16" in card
    assert "4-bit" not in model_card(results(make_bundle()), "adapter")

    method = run.bundle.spec.method.model_copy(update={"quantization": Quantization(type=QuantizationType.FP4)})
    spec = run.bundle.spec.model_copy(update={"method": method})
    other = model_card(replace(run, bundle=run.bundle.model_copy(update={"spec": spec})), "adapter")
    assert "--quantization" not in other, "vLLM always quantizes to NF4"
    assert 'bnb_4bit_quant_type="fp4"' in other
    assert "vLLM cannot quantize the base model in the same way." in other
    refused = model_card(replace(run, adapter=LoraConfig(use_dora=True)), "adapter")
    assert "vLLM cannot quantize" not in refused, "vLLM does not support the adapter itself"


def test_the_merged_models_card_is_of_a_whole_model(make_bundle: MakeBundle) -> None:
    run = of_the_hub(make_bundle)
    merged = Merged(
        loss=0.51, loss_change=0.01, rows=20, exact_match=0.5, exact_match_change=0, changed=False, message="Merging."
    )
    card = model_card(replace(run, assessment=run.assessment.with_merged(merged)), "merged")
    data = ModelCard(card).data
    assert (data.library_name, data.base_model_relation) == ("transformers", "merge")
    assert "Merging." in card
    assert "peft" not in card.lower().replace("peft's layout", "")
    assert "vllm serve merged" in card


def test_the_cost_of_quantizing_alone_is_below_the_figures(make_bundle: MakeBundle) -> None:
    said = model_card(json_results(), "adapter")
    assert "|\n\nQuantizing the base model to 4 bits changed its loss by" in said
    assert "Quantizing" not in model_card(results(make_bundle()), "adapter")


@pytest.mark.parametrize(
    ("card", "known"),
    [
        ("---\nlicense: other\nlicense_name: acme\n---\n# x", {"license": "other", "license_name": "acme"}),
        ("---\nlicense: [mit, other]\n---\n", {}),
        ("---\n: : {\n---\n", {}),
        ("# no metadata", {}),
        (None, {}),
    ],
)
def test_the_licence_is_the_one_in_the_base_models_card(
    card: str | None, known: dict[str, str], tmp_path: Path
) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert base_license(tmp_path) == known


def test_no_text_can_close_its_code_block() -> None:
    assert fenced("a ``` b").splitlines() == ["````", "a ``` b", "````"]
