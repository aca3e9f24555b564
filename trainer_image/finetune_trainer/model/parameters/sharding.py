"""Shards the weights of a model over the ranks with FSDP2, if the model does not fit one GPU.

Each decoder layer is a group. Its weights are gathered from all ranks before the layer computes, and freed after it.

- LoRA: the frozen weights of the layers are sharded. The adapter, the embeddings and the output head stay whole on each
  rank. The adapter is small, so its gradients, optimizer state and checkpoints are as in other trainings. The chunked
  loss reads the weight of the head outside of the head's forward pass.
- Full: all trained weights are sharded, each with its gradient and its optimizer state. Those outside of the layers are
  one more group.

The weights for images, if the model has any, stay whole: they are frozen, and training does not use them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import safe_open
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from transformers import PreTrainedModel

from finetune_api.reasons import FailureReason
from finetune_api.spec.method import MethodType
from finetune_trainer.model.loss import frozen_head
from finetune_trainer.model.parameters.loading import load_model
from finetune_trainer.model.parameters.targets import tuned_modules
from finetune_trainer.model.parameters.tensor_file import write_tensors
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.pod.liveness.heartbeat import attended, disk_work
from finetune_trainer.pod.rank import is_first_of_node
from finetune_trainer.ranks.group import gather
from finetune_trainer.ranks.shards import connected, is_shard, is_sharded, mesh, send

CPU = torch.device("cpu")


def shard(
    model: nn.Module, device: torch.device, bf16: bool, prepare: Callable[[nn.Module], None] = lambda module: None
) -> None:
    """Shards the weights of `model`, which is on the CPU, over the ranks, and moves the shards to `device`. All ranks
    have to call it.

    `bf16`: whether trained weights of the layers are gathered in bf16. They are in fp32, and autocast would convert
    them anyway, but it would keep the results of all layers at a time. `prepare`: is called with each layer, and with
    the whole model after the layers. It may convert weights, one layer at a time. Raises TrainerFailure
    ModelUnsupported if the layers of the model are not known."""
    is_full = not isinstance(model, PeftModel) and any(parameter.requires_grad for parameter in model.parameters())
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    for layer in attended(decoder_layers(base)):
        _move(layer, device)
        prepare(layer)
        kept = set() if is_full else {parameter for parameter in layer.parameters() if parameter.requires_grad}
        _shard(layer, device, torch.bfloat16 if bf16 and is_full else None, kept)
    _move(model, device)
    prepare(model)
    kept = {weight for weight in model.parameters() if not (weight.requires_grad if is_full else is_shard(weight))}
    _shard(base, device, None, kept)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)
    if isinstance(model, PeftModel):
        # PEFT calls the forward method of the base model. Only a call of the model itself gathers the weights.
        model.base_model.forward = base.__call__


def load_sharded(folder: Path, method: MethodType, device: torch.device) -> PreTrainedModel:
    """Loads the model in `folder` for LoRA or Full: frozen, in bf16, with shards of its weights on `device`. Raises
    what `load_model` and `shard` raise."""
    model = load_model(folder, method, CPU)
    shard(model, device, bf16=True)
    return model


def collected(model: nn.Module, folder: Path, file: Path) -> PreTrainedModel | None:
    """Returns a whole model on the CPU with the weights of `model`, in bf16, on the first rank of each node, and None
    on the others. All ranks have to call it. `folder`: the files of its base model.

    Its weights lie in `file`, which is mapped into memory: the pod's memory need not hold a whole model. The file has
    no name any more, so its disk space is free as soon as the returned model is."""
    weights = dict(model.named_parameters())
    if not is_first_of_node():
        send(weight.detach() for weight in weights.values())
        return None
    with disk_work(torch.bfloat16.itemsize * sum(weight.numel() for weight in weights.values())):
        write_tensors(file, weights, torch.bfloat16)
    copy = load_model(folder, MethodType.FULL, CPU)
    with safe_open(file, "pt") as written:
        for name, parameter in copy.named_parameters():
            parameter.data = written.get_tensor(name)
    file.unlink()
    return copy


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """Returns the layers whose weights are gathered together: those that Transformers never splits over devices. Of a
    model with images, returns the layers of its language model. Raises TrainerFailure ModelUnsupported if there are
    none."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    layers = [module for name, module in tuned_modules(model) if type(module).__name__ in names]
    inner = {id(module) for layer in layers for module in layer.modules() if module is not layer}
    layers = [layer for layer in layers if id(layer) not in inner]
    if not layers:
        raise TrainerFailure(
            FailureReason.MODEL_UNSUPPORTED,
            f"The weights of {type(model).__name__} cannot be sharded over GPUs, because its layers are not known.",
            "Use a GPU type with more memory, or spec.method.type QLoRA.",
        )
    return layers


def _move(module: nn.Module, device: torch.device) -> None:
    """Moves the parameters of `module` that are not sharded to `device`. In the pod's memory they are often a part of a
    mapped file. A conversion there would make copies, at the same time on each rank."""
    for parameter in module.parameters():
        if not is_shard(parameter):
            parameter.data = parameter.data.to(device)


def _shard(module: nn.Module, device: torch.device, dtype: torch.dtype | None, kept: set[nn.Parameter]) -> None:
    """Shards the parameters of `module` that are not sharded yet. `kept`: those that stay whole.

    FSDP2 would average the gradients. Its average over gloo is a sum, and Adam hides a wrong scale. So both settings
    name the sum."""
    fully_shard(
        module,
        mesh=mesh(device.type),
        # Otherwise the weights outside of the layers would stay whole after a measurement.
        reshard_after_forward=True,
        mp_policy=MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False),
        ignored_params=kept,
    )
    assert isinstance(module, FSDPModule)
    module.set_gradient_divide_factor(1.0)
    module.set_force_sum_reduction_for_comms(True)


@contextmanager
def in_step(model: PreTrainedModel) -> Iterator[None]:
    """Inside, each rank may call `model` without gradients as often as its own share of the work needs. All ranks have
    to enter. It changes nothing for a model that is not sharded.

    A sharded model gathers weights from all ranks in each forward pass. So a rank announces each of its passes. A rank
    that has no work left makes a pass with one token for each pass of another rank."""
    if not is_sharded(model):
        yield
        return
    frozen_head(model)  # its trial is a forward pass that all ranks make, even those without rows
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    announcing = base.register_forward_pre_hook(lambda *_: _announce(), prepend=True)
    with connected():
        try:
            yield
        finally:
            announcing.remove()
        token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        while any(gather(False)):
            base(input_ids=token, use_cache=False)


def _announce() -> None:
    gather(True)
