"""The base model as it is trained: loaded in bf16 or 4-bit, with a LoRA adapter put on it."""

import inspect
from collections.abc import Sequence
from pathlib import Path

import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from finetune_api.job import Method, MethodType
from finetune_api.reasons import FailureReason
from finetune_trainer.attention import use_document_attention
from finetune_trainer.base_model import SMALL_FILES
from finetune_trainer.failure import TrainerFailure


def is_model_file(path: str) -> bool:
    """Whether a file of a model's folder is downloaded: settings, tokenizer, weights and the card, which names the
    licence. No code, no pickles, no second copy of the weights such as Mistral's consolidated.safetensors."""
    wanted = path == "README.md" or path.endswith((*SMALL_FILES, ".safetensors"))
    return "/" not in path and wanted and not path.startswith("consolidated")


def choose_device(allow_cpu: bool) -> tuple[torch.device, str]:
    """The GPU and its name, or the CPU where that is allowed. Raises TrainerFailure GPUFault when neither is there."""
    try:
        device = torch.device("cuda", 0)
        # A device that answers is not yet one that computes: a broken driver or a stuck GPU shows only here.
        torch.ones(8, device=device).sum().item()
        return device, torch.cuda.get_device_name(device)
    except (RuntimeError, AssertionError) as error:
        if not allow_cpu:
            cause = str(error).splitlines()[0].rstrip(".")
            raise TrainerFailure(FailureReason.GPU_FAULT, f"The pod finds no GPU it can use: {cause}.") from error
        return torch.device("cpu"), "cpu"


def load_model(folder: Path, method: MethodType, device: torch.device) -> PreTrainedModel:
    """The model in `folder`, frozen, in bf16, or in 4-bit NormalFloat with double quantization for QLoRA (Dettmers
    et al. 2023). Raises TrainerFailure ModelUnsupported when Transformers cannot load it whole."""
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.bfloat16,
            device_map={"": device},
            quantization_config=_four_bit() if method is MethodType.QLORA else None,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, AttributeError, ImportError) as error:
        cause = next(iter(str(error).splitlines()), type(error).__name__)[:300]
        raise TrainerFailure(FailureReason.MODEL_UNSUPPORTED, f"Transformers cannot load the model: {cause}") from error
    _require_whole(model, report)
    model.requires_grad_(False)
    _keep_four_bit_trainable(model)
    use_document_attention(model)
    return model


def _four_bit() -> BitsAndBytesConfig:
    # bitsandbytes' own defaults are fp4 and fp32.
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _require_whole(model: PreTrainedModel, report: dict[str, set[str]]) -> None:
    """Transformers fills absent weights with random numbers and a warning; here that ends the job."""
    absent = sorted(map(str, report["missing_keys"] or report["mismatched_keys"]))
    if absent:
        raise TrainerFailure(
            FailureReason.MODEL_UNSUPPORTED,
            f"The weights do not fit config.json: {len(absent)} are missing or of another shape, {absent[0]} first.",
        )
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        raise TrainerFailure(
            FailureReason.MODEL_UNSUPPORTED, f"{type(model).__name__} is not a causal language model of a usual kind."
        )


def _keep_four_bit_trainable(model: nn.Module) -> None:
    """On CPUs with AVX512-BF16 bitsandbytes repacks a 4-bit layer at its first forward without gradient, such as the
    base's evaluation, and the repacked layer passes no gradient on."""
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The model's own tokenizer. Preflight has seen that it can be loaded."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        folder, trust_remote_code=False, local_files_only=True
    )
    return tokenizer


def attach_lora(model: PreTrainedModel, method: Method, seed: int) -> PeftModel:
    """The model with a fresh adapter, its weights in fp32. Raises TrainerFailure SpecInvalid when the model has no
    module of the names in targetModules."""
    lora = method.lora
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear" if lora.target_modules == ["all-linear"] else lora.target_modules,
    )
    torch.manual_seed(seed)
    try:
        tuned = get_peft_model(model, config)
    except ValueError as error:
        finding = f"spec.method.lora.targetModules does not fit the model: {str(error).splitlines()[0][:300]}"
        raise TrainerFailure(FailureReason.SPEC_INVALID, finding) from error
    for module in tuned.modules():
        if hasattr(module, "lora_A"):
            # Autocast casts the small weights down instead of PEFT the large activations up.
            setattr(module, "cast_input_dtype_enabled", False)  # noqa: B010 - PEFT's, unknown to nn.Module
    for parameter in trainable_parameters(tuned):
        parameter.data = parameter.data.float()
    return tuned


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters the optimizer changes."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def greedy_generation(model: PreTrainedModel, stop_token_ids: Sequence[int], max_new_tokens: int) -> GenerationConfig:
    """Greedy decoding that ends at any of `stop_token_ids` or the model's own end tokens. What else the model's
    generation_config holds (sampling, penalties) is taken from the model: it would not be greedy with it."""
    own = model.generation_config.eos_token_id
    ends = sorted({*stop_token_ids, *(own if isinstance(own, list) else [] if own is None else [own])})
    model.generation_config = GenerationConfig()
    return GenerationConfig(do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=ends, pad_token_id=ends[0])
