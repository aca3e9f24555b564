"""Checks that the adapter that a job continues from (`method.lora.from`) matches the spec and the base model.

Preflight downloads the adapter once. All attempts use this copy, so the adapter at `method.lora.from` may change."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune_api.reasons import FailureReason
from finetune_api.spec.method import Lora, LoraBias, Method, MethodType
from finetune_trainer.base.base_model import BaseModel
from finetune_trainer.base.composite import adapter_in_memory
from finetune_trainer.base.experts import is_stack, stack_of
from finetune_trainer.base.model_files import ADAPTER, ADAPTER_CONFIG, ADAPTER_WEIGHTS
from finetune_trainer.base.weights import read_header
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.sizing.model_shape import Sizes
from finetune_trainer.sizing.saved_modules import PEFT_PREFIX, is_saved
from finetune_trainer.storage.job_storage import JobStorage, join

PEFT_BIAS = {LoraBias.NONE: "none", LoraBias.ALL: "all", LoraBias.LORA_ONLY: "lora_only"}
PLAIN_INITS = (True, False, "gaussian", "eva", "orthogonal")
"""Values of PEFT's init_lora_weights that do not change the base model. Other values change its weights when PEFT loads
the adapter (pissa, olora, corda, loftq, lora_ga), or train only A (mica)."""
UNNAMED = (
    "rank_pattern",
    "alpha_pattern",
    "lora_bias",
    "layer_replication",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
    "megatron_config",
)
"""Settings of a PEFT adapter that change its result or its training, and that method.lora does not support. Inference
servers ignore these settings or refuse the adapter."""
ANOTHER = "Set spec.method.lora.from to the folder of a LoRA adapter that PEFT saved."
ENDINGS = (".lora_A.weight", ".lora_B.weight")


def fetch_fitting_adapter(storage: JobStorage, method: Method, base: BaseModel, folder: Path) -> None:
    """Downloads the adapter at `method.lora.from`, if there is one, to `folder`, and checks what it has downloaded.

    Raises TrainerFailure ModelNotFound if there is no adapter. Raises SpecInvalid if the adapter does not match the
    base model, or, if it is trained further, the settings in `method.lora`."""
    lora = method.lora
    uri = lora.from_
    if uri is None:
        return
    files = storage.list_folder(uri, 1)
    if missing := [name for name in ADAPTER if name not in files]:
        whole = "config.json" in files
        raise TrainerFailure(
            FailureReason.MODEL_NOT_FOUND,
            f"spec.method.lora.from: there is no {missing[0]} in {uri}{', but a whole model' * whole}.",
            "Set spec.model.uri to this folder, and remove spec.method.lora.from."
            if whole
            else "Correct spec.method.lora.from, or upload the adapter to that folder.",
        )
    storage.download_folder(uri, folder, lambda path: path in ADAPTER, 1)
    settings = settings_of((folder / ADAPTER_CONFIG).read_bytes(), uri)
    if method.type is MethodType.NONE:
        lora = Lora()  # the adapter's own settings are used
    else:
        require_settings(settings, lora, uri)
    copy = folder / ADAPTER_WEIGHTS
    tensors = read_header(storage, join(uri, ADAPTER_WEIGHTS), copy.stat().st_size, copy)
    experts = settings.get("target_parameters") or []
    shapes = {name: tensor.shape for name, tensor in adapter_in_memory(base.model_type, tensors).items()}
    require_layers(shapes, base.sizes, lora, uri, experts)


def settings_of(config: bytes, uri: str) -> dict[str, Any]:
    """Returns the adapter's settings (adapter_config.json). Raises TrainerFailure SpecInvalid unless it is a LoRA
    adapter."""
    try:
        found: dict[str, Any] = json.loads(config)
        kind = found["peft_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise _misfit(f"{join(uri, ADAPTER_CONFIG)} contains no settings of an adapter", ANOTHER) from error
    if kind != "LORA":
        raise _misfit(f"the adapter in {uri} is of type {kind}, not LORA", ANOTHER)
    return found


def require_settings(found: Mapping[str, Any], lora: Lora, uri: str) -> None:
    """Raises TrainerFailure SpecInvalid unless the settings of the adapter are equal to those of the spec."""
    biases = {theirs: ours for ours, theirs in PEFT_BIAS.items()}
    for field, wanted, got in (
        ("r", lora.r, found.get("r")),
        ("alpha", lora.alpha, found.get("lora_alpha")),
        ("useRslora", lora.use_rslora, bool(found.get("use_rslora"))),
        ("useDora", lora.use_dora, bool(found.get("use_dora"))),
        ("bias", lora.bias, biases.get(str(found.get("bias")), "None")),
        ("modulesToSave", _needed(lora.modules_to_save), _needed(found.get("modules_to_save"))),
    ):
        if wanted != got:
            raise _misfit(
                f"the adapter in {uri} has {field} {_yaml(got)}", f"Set spec.method.lora.{field} to {_yaml(got)}."
            )
    named = [field for field in UNNAMED if found.get(field)]
    if not all(is_stack(name) for name in found.get("target_parameters") or []):
        named.append("target_parameters")
    if named:
        raise _misfit(
            f"the adapter in {uri} has {named[0]}, which spec.method.lora does not support",
            f"Continue from an adapter without {named[0]}.",
        )
    init = found.get("init_lora_weights") or False
    if init not in PLAIN_INITS:
        raise _misfit(
            f"the adapter in {uri} was created with init_lora_weights {_yaml(init)}, which changes the base model when "
            "the adapter is loaded",
            "Convert the adapter first, with PEFT's save_pretrained and path_initial_model_for_weight_conversion.",
        )


def require_layers(adapter: Sizes, base: Sizes, lora: Lora, uri: str, experts: Sequence[str] = ()) -> None:
    """Raises TrainerFailure SpecInvalid unless each matrix of the adapter has the shape of its layer in the base model,
    and the layers are those of `lora.targetModules`. `adapter`: shapes by PEFT's names; `base`: shapes by the model's
    names; `experts`: the adapter's target_parameters."""
    layers = {
        name.removeprefix(PEFT_PREFIX).removesuffix(end) for name in adapter for end in ENDINGS if name.endswith(end)
    }
    if not layers:
        raise _misfit(f"{join(uri, ADAPTER_WEIGHTS)} contains no matrix of a LoRA adapter", ANOTHER)
    for layer in sorted(layers):
        down, up = (adapter.get(f"{PEFT_PREFIX}{layer}{end}", ()) for end in ENDINGS)
        shape = _shape_of(stack_of(layer, layers, experts), base)
        # The adapters of all experts of a layer are one matrix.
        together = shape[0] if shape is not None and len(shape) == 3 else 1
        fits = shape is not None and len(down) == len(up) == 2 and down[0] % together == 0
        if shape is None or not fits or sorted((up[0], down[1])) != sorted(shape[-2:]):
            problem = "does not have" if shape is None else f"has with the shape {' x '.join(map(str, shape))}"
            raise _misfit(
                f"the adapter in {uri} has a matrix for {layer}, which the base model {problem}",
                "Set spec.model.uri to the model that the adapter was trained on.",
            )
    layers = {stack_of(layer, layers, experts) for layer in layers}
    wanted = lora.target_modules
    chosen = {name for name in wanted if any(f".{layer}".endswith(f".{name}") for layer in layers)}
    others = [layer for layer in layers if not any(f".{layer}".endswith(f".{name}") for name in wanted)]
    if wanted != ["all-linear"] and (others or len(chosen) < len(wanted)):
        names = ", ".join(sorted({layer.rpartition(".")[2] for layer in layers})[:12])
        raise _misfit(
            f"the adapter in {uri} is for the layers {names}",
            "Set spec.method.lora.targetModules to these layers, or to all-linear.",
        )


def _shape_of(layer: str, base: Sizes) -> Sequence[int] | None:
    """Returns the shape of a layer's weight, or None if the model has no such layer. Older checkpoints omit the first
    parts of the name (transformer.)."""
    parts = layer.split(".")
    names = (".".join(parts[i:]) for i in range(len(parts)))
    # The stacked weights of experts are no layers, so their names do not end with weight.
    return next((base[full] for name in names for full in (f"{name}.weight", name) if full in base), None)


def _needed(names: Sequence[str] | None) -> list[str]:
    """Returns the names of modulesToSave without those that another one selects too. PEFT adds the full name of the
    embedding to the settings of an adapter if the output head is tied to it."""
    return sorted(
        name for name in names or [] if not any(name != other and is_saved(name, [other]) for other in names or [])
    )


def _yaml(value: Any) -> str:
    return json.dumps(value)


def _misfit(finding: str, remedy: str) -> TrainerFailure:
    return TrainerFailure(FailureReason.SPEC_INVALID, f"spec.method.lora.from: {finding}.", remedy)
