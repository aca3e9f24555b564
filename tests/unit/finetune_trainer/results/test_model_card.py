"""The model card: metadata hubs can read, and instructions that give the prompts the model learned."""

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
from tests.unit.finetune_trainer.conftest import MakeBundle
from tests.unit.finetune_trainer.rich import rich_results
from tests.unit.finetune_trainer.tiny import results


def of_the_hub(make_bundle: MakeBundle) -> Results:
    """Results of a run on a hub's model."""
    run = results(make_bundle())
    spec = run.bundle.spec.model_copy(
        update={"model": run.bundle.spec.model.model_copy(update={"uri": "hf://acme/base"})}
    )
    return replace(run, bundle=run.bundle.model_copy(update={"spec": spec}))


def test_its_front_matter_is_what_hubs_read(make_bundle: MakeBundle) -> None:
    run = of_the_hub(make_bundle)
    data = ModelCard(model_card(run, "adapter")).data
    assert (data.base_model, data.library_name, data.license) == ("acme/base", "peft", "apache-2.0")
    assert data.tags == ["lora", "finetune-operator"]
    figures = {result.metric_type: result.metric_value for result in data.eval_results or []}
    assert run.evaluation.tuned
    assert figures == {"exact_match": 0.5, "loss": run.evaluation.tuned.loss}


def test_a_base_model_of_no_hub_is_not_named_as_one(make_bundle: MakeBundle) -> None:
    run = results(make_bundle())
    card = ModelCard(model_card(run, "adapter"))
    assert card.data.base_model is None
    assert f"`{run.bundle.spec.model.uri}`" in card.text


def test_it_tells_the_verdict_the_prompt_and_both_ways_to_serve(make_bundle: MakeBundle) -> None:
    run = results(make_bundle())
    card = model_card(run, "adapter")
    assert (run.evaluation.verdict or "?") in card
    assert run.serving.rendered in card
    assert "PeftModel.from_pretrained" in card
    assert "--enable-lora --max-lora-rank 16" in card
    assert '"stop_token_ids": [3]' in card
    assert "&#" not in card, "no HTML escapes in Markdown"


def test_what_the_template_has_to_be_given_is_in_every_snippet(make_bundle: MakeBundle) -> None:
    run = results(make_bundle())
    thinking = replace(run, serving=replace(run.serving, template_arguments={"enable_thinking": False}))
    card = model_card(thinking, "adapter")
    assert "enable_thinking=False" in card
    assert '"chat_template_kwargs": {"enable_thinking": false}' in card


def test_a_model_of_texts_is_given_their_beginning(make_bundle: MakeBundle) -> None:
    run = results(make_bundle())
    card = model_card(replace(run, serving=replace(run.serving, rendered="", beginning="")), "adapter")
    assert 'tokenizer("The beginning of a text"' in card
    assert "/v1/completions" in card
    assert "messages" not in card


def test_an_adapter_vllm_refuses_says_so(make_bundle: MakeBundle) -> None:
    run = replace(results(make_bundle()), adapter=LoraConfig(use_dora=True))
    card = model_card(run, "adapter")
    assert "vLLM does not take this adapter: it has DoRA" in card
    assert "--enable-lora" not in card


def test_after_qlora_the_adapter_is_served_over_four_bits_as_it_was_measured(make_bundle: MakeBundle) -> None:
    run = rich_results()
    card = model_card(run, "adapter")
    assert "--quantization bitsandbytes --enable-lora --max-lora-rank 16 --lora-modules" in card
    assert 'bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True' in card
    assert "was measured over the base model in 4 bits." in card
    assert "4 bits." not in model_card(results(make_bundle()), "adapter")

    method = run.bundle.spec.method.model_copy(update={"quantization": Quantization(type=QuantizationType.FP4)})
    spec = run.bundle.spec.model_copy(update={"method": method})
    other = model_card(replace(run, bundle=run.bundle.model_copy(update={"spec": spec})), "adapter")
    assert "--quantization" not in other, "vLLM makes NF4 of it"
    assert 'bnb_4bit_quant_type="fp4"' in other
    assert "which vLLM does not make of it in this way" in other
    refused = model_card(replace(run, adapter=LoraConfig(use_dora=True)), "adapter")
    assert "which vLLM does not make of it" not in refused, "it is the adapter that it does not take"


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


def test_what_quantizing_alone_costs_stands_under_the_figures(make_bundle: MakeBundle) -> None:
    said = model_card(rich_results(), "adapter")
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
def test_the_licence_is_the_base_models_where_its_card_names_one(
    card: str | None, known: dict[str, str], tmp_path: Path
) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert base_license(tmp_path) == known


def test_no_text_ends_its_code_block() -> None:
    assert fenced("a ``` b").splitlines() == ["````", "a ``` b", "````"]
