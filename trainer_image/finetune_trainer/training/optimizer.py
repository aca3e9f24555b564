"""What turns gradients into updates."""

from torch import nn
from torch.optim import AdamW, Optimizer

from finetune_api.spec import training as recipe
from finetune_trainer.model.trainable import trainable_parameters
from finetune_trainer.sizing.memory import ADAM

BETAS = (0.9, 0.999)
"""AdamW's, as in QLoRA (Dettmers et al. 2023, appendix B.2) and in PyTorch."""


def make_optimizer(model: nn.Module, training: recipe.Training, paged: bool = True) -> Optimizer:
    """The optimizer of the model's trainable parameters, for a learning rate that each step sets. `paged`: whether the
    moments of PagedAdamW8bit may leave a GPU that is full for the host's memory."""
    parameters = trainable_parameters(model)
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    # Biases, the weights of norms and DoRA's magnitudes do not decay.
    vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
    decays = ((matrices, training.weight_decay), (vectors, 0.0))
    groups = [{"params": members, "weight_decay": decay} for members, decay in decays if members]
    if training.optimizer is recipe.Optimizer.ADAMW:
        return AdamW(groups, lr=0.0, betas=BETAS, fused=True)
    # Only here, so that a machine without bitsandbytes trains with AdamW.
    from bitsandbytes.optim import AdamW8bit, GlobalOptimManager, PagedAdamW8bit

    manager = GlobalOptimManager.get_instance()
    manager.initialize()  # it knows parameters by their id, which one of an earlier model may have had
    manager.override_config(embeddings(model), "optim_bits", 32)
    # Only a GPU's memory can spill over into the host's.
    kind = PagedAdamW8bit if paged and parameters[0].device.type == "cuda" else AdamW8bit
    optimizer: Optimizer = kind(groups, lr=0.0, betas=BETAS)
    return optimizer


def embeddings(model: nn.Module) -> list[nn.Parameter]:
    """The trainable weights of embeddings, whose moments are never in 8 bits, as under Transformers' Trainer: tokens
    are seen so unevenly that their gradients vary most (Dettmers et al. 2022)."""
    ids = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return [parameter for parameter in trainable_parameters(model) if id(parameter) in ids]


def state_bytes(model: nn.Module, optimizer: recipe.Optimizer) -> int:
    """What the optimizer will keep of the model's trainable parameters once it has taken a step."""
    wide = sum(weight.numel() for weight in embeddings(model))
    others = sum(parameter.numel() for parameter in trainable_parameters(model)) - wide
    return round(ADAM["AdamW"] * wide + ADAM[optimizer.value] * others)
