"""Small jobs that together use everything that a checkpoint must keep, over a model with random weights."""

import json
from pathlib import Path
from typing import Any

from finetune_api.bundle import Bundle

LORA = {"type": "LoRA", "lora": {"r": 4}}
SPECS: dict[str, dict[str, Any]] = {
    "lora": {
        "method": {"type": "LoRA", "lora": {"r": 4, "dropout": 0.2}},
        "training": {"epochs": 3, "learningRate": 0.1, "evaluateEvery": 2, "checkpoint": {"every": 2}},
    },
    "dora": {
        "method": {"type": "LoRA", "lora": {"r": 4, "dropout": 0.1, "useDora": True, "bias": "LoraOnly"}},
        "training": {"epochs": 2, "learningRate": 0.01, "weightDecay": 0.1, "checkpoint": {"every": 3, "keep": 1}},
    },
    "full": {
        "method": {"type": "Full"},
        "training": {"epochs": 2, "learningRate": 0.01, "evaluateEvery": 2, "checkpoint": {"every": 2}},
    },
    "8-bit": {
        "method": {"type": "LoRA", "lora": {"r": 64, "modulesToSave": ["lm_head"]}},
        "training": {"epochs": 2, "optimizer": "PagedAdamW8bit", "learningRate": 0.01, "checkpoint": {"every": 2}},
    },
    "qlora": {
        "method": {"type": "QLoRA", "lora": {"r": 4, "dropout": 0.1}},
        "training": {"epochs": 2, "learningRate": 0.01, "publish": "Last", "checkpoint": {"every": 2}},
    },
    "early": {
        "method": LORA,
        "training": {
            "epochs": 6,
            "learningRate": 0.5,
            "evaluateEvery": 2,
            "earlyStopping": {"patience": 2},
            "checkpoint": {"every": 1},
        },
    },
}
"""The validation rows are of another kind than the training rows, so that the loss on them rises again: in half of the
jobs the best step is not the last one."""


def write_inputs(folder: Path, rows: int = 60, **config: Any) -> None:
    """Writes the model and so many training rows. `config`: settings of the model."""
    save_model(folder / "model", **config)
    train = [{"prompt": f"What is {i} plus {i}?", "completion": f"It is {2 * i}."} for i in range(rows)]
    other = [{"prompt": f"Say {i}", "completion": f"It was what the {i} fox jumped over."} for i in range(12)]
    for name, written in {"train": train, "validation": other}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))


def bundle_of(folder: Path, parts: dict[str, Any]) -> Bundle:
    """Returns the bundle of a job over the files in `folder`, with a short evaluation. `parts`: parts of its spec."""
    spec = {
        "model": {"uri": str(folder / "model")},
        "dataset": {
            "train": [{"uri": str(folder / "train.jsonl")}],
            "validation": [{"uri": str(folder / "validation.jsonl")}],
            "split": {"test": 0.1},
        },
        "output": {"uri": "/set-for-each-history"},
        "evaluation": {"maxRows": 4, "baselines": ["Base"], "generation": {"maxNewTokens": 2}},
    }
    return Bundle.model_validate({"spec": spec | parts, "allowCPU": True})


def save_model(folder: Path, **config: Any) -> None:
    """Saves a Llama with random weights, and a tokenizer whose tokens are bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({letter: place for place, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "vocab_size": 320,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "attention_bias": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    LlamaForCausalLM(LlamaConfig(**settings | config)).save_pretrained(folder)
