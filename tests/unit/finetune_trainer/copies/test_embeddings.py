"""Sentence embeddings, and the near copies they tell of."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5Model

from finetune_api.bundle import Bundle
from finetune_api.reasons import FailureReason
from finetune_trainer.copies import embeddings
from finetune_trainer.copies.clusters import Clusters
from finetune_trainer.copies.embeddings import Embeddings, SentenceModel
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.storage.job_storage import open_storage
from tests.unit.finetune_trainer.conftest import MakeBundle, save_model

TEXTS = [f"question number {number} is about {'x' * (number % 7)} and {number * number}" for number in range(150)]


@pytest.fixture
def model(make_bundle: MakeBundle, tiny_model_dir: Path, tmp_path: Path) -> SentenceModel:
    return SentenceModel(open_storage(make_bundle()), str(tiny_model_dir), tmp_path / "sentence-model")


def vectors(model: SentenceModel, texts: list[str]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.concatenate([model.embed([text]) for text in texts])


def test_a_vector_is_the_mean_over_the_texts_own_tokens(model: SentenceModel) -> None:
    texts = ["a", "a longer text than the first of them"]
    together = model.embed(texts)
    assert np.linalg.norm(together, axis=1) == pytest.approx(1)
    for text, vector in zip(texts, together, strict=True):
        ids = model._tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            mean = model._model(ids).last_hidden_state[0].mean(0)
        assert vector == pytest.approx((mean / mean.norm()).numpy(), abs=1e-5)


def saved(tiny_model_dir: Path, folder: Path, files: dict[str, Any]) -> Path:
    """The tiny model with further files of sentence-transformers."""
    shutil.copytree(tiny_model_dir, folder)
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return folder


POOLED = [
    {"type": "sentence_transformers.models.Transformer", "path": ""},
    {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
    {"type": "sentence_transformers.models.Normalize", "path": "2_Normalize"},
]
FIRST = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": False}


@pytest.mark.parametrize("pooling", [FIRST, {"pooling_mode": "cls", "include_prompt": True}])
def test_a_model_whose_first_token_speaks_for_a_text_is_read_that_way(
    make_bundle: MakeBundle, tiny_model_dir: Path, tmp_path: Path, pooling: dict[str, Any]
) -> None:
    folder = saved(tiny_model_dir, tmp_path / "cls", {"modules.json": POOLED, "1_Pooling/config.json": pooling})
    model = SentenceModel(open_storage(make_bundle()), str(folder), tmp_path / "copy")
    text = "a text of some words"
    ids = model._tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        first = model._model(ids).last_hidden_state[0, 0]
    assert model.embed([text, "a longer one, so that there is padding"])[0] == pytest.approx(
        (first / first.norm()).numpy(), abs=1e-5
    )


def test_a_text_is_cut_where_the_model_was_trained_to(
    make_bundle: MakeBundle, tiny_model_dir: Path, tmp_path: Path
) -> None:
    folder = saved(tiny_model_dir, tmp_path / "short", {"sentence_bert_config.json": {"max_seq_length": 8}})
    model = SentenceModel(open_storage(make_bundle()), str(folder), tmp_path / "copy")
    text = "one two three four five six seven eight nine ten"
    vectors = model.embed([text, f"{text} eleven", f"zero {text}"])
    assert vectors[0] == pytest.approx(vectors[1])
    assert vectors[0] != pytest.approx(vectors[2], abs=1e-3)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            {"modules.json": [*POOLED, {"type": "a.Dense", "path": "3_Dense"}]},
            "has a part Dense; supported parts are Transformer",
        ),
        ({"modules.json": POOLED, "1_Pooling/config.json": {"pooling_mode": "lasttoken"}}, "its pooling is lasttoken"),
        ({"modules.json": POOLED, "1_Pooling/config.json": ["mean"]}, "cannot be loaded as a sentence model"),
        (
            {"modules.json": POOLED, "1_Pooling/config.json": {**FIRST, "pooling_mode_max_tokens": True}},
            r"its pooling is \['cls', 'pooling_mode_max_tokens'\]; supported are mean and cls",
        ),
    ],
)
def test_a_model_that_does_more_than_is_known_is_refused(
    make_bundle: MakeBundle, tiny_model_dir: Path, tmp_path: Path, files: dict[str, Any], said: str
) -> None:
    folder = saved(tiny_model_dir, tmp_path / "other", files)
    with pytest.raises(TrainerFailure, match=said) as caught:
        SentenceModel(open_storage(make_bundle()), str(folder), tmp_path / "copy")
    assert caught.value.reason is FailureReason.MODEL_UNSUPPORTED


def pointer(folder: Path) -> str:
    """What a clone without Git LFS holds in place of the weights."""
    (folder / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 90868376\n"
    )
    return "Error while deserializing"


def encoder_and_decoder(folder: Path) -> str:
    sizes = {"vocab_size": 320, "d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    T5Model(T5Config(**sizes)).save_pretrained(folder)
    return "it has an encoder and a decoder. Set .* to an encoder"


def too_few_embeddings(folder: Path) -> str:
    save_model(folder, vocab_size=100)
    return r"its tokenizer has \d+ tokens, but its weights have embeddings for 100"


def weights_that_are_not_numbers(folder: Path) -> str:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][:] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return "not finite"


@pytest.mark.parametrize("spoil", [pointer, encoder_and_decoder, too_few_embeddings, weights_that_are_not_numbers])
def test_a_model_that_cannot_embed_any_text_is_refused_before_a_row_is_read(
    make_bundle: MakeBundle, tiny_model_dir: Path, tmp_path: Path, spoil: Callable[[Path], str]
) -> None:
    shutil.copytree(tiny_model_dir, tmp_path / "spoilt")
    said = spoil(tmp_path / "spoilt")
    with pytest.raises(TrainerFailure, match=f"cannot be loaded as a sentence model: .*{said}") as caught:
        SentenceModel(open_storage(make_bundle()), str(tmp_path / "spoilt"), tmp_path / "copy")
    assert caught.value.reason is FailureReason.MODEL_UNSUPPORTED


def test_each_row_joins_the_first_that_is_near(
    model: SentenceModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings, "COMPARED", 32)  # so that blocks are compared with blocks
    texts = [*TEXTS, TEXTS[3], TEXTS[40]]
    near, clusters = Embeddings(model, tmp_path, "rows"), Clusters(len(texts))
    for text in texts:
        near.add(text)
    near.join(clusters, 0.999)
    cosine = vectors(model, texts).astype(np.float16).astype(np.float32)
    cosine = cosine @ cosine.T
    expected = Clusters(len(texts))
    for row in range(len(texts)):
        if (earlier := np.flatnonzero(cosine[row, :row] >= 0.999)).size:
            expected.join(int(earlier[0]), row)
    assert clusters.roots().tolist() == expected.roots().tolist()
    assert clusters.root(150) == clusters.root(3)
    assert len(set(clusters.roots())) > 2, "not all rows are near"


def test_more_rows_than_can_be_compared_are_refused_when_they_are_read(
    model: SentenceModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings, "MOST_ROWS", 2)
    near = Embeddings(model, tmp_path, "rows")
    near.add("a")
    near.add("b")
    with pytest.raises(TrainerFailure, match=r"Remove .*embeddingModel to compare rows by their words") as caught:
        near.add("c")
    assert caught.value.reason is FailureReason.SPEC_INVALID


def test_a_folder_without_a_model_is_named(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle: Bundle = make_bundle()
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainerFailure, match=r"embeddingModel: There is no config\.json") as caught:
        SentenceModel(open_storage(bundle), str(tmp_path / "empty"), tmp_path / "model")
    assert caught.value.reason is FailureReason.MODEL_NOT_FOUND


def test_a_folder_that_is_no_model_is_named(make_bundle: MakeBundle, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    with pytest.raises(TrainerFailure, match="There is no model") as caught:
        SentenceModel(open_storage(make_bundle()), str(tmp_path / "broken"), tmp_path / "model")
    assert caught.value.reason is FailureReason.MODEL_UNSUPPORTED
