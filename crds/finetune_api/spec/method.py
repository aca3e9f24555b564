"""What a tenant writes about the method: which weights are trained, and how the base is held."""

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field

from finetune_api.model import ApiModel, SchemaKeys, rules
from finetune_api.uris import PrefixUri


class MethodType(StrEnum):
    """How the weights are tuned."""

    AUTO = "Auto"
    LORA = "LoRA"
    QLORA = "QLoRA"
    FULL = "Full"
    NONE = "None"


class LoraBias(StrEnum):
    """Which biases are trained beside the adapter."""

    NONE = "None"
    ALL = "All"
    LORA_ONLY = "LoraOnly"


class QuantizationType(StrEnum):
    """The four-bit number the base weights are held in."""

    NF4 = "NF4"
    FP4 = "FP4"


class ComputeDtype(StrEnum):
    """The number that matrices are multiplied in."""

    BFLOAT16 = "BFloat16"
    FLOAT32 = "Float32"


class Lora(ApiModel):
    """LoRA's own settings, named as PEFT's LoraConfig names them."""

    r: Annotated[int, Field(ge=1, le=512)] = 16
    """Rank of the update matrices. More learns more and costs more memory."""
    alpha: Annotated[int, Field(ge=1, le=4096)] = 32
    """Scale of the update: it is multiplied by alpha / r. Twice the rank is the usual choice."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the adapter's inputs dropped while training. Helps small data sets, slows learning."""
    target_modules: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=256)]],
        Field(min_length=1, max_length=64),
        SchemaKeys(
            rules(
                (
                    "!self.exists(m, m == 'all-linear') || self.size() == 1",
                    "all-linear already means every linear layer: write it alone, or name the modules without it",
                )
            )
            | {"x-kubernetes-list-type": "set"}
        ),
    ] = Field(default=["all-linear"])
    """Modules that get an adapter, by the end of their name (q_proj, v_proj), or all-linear for every linear layer
    but the output head."""
    bias: LoraBias = LoraBias.NONE
    """Biases of the base model that are trained too: None, All, or LoraOnly for those of the modules with an adapter.
    Not every server can load them."""
    use_rslora: bool = False
    """Multiplies the update by alpha / sqrt(r) in place of alpha / r, which keeps high ranks learning (rsLoRA,
    Kalajdzievski 2023). With it a smaller alpha is usual."""
    use_dora: bool = False
    """Learns the size of each weight column apart from its direction (DoRA, Liu et al. 2024). Often better at low
    ranks, and slower."""
    modules_to_save: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=256)]],
            Field(min_length=1, max_length=64),
            SchemaKeys({"x-kubernetes-list-type": "set"}),
        ]
        | None
    ) = None
    """Modules trained whole and saved with the adapter, by the end of their name, for example embed_tokens and lm_head.
    Default: none."""
    from_: Annotated[PrefixUri | None, Field(alias="from")] = None
    """Adapter to continue from, as s3://BUCKET/PREFIX: the folder with adapter_config.json and
    adapter_model.safetensors, such as an earlier job's output.uri with /adapter. It has to be a LoRA adapter of this
    base model with the same r, alpha, useRslora and useDora; its modules are kept when targetModules is all-linear.
    Default: a fresh adapter."""


class Quantization(ApiModel):
    """How QLoRA holds the base weights, named as bitsandbytes names it."""

    type: QuantizationType = QuantizationType.NF4
    """NF4 is made for weights, which are spread normally (Dettmers et al. 2023). FP4 is a plain 4-bit float."""
    double_quant: bool = True
    """Whether the scales are quantized too, which saves 0.4 bits a weight."""
    compute_dtype: ComputeDtype = ComputeDtype.BFLOAT16
    """What the weights are turned back into to be multiplied. Float32 is several times slower, and for comparisons."""


class Method(ApiModel):
    """How the weights are tuned."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.quantization) || self.type == 'QLoRA'",
                "quantization belongs to type QLoRA: set type to QLoRA, or remove quantization",
            ),
            (
                "!has(self.lora) || !has(self.lora.from) || self.type != 'Full'",
                "type Full trains no adapter, so there is none to continue from: remove lora.from, or set type to LoRA",
            ),
            (
                "!has(self.type) || self.type != 'None' || (has(self.lora) && has(self.lora.from))",
                "type None only evaluates, and needs an adapter for it: set lora.from to its folder",
            ),
        )
    )

    type: MethodType = MethodType.AUTO
    """LoRA trains low-rank adapters over the base weights in bfloat16. QLoRA does the same over base weights held in
    4 bits: about a quarter of the memory, somewhat slower. Full trains every weight, in fp32 with bfloat16 compute,
    and needs 18 bytes of memory a parameter; its result is a whole model. Auto: LoRA where it fits the GPU's memory,
    or else QLoRA; what was chosen, and why, is in status.resolved. None trains nothing and evaluates the adapter in
    lora.from, whose own settings hold, over bfloat16 weights: run it again on newer test rows to watch for drift."""
    lora: Lora = Lora()
    """Settings of the adapter. Full has none."""
    quantization: Quantization | None = None
    """How the base weights are held under QLoRA. Default: NF4 with double quantization, computing in bfloat16."""
