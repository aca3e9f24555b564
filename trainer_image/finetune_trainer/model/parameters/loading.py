"""Loads the base model in bf16 or 4 bits, its tokenizer, and its generation settings."""

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from finetune_api.reasons import FailureReason
from finetune_api.spec.method import ComputeDtype, MethodType, Quantization
from finetune_trainer.base.base_model import known
from finetune_trainer.base.chosen_modules import MAMBAS
from finetune_trainer.base.composite import is_composite
from finetune_trainer.model.layers.attention import use_document_attention
from finetune_trainer.model.layers.experts import use_experts
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.pod.liveness.heartbeat import disk_work
from finetune_trainer.pod.rank import by_rank
from finetune_trainer.pod.scratch import bytes_in
from finetune_trainer.ranks.group import gather
from finetune_trainer.sizing.model_shape import Sizes

Loaded = tuple[PreTrainedModel, dict[str, set[str]]]
"""A model, and the report of Transformers on the weights that do not fit."""
REPORTED: dict[str, Any] = {
    "local_files_only": True,
    "output_loading_info": True,
    "ignore_mismatched_sizes": True,
}
"""With these settings, `_require_whole` reports weights that do not fit."""


def choose_device(allow_cpu: bool) -> tuple[torch.device, str]:
    """Returns the GPU and its name, or the CPU if it is allowed and there is no GPU. Raises TrainerFailure GPUFault if
    no GPU works and the CPU is not allowed, or if only some of the ranks have a GPU."""
    device, name = _device(allow_cpu)
    kinds = gather(device.type)
    if len(set(kinds)) > 1:
        without = f"Rank {kinds.index('cpu')} of {len(kinds)}: The process found no working GPU, and other ranks did."
        raise TrainerFailure(FailureReason.GPU_FAULT, without)
    return device, name


def _device(allow_cpu: bool) -> tuple[torch.device, str]:
    try:
        device = torch.device("cuda", 0)
        # A broken driver or a stuck GPU shows only when the device computes.
        torch.ones(8, device=device).sum().item()
        return device, torch.cuda.get_device_name(device)
    except (RuntimeError, AssertionError) as error:
        if not allow_cpu:
            cause = str(error).splitlines()[0].rstrip(".")
            finding = by_rank(f"The pod found no working GPU: {cause}.")
            raise TrainerFailure(FailureReason.GPU_FAULT, finding) from error
        return torch.device("cpu"), "cpu"


def whole_model(folder: Path) -> AbstractContextManager[None]:
    """Allows the work inside the time to read or write the whole model in `folder` once."""
    return disk_work(bytes_in(folder))


def load_model(
    folder: Path, method: MethodType, device: torch.device, quantization: Quantization | None = None
) -> PreTrainedModel:
    """Loads the model in `folder`: frozen, in bf16, with its own dropout off. For QLoRA its linear layers are in 4 bits
    as `quantization` defines, and the rest is in the compute dtype.

    Raises TrainerFailure ModelUnsupported if Transformers cannot load the model, or a weight is missing."""
    four_bit = (quantization or Quantization()) if method is MethodType.QLORA else None

    def read(kind: Any, config: PreTrainedConfig) -> Loaded:
        settings = _four_bit(four_bit, config.model_type in MAMBAS) if four_bit else None
        with whole_model(folder):
            found: Loaded = kind.from_pretrained(
                folder,
                config=config,
                dtype=_compute_dtype(four_bit),
                device_map={"": device},
                quantization_config=settings,
                use_safetensors=True,
                trust_remote_code=False,
                **REPORTED,
            )
        return found

    model = _loaded(folder, read)
    if four_bit:
        _keep_four_bit_trainable(model)
    return model


def load_without_weights(folder: Path, headers: Sizes) -> PreTrainedModel:
    """Returns what `load_model` returns for LoRA, on the meta device: from the settings in `folder` and from the shapes
    of the tensors in its files, by their names there. Raises what `load_model` does."""

    def read(kind: Any, config: PreTrainedConfig) -> Loaded:
        meta = torch.device("meta")
        weights = {name: torch.empty(*size, dtype=torch.bfloat16, device=meta) for name, size in headers.items()}
        with meta:
            whole = type(kind.from_config(config))  # only a model's own class can be loaded without a folder
        found: Loaded = whole.from_pretrained(
            None, config=config, state_dict=weights, dtype=torch.bfloat16, device_map={"": meta}, **REPORTED
        )
        return found

    return _loaded(folder, read)


def _loaded(folder: Path, read: Callable[[Any, PreTrainedConfig], Loaded]) -> PreTrainedModel:
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        switch_dropout_off(config)
        _forget_unknown_padding(config)
        if hasattr(config, "rescale_every"):
            # Against overflow in fp16, RWKV halves its weights whenever it leaves training mode. They would be saved
            # so.
            config.rescale_every = 0
        loader = AutoModelForImageTextToText if is_composite(config.to_dict()) else AutoModelForCausalLM
        model, report = read(loader, config)
    except (OSError, ValueError, KeyError, AttributeError, ImportError) as error:
        cause = next(iter(str(error).splitlines()), type(error).__name__)[:300].rstrip(".")
        raise TrainerFailure(
            FailureReason.MODEL_UNSUPPORTED, f"Transformers cannot load the model: {cause}."
        ) from error
    _require_whole(model, report)
    model.requires_grad_(False)
    use_document_attention(model)
    use_experts(model)
    return model


def switch_dropout_off(config: PreTrainedConfig) -> None:
    """Sets every dropout in the config, or in a part of it, to 0, and the random noise before Mixtral's router.

    GPT-2 and Phi-2 have a dropout of 0.1, and most later models have none. Its random numbers would depend on how rows
    are packed."""
    for name, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            switch_dropout_off(value)
        elif ("drop" in name or name == "router_jitter_noise") and isinstance(value, (int, float)):
            setattr(config, name, type(value)(0))


def _forget_unknown_padding(config: PreTrainedConfig) -> None:
    """Removes a padding token for which the embedding has no row. PyTorch would refuse to build the embedding, and the
    trainer does not use this token."""
    text = config.get_text_config()
    padding = getattr(text, "pad_token_id", None)
    if padding is not None and not 0 <= padding < text.vocab_size:
        text.pad_token_id = None


def mixed_precision(method: MethodType, quantization: Quantization | None) -> Literal["bf16", "no"]:
    """Returns Accelerate's name for the dtype of matrix products."""
    fp32 = method is MethodType.QLORA and quantization and quantization.compute_dtype is ComputeDtype.FLOAT32
    return "no" if fp32 else "bf16"


def _compute_dtype(quantization: Quantization | None) -> torch.dtype:
    fp32 = quantization is not None and quantization.compute_dtype is ComputeDtype.FLOAT32
    return torch.float32 if fp32 else torch.bfloat16


def _four_bit(quantization: Quantization, mamba: bool) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        # Mamba reads the weights of dt_proj directly, without calling the layer.
        llm_int8_skip_modules=["dt_proj", "lm_head"] if mamba else None,
        bnb_4bit_quant_type=quantization.type.lower(),
        bnb_4bit_use_double_quant=quantization.double_quant,
        bnb_4bit_compute_dtype=_compute_dtype(quantization),
    )


def _require_whole(model: PreTrainedModel, report: dict[str, set[str]]) -> None:
    """Raises TrainerFailure ModelUnsupported if weights are missing. Transformers would fill them with random numbers
    and print a warning."""
    absent = sorted(map(str, report["missing_keys"] or report["mismatched_keys"]))
    if absent:
        raise TrainerFailure(
            FailureReason.MODEL_UNSUPPORTED,
            f"The weights do not fit config.json: {len(absent)} are missing or have another shape. The first one is "
            f"{absent[0]}.",
            "Use the config.json and the weights of the same unquantized model.",
        )
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        raise TrainerFailure(
            FailureReason.MODEL_UNSUPPORTED,
            f"{type(model).__name__} is not a usual causal language model: its forward() has no logits_to_keep.",
        )


def _keep_four_bit_trainable(model: nn.Module) -> None:
    """Keeps gradients flowing through 4-bit layers on CPUs with AVX512-BF16.

    There bitsandbytes repacks a 4-bit layer in its first forward pass without gradients, such as the evaluation of the
    base model. A repacked layer passes no gradient on."""
    from bitsandbytes.nn import Linear4bit  # only here, so that LoRA and Full train without bitsandbytes

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Loads the model's own tokenizer. Preflight has checked that this works."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        folder, trust_remote_code=False, local_files_only=True
    )
    return tokenizer


def greedy_generation(model: PreTrainedModel, stop_token_ids: Sequence[int], max_new_tokens: int) -> GenerationConfig:
    """Returns settings for greedy decoding that stops at `stop_token_ids` and at the model's own end tokens.

    It clears the model's generation_config (sampling, penalties), because decoding would not be greedy with it."""
    own = model.generation_config.eos_token_id
    own = own if isinstance(own, list) else [] if own is None else [own]
    ends = sorted({*stop_token_ids, *known(own, model.config.get_text_config().vocab_size)})
    model.generation_config = GenerationConfig()
    return GenerationConfig(do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=ends, pad_token_id=ends[0])
