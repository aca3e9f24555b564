"""The fields of a FineTuneJob about the method: which weights are trained, and how the base weights are stored in
memory."""

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
    """Which biases of the base model are trained in addition to the adapter."""

    NONE = "None"
    ALL = "All"
    LORA_ONLY = "LoraOnly"


class QuantizationType(StrEnum):
    """The 4-bit number format of the base weights."""

    NF4 = "NF4"
    FP4 = "FP4"


class ComputeDtype(StrEnum):
    """The number format of matrix multiplications."""

    BFLOAT16 = "BFloat16"
    FLOAT32 = "Float32"


class Lora(ApiModel):
    """Settings of LoRA, with the names of PEFT's LoraConfig."""

    r: Annotated[int, Field(ge=1, le=512)] = 16
    """Rank of the update matrices. A higher rank can learn more and uses more memory. Each expert of a
    mixture-of-experts model has update matrices of this rank."""
    alpha: Annotated[int, Field(ge=1, le=4096)] = 32
    """Scale of the update: the update is multiplied by alpha / r. A usual value is twice the rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the adapter's inputs that are dropped during training. Dropout helps small data sets and slows down
    learning."""
    target_modules: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=256)]],
        Field(min_length=1, max_length=64),
        SchemaKeys(
            rules(
                (
                    "!self.exists(m, m == 'all-linear') || self.size() == 1",
                    "all-linear already includes every linear layer: set only all-linear, or list the modules "
                    "without it",
                )
            )
            | {"x-kubernetes-list-type": "set"}
        ),
    ] = Field(default=["all-linear"])
    """Modules that get an adapter, by the end of their name (q_proj, v_proj). all-linear means every linear layer
    except the output head, and all experts of a mixture-of-experts model (gate_up_proj, down_proj), but not its
    router."""
    bias: LoraBias = LoraBias.NONE
    """Biases of the base model that are trained too: None, All, or LoraOnly for the biases of modules with an adapter.
    Some inference servers cannot load trained biases."""
    use_rslora: bool = False
    """If true, the update is multiplied by alpha / sqrt(r) instead of alpha / r, so that adapters with a high rank
    learn well (rsLoRA, Kalajdzievski 2023). A smaller alpha is usual with this setting."""
    use_dora: bool = False
    """If true, the magnitude and the direction of each weight column are learned separately (DoRA, Liu et al. 2024).
    DoRA is often better at low ranks, and slower."""
    modules_to_save: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=256)]],
            Field(min_length=1, max_length=64),
            SchemaKeys({"x-kubernetes-list-type": "set"}),
        ]
        | None
    ) = None
    """Modules whose full weights are trained and saved with the adapter, by the end of their name, for example
    embed_tokens and lm_head. As in PEFT, norm also selects input_layernorm. If the output head is tied to embed_tokens,
    either name trains the shared weights. Default: none."""
    from_: Annotated[PrefixUri | None, Field(alias="from")] = None
    """Folder of an adapter to continue from, as s3://BUCKET/PREFIX or pvc://CLAIM/PATH. The folder contains
    adapter_config.json and adapter_model.safetensors; for example, output.uri of an earlier job followed by
    /adapter. It must be a LoRA adapter of this base model with the same r, alpha, useRslora and useDora. The modules
    of that adapter are kept if targetModules is all-linear. Default: training starts with a new adapter."""


class Quantization(ApiModel):
    """Quantization of the base weights for QLoRA, with the names of bitsandbytes."""

    type: QuantizationType = QuantizationType.NF4
    """Number format. NF4 is designed for normally distributed weights (Dettmers et al. 2023). FP4 is a plain 4-bit
    floating-point number."""
    double_quant: bool = True
    """Whether the scales are quantized too. Double quantization saves 0.4 bits per weight."""
    compute_dtype: ComputeDtype = ComputeDtype.BFLOAT16
    """Number format of matrix multiplications with the weights. Float32 is several times slower and is meant for
    comparisons."""


class Method(ApiModel):
    """How the weights are tuned."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.quantization) || self.type == 'QLoRA'",
                "quantization applies only to type QLoRA: set type to QLoRA, or remove quantization",
            ),
            (
                "!has(self.lora) || !has(self.lora.from) || self.type != 'Full'",
                "type Full trains no adapter and cannot continue from one: remove lora.from, or set type to LoRA",
            ),
            (
                "!has(self.type) || self.type != 'None' || (has(self.lora) && has(self.lora.from))",
                "type None evaluates an existing adapter: set lora.from to the folder of that adapter",
            ),
        )
    )

    type: MethodType = MethodType.AUTO
    """How the weights are tuned. LoRA: low-rank adapters are trained on base weights in bfloat16. QLoRA: the same on
    base weights in 4 bits; this needs about a quarter of the memory and is somewhat slower. Full: every weight is
    trained, in fp32 with computation in bfloat16; this needs 18 bytes of memory per parameter, and the result is a
    whole model. Auto: LoRA if it fits into the GPU memory, otherwise QLoRA; status.resolved reports the choice and
    its cause. None: nothing is trained; the adapter in lora.from is evaluated with its own settings on base weights
    in bfloat16. Run None again on newer test rows to detect drift."""
    lora: Lora = Lora()
    """Settings of the adapter. Method Full does not use them."""
    quantization: Quantization | None = None
    """Quantization of the base weights for QLoRA. Default: NF4 with double quantization, computing in bfloat16."""
