"""Token ids in rows and in settings are checked against the rows of the embedding."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from finetune_api.reasons import FailureReason
from finetune_api.spec.method import MethodType
from finetune_trainer.model.parameters.loading import greedy_generation, load_model
from tests.unit.finetune_trainer.conftest import MakeBundle, save_model, save_tokenizer, sum_rows, write_rows
from tests.unit.finetune_trainer.preflight_runs import failure, run

ROWS = 320
"""Of the tiny model's embedding."""
CPU = torch.device("cpu")


def grown(folder: Path, tokens: list[str], template: str | None = None) -> Path:
    """The tiny model with `tokens` added to its tokenizer from id 320 on, which its embedding has no rows for."""
    save_model(folder)
    save_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<|filler {i}|>" for i in range(ROWS - len(tokenizer))], special_tokens=True)
    tokenizer.add_tokens(tokens, special_tokens=True)
    if template:
        tokenizer.chat_template = tokenizer.chat_template.replace("<|start|>", tokens[0]).replace("<|end|>", tokens[1])
    tokenizer.save_pretrained(folder)
    return folder


def change(path: Path, **keys: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_a_template_whose_tokens_have_no_rows_is_refused_with_their_ids(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    folder = grown(tmp_path / "model", ["<|im_start|>", "<|im_end|>"], template="of these")
    found = failure(make_bundle(model={"uri": str(folder)}))
    assert found.reason is FailureReason.MODEL_UNSUPPORTED
    assert "train.jsonl line 1 contains tokens <|im_start|> (id 320), <|im_end|> (id 321)" in found.message
    assert "the embedding has only 320 rows, for ids up to 319" in found.message
    assert "resize_token_embeddings" in found.message


@pytest.mark.parametrize("place", ["train", "test", "regression"])
def test_one_row_with_such_a_token_is_found_wherever_it_is(make_bundle: MakeBundle, tmp_path: Path, place: str) -> None:
    folder = grown(tmp_path / "model", ["<|tool|>"])
    odd = {"prompt": "Call <|tool|> now", "completion": "Done."}
    other = str(write_rows(tmp_path / "data" / "other.jsonl", [*sum_rows(4), odd]))
    parts: dict[str, Any] = {"model": {"uri": str(folder)}}
    if place == "regression":
        parts["evaluation"] = {"regression": [{"name": "old", "uri": other, "metric": "ExactMatch", "maxDrop": 1}]}
    bundle = make_bundle([*sum_rows(60), odd] if place == "train" else None, **parts)
    if place == "test":
        said = bundle.model_dump(mode="json", by_alias=True, exclude_none=True)
        said["spec"]["dataset"]["test"] = [{"uri": other}]
        bundle = type(bundle).model_validate(said)
    assert "contains token <|tool|> (id 320), but the embedding has only 320 rows" in failure(bundle).message


def test_tokens_without_rows_that_no_row_uses_are_no_fault(make_bundle: MakeBundle, tmp_path: Path) -> None:
    folder = grown(tmp_path / "model", ["<|tool|>", "<|image|>"])
    assert run(make_bundle(model={"uri": str(folder)})).train


def test_end_tokens_without_rows_are_left_out(make_bundle: MakeBundle, tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    change(folder / "generation_config.json", eos_token_id=[128009, 3, -1], pad_token_id=999)
    assert run(make_bundle(model={"uri": str(folder)})).stop_token_ids == (3,)
    generation = greedy_generation(load_model(folder, MethodType.LORA, CPU), (3,), max_new_tokens=4)
    assert (generation.eos_token_id, generation.pad_token_id) == ([3], 3)


@pytest.mark.parametrize("padding", [320, 32000, -1, -400])
def test_a_padding_token_without_a_row_does_not_keep_a_model_from_being_loaded(
    tiny_model_dir: Path, tmp_path: Path, padding: int
) -> None:
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    change(folder / "config.json", pad_token_id=padding)
    assert load_model(folder, MethodType.LORA, CPU).get_input_embeddings().padding_idx is None
