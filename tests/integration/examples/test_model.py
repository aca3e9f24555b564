"""The demo's base model is complete, loads, and answers as its authors intended."""

from pathlib import Path

import pytest

from devcluster import ClusterError
from examples.model import convert


@pytest.fixture(scope="module")
def folder() -> Path:
    """The model's folder. The first call converts the model (about 20 s)."""
    return convert.model_folder()


def test_the_folder_has_transformers_layout_and_is_readable_for_all(folder: Path) -> None:
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= {
        file.name for file in folder.iterdir()
    }
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in folder.iterdir())
    assert not list(folder.parent.glob("converting-*"))


def test_the_tokenizer_ends_a_turn_and_splits_every_digit(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.model_max_length) == ("<|im_end|>", "<|im_end|>", 8192)
    assert tokenizer.tokenize("Order  48213") == ["Order", "ĠĠ", "4", "8", "2", "1", "3"]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_the_model_answers_a_question_and_stops(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert model.dtype is torch.bfloat16
    assert not hasattr(model.config, "quantization_config")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(written) == "The capital of France is Paris.<|im_end|>"


def test_without_the_package_the_error_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "PACKAGE", "not-installed-at-all")
    with pytest.raises(ClusterError, match="make venv"):
        convert.model_folder()


def test_an_interrupted_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(gguf: Path, folder: Path) -> None:
        (folder / "config.json").touch()
        raise KeyboardInterrupt

    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(convert, "_convert", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert.model_folder()
    assert list((tmp_path / "models").iterdir()) == []
