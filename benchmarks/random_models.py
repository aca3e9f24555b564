"""Models with random weights and rows of random tokens. Memory and speed depend only on shapes and lengths."""

from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from finetune_api.spec.method import Method, MethodType
from finetune_trainer.handover.prepared import Example
from finetune_trainer.model.layers.attention import use_document_attention
from finetune_trainer.model.parameters.trainable import make_trainable, use_gradient_checkpointing
from finetune_trainer.sizing.model_shape import ModelShape, model_shape

SETTINGS: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
    },
    "qwen2.5-0.5b": {
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
    },
    "llama-3.2-1b": {
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
    },
    "llama-300m": {
        "model_type": "llama",
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 20,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    },
    "toy": {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": False,
    },
}


def random_shape(name: str) -> ModelShape:
    """Returns the shape from the weights' names and sizes. Allocates no weights."""
    with torch.device("meta"):
        model = random_model(name)
    return model_shape(model.config.to_dict(), {name: tuple(w.shape) for name, w in model.state_dict().items()})


def trainable_model(name: str, method: str, device: torch.device, checkpointing: bool) -> nn.Module:
    """The model as the trainer has it, with random weights made in bf16 where they stay."""
    torch.manual_seed(0)
    with device:
        model = random_model(name)
    model.requires_grad_(False)
    if method == "QLoRA":
        quantize(model)
    use_document_attention(model)
    tuned: nn.Module = make_trainable(model, Method(), MethodType(method), seed=0)
    use_gradient_checkpointing(tuned, checkpointing)
    return tuned


def random_model(name: str) -> PreTrainedModel:
    """Returns the model in bf16 on torch's default device."""
    config = AutoConfig.for_model(**SETTINGS[name])
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model


def quantize(model: PreTrainedModel) -> None:
    """Puts every linear layer but the head into 4 bits, one at a time, so that both forms of one layer is all that is
    held twice."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    for name, module in list(model.named_modules()):
        if not isinstance(module, torch.nn.Linear) or name == "lm_head":
            continue
        parent, _, child = name.rpartition(".")
        bits = Linear4bit(
            module.in_features,
            module.out_features,
            module.bias is not None,
            compute_dtype=torch.bfloat16,
            compress_statistics=True,
            quant_type="nf4",
            device="meta",
        )
        weight = module.weight.data
        bits.weight = Params4bit(weight, requires_grad=False, quant_type="nf4", module=bits).to(weight.device)
        bits.bias = module.bias
        bits.support_avx512bf16_for_cpu = False
        setattr(model.get_submodule(parent), child, bits)
    model.is_loaded_in_4bit = True


def random_rows(length: int, count: int, labels: float, vocabulary: int) -> list[Example]:
    """Returns `count` rows of `length` tokens. The last share `labels` of the tokens is trained."""
    generator, prompt = np.random.default_rng(0), round(length * (1 - labels))
    supervised = np.arange(length) >= prompt
    return [
        Example(generator.integers(0, vocabulary, length).astype(np.int32), supervised, prompt, (), f"random:{i}")
        for i in range(count)
    ]
