"""The optimizer: AdamW, or AdamW with 8-bit state."""

from torch import nn
from torch.optim import AdamW, Optimizer

from finetune_api.spec import training as recipe
from finetune_trainer.model.parameters.trainable import trainable_parameters
from finetune_trainer.sizing.memory import ADAM

BETAS = (0.9, 0.999)
"""AdamW's betas, as in QLoRA (Dettmers et al. 2023, appendix B.2) and in PyTorch's default."""


def make_optimizer(model: nn.Module, training: recipe.Training, paged: bool = True) -> Optimizer:
    """Returns the optimizer of the model's trainable parameters, with learning rate 0: each step sets the rate.
    `paged`: whether PagedAdamW8bit may move its moments to the host's memory if the GPU is full."""
    parameters = trainable_parameters(model)
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    # Biases, weights of norms and DoRA's magnitudes get no weight decay.
    vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
    decays = ((matrices, training.weight_decay), (vectors, 0.0))
    groups = [{"params": members, "weight_decay": decay} for members, decay in decays if members]
    if training.optimizer is recipe.Optimizer.ADAMW:
        return AdamW(groups, lr=0.0, betas=BETAS, fused=True)
    # Imported only here, so that AdamW works on a machine without bitsandbytes.
    from bitsandbytes.optim import AdamW8bit, GlobalOptimManager, PagedAdamW8bit

    manager = GlobalOptimManager.get_instance()
    manager.initialize()  # it identifies parameters by id, and a parameter of an earlier model may have had the same id
    manager.override_config(embeddings(model), "optim_bits", 32)
    # On a CPU there is no host memory to move the moments to.
    kind = PagedAdamW8bit if paged and parameters[0].device.type == "cuda" else AdamW8bit
    optimizer: Optimizer = kind(groups, lr=0.0, betas=BETAS)
    return optimizer


def embeddings(model: nn.Module) -> list[nn.Parameter]:
    """Returns the trainable weights of embeddings. Their moments are never in 8 bits, as in Transformers' Trainer.

    Tokens occur so unevenly that the gradients of embeddings vary most (Dettmers et al. 2022)."""
    ids = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return [parameter for parameter in trainable_parameters(model) if id(parameter) in ids]


def state_bytes(model: nn.Module, optimizer: recipe.Optimizer) -> int:
    """Returns the size of the optimizer's state after its first step, in bytes."""
    wide = sum(weight.numel() for weight in embeddings(model))
    others = sum(parameter.numel() for parameter in trainable_parameters(model)) - wide
    return round(ADAM["AdamW"] * wide + ADAM[optimizer.value] * others)
