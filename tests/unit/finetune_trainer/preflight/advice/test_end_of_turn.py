"""Preflight detects a model that was never trained to end an answer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from finetune_trainer.handover.prepared import Prepared
from tests.unit.finetune_trainer.conftest import TEMPLATE, MakeBundle, save_model, save_tokenizer
from tests.unit.finetune_trainer.preflight_runs import run

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Change = Callable[[torch.Tensor], object]
CHAT = TEMPLATE.replace("<|start|>", "<|im_start|>").replace("<|end|>", "<|im_end|>")


def equal(matrix: torch.Tensor, noise: float = 0.0) -> None:
    """The rows of both tokens of the template as no training has told them apart."""
    matrix[START] = matrix[END] * (1 + noise)


def zero(matrix: torch.Tensor) -> None:
    matrix[END] = 0


def beyond(matrix: torch.Tensor) -> None:
    """As a row that the tokenizer has no token for."""
    matrix[END] = matrix[END + 3]


START, END = 300, 301


def advice(prepared: Prepared) -> dict[str, str]:
    return {advice.reason: advice.message for advice in prepared.preflight.advice or []}


@pytest.fixture
def said(make_bundle: MakeBundle, tmp_path: Path) -> Callable[..., str | None]:
    """What is advised about a model with a template of two added tokens, whose rows were changed."""

    def of(*changes: tuple[str, Change], dtype: torch.dtype = torch.float32, tied: bool = False, **parts: Any) -> Any:
        folder = tmp_path / "model"
        save_model(folder, tie_word_embeddings=tied)
        save_tokenizer(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_tokens([f"<|filler {i}|>" for i in range(START - len(tokenizer))], special_tokens=True)
        tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
        tokenizer.chat_template = CHAT
        tokenizer.save_pretrained(folder)
        weights = load_file(folder / "model.safetensors")
        for name, change in changes:
            change(weights[name])
        weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        return advice(run(make_bundle(model={"uri": str(folder)}, **parts))).get("EndOfTurnUntrained")

    return of


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_an_untrained_end_of_turn_token_is_reported_before_training(
    said: Callable[..., str | None], dtype: torch.dtype
) -> None:
    message = said((EMBEDDING, equal), (HEAD, lambda matrix: equal(matrix, 0.002)), dtype=dtype)
    assert message
    assert "the row of the end-of-turn token <|im_end|> (id 301) equals the row of <|im_start|> (id 300)." in message
    assert "spec.method.lora.modulesToSave to [embed_tokens, lm_head]" in message
    assert "choose another base model, such as the instruct variant" in message


@pytest.mark.parametrize(("change", "words"), [(zero, "is almost zero"), (beyond, "equals the row of id 304")])
def test_a_zero_row_or_a_row_equal_to_one_after_the_vocabulary_is_reported(
    said: Callable[..., str | None], change: Change, words: str
) -> None:
    assert words in (said((HEAD, change)) or "")


def test_the_message_names_the_embedding_of_a_tied_model(said: Callable[..., str | None]) -> None:
    assert "modulesToSave to [embed_tokens]," in (said((EMBEDDING, equal), tied=True) or "")


def test_a_trained_end_of_turn_token_is_not_reported(said: Callable[..., str | None]) -> None:
    assert said((EMBEDDING, equal)) is None


@pytest.mark.parametrize(
    "method",
    [
        {"type": "Full"},
        {"type": "LoRA", "lora": {"modulesToSave": ["embed_tokens", "lm_head"]}},
        {"type": "QLoRA", "lora": {"modulesToSave": ["lm_head"]}},
        {"type": "LoRA", "lora": {"targetModules": ["q_proj", "lm_head"]}},
    ],
)
def test_a_job_that_trains_the_head_gets_no_message(said: Callable[..., str | None], method: dict[str, Any]) -> None:
    assert said((EMBEDDING, equal), (HEAD, equal), method=method) is None


def test_training_the_embedding_alone_leaves_the_head_as_it_is(said: Callable[..., str | None]) -> None:
    assert said((EMBEDDING, equal), (HEAD, equal), method={"lora": {"modulesToSave": ["embed_tokens"]}})


def test_training_the_embedding_of_a_tied_model_trains_the_head(said: Callable[..., str | None]) -> None:
    tuned = {"type": "LoRA", "lora": {"modulesToSave": ["embed_tokens"]}}
    assert said((EMBEDDING, equal), tied=True, method=tuned) is None


def test_rows_of_format_text_are_checked_for_their_end_token(said: Callable[..., str | None], tmp_path: Path) -> None:
    rows = [{"text": f"The report on day {i} is short."} for i in range(60)]
    assert said((HEAD, equal), rows=rows) is None, "texts end on another token"
