"""Decides from config.json whether a model can be tuned."""

from typing import Any

from finetune_api.reasons import FailureReason
from finetune_trainer.base.composite import TEXT_TUNED, is_composite
from finetune_trainer.base.experts import TUNED, experts_problem, has_experts
from finetune_trainer.pod.failure import TrainerFailure

ORIGINAL = "Set spec.model.uri to the original weights. spec.method.type QLoRA quantizes them."
BF16_EXPERTS = (
    "Use a copy of the model in bfloat16. To convert GPT-OSS, load it with Transformers and "
    "quantization_config=Mxfp4Config(dequantize=True), and save it with save_pretrained."
)
"""Remedies for weights that are already quantized. QLoRA cannot quantize experts."""
PROVEN = (
    "bloom",
    "cohere",
    "falcon",
    "falcon_h1",
    "gemma",
    "gemma2",
    "gemma3",
    "gpt2",
    "gpt_oss",
    "llama",
    "mamba",
    "mistral",
    "mistral3",
    "mixtral",
    "mpt",
    "olmoe",
    "phi",
    "phi3",
    "qwen2",
    "qwen2_5_vl",
    "qwen3",
    "qwen3_5",
    "qwen3_5_text",
    "qwen3_moe",
    "qwen3_vl",
    "recurrent_gemma",
    "rwkv",
)
"""Values of model_type that the tests of the trainer tune with every method."""
UNFIT = (
    "gemma4_assistant",
    "gemma4_unified_assistant",
    "musicgen",
    "musicgen_melody",
    "prophetnet",
    "trocr",
    "whisper",
)
"""Values of model_type whose causal model is only the decoder of another model."""


def require_supported(config: dict[str, Any], uri: str) -> None:
    """Raises TrainerFailure ModelUnsupported unless `config` (config.json) describes a causal language model that
    Transformers supports and that can be tuned, or a model with such a language model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    architectures = config.get("architectures") or []
    named = ", ".join(map(str, architectures)) or "no architecture"
    remedy = None
    causal = any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in architectures)
    composite = is_composite(config)
    if not causal and not composite and any(str(name).endswith("ForConditionalGeneration") for name in architectures):
        problem = (
            f"is not a causal language model: config.json names {named}. Of the models that also read images, only "
            f"{', '.join(TEXT_TUNED)} are tuned, on text"
        )
    elif not causal and not composite:
        problem = f"is not a causal language model: config.json names {named}"
    elif not composite and config.get("model_type") not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        problem = f"is of model_type {config.get('model_type')}, which this version of Transformers does not know"
    elif has_experts(config) and (untuned := experts_problem(config)):
        problem = untuned
        remedy = f"Choose a model without experts, or one of {', '.join(TUNED)} with experts in every layer."
    elif config["model_type"] in UNFIT:
        problem = f"is of model_type {config['model_type']}, which generates text only together with another model"
    elif config["model_type"] == "xlstm":
        problem = "is of model_type xlstm, which cannot compute logits for selected positions only"
    elif config.get("quantization_config"):
        problem = "is already quantized"
        remedy = BF16_EXPERTS if has_experts(config) else ORIGINAL
    else:
        return
    raise TrainerFailure(FailureReason.MODEL_UNSUPPORTED, f"The model in {uri} {problem}.", remedy)
