"""Which modules `method.lora.modulesToSave` selects. The rule is that of PEFT, which trains them."""

from collections.abc import Sequence

from finetune_trainer.sizing.model_shape import ModelShape

PEFT_PREFIX = "base_model.model."
"""The prefix that PEFT adds to the names of the base model's modules."""


def is_saved(module: str, names: Sequence[str]) -> bool:
    """Returns whether PEFT trains `module` whole because its name ends with one of `names`. The end need not begin at a
    dot: norm selects input_layernorm too. PEFT's targetModules are different: their ends begin at a dot."""
    return f"{PEFT_PREFIX}{module}".endswith(tuple(names))


def is_in_saved(module: str, names: Sequence[str]) -> bool:
    """Returns whether PEFT trains `module` whole, by its own name or by that of a module that contains it."""
    return any(is_saved(outer, names) for outer in with_outer(module))


def with_outer(module: str) -> list[str]:
    """Returns the name of a module, and those of the modules that contain it."""
    parts = module.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


def saved_parameters(shape: ModelShape, names: Sequence[str]) -> int:
    """Returns the parameters of the modules that `names` select. They are trained fully, as copies next to the adapter.
    Matrices of the blocks are found by name. Any other name counts as the embedding or the output head, which have the
    same size."""
    blocks = [matrix for matrix in shape.matrices if is_in_saved(matrix.name, names)]
    tables = min(len(saved_tables(shape, names)), 1 if shape.tied else 2)
    return sum(matrix.parameters for matrix in blocks) + tables * shape.hidden * shape.vocabulary


def saved_tables(shape: ModelShape, names: Sequence[str]) -> list[str]:
    """Returns those of `names` that select no matrix of the blocks."""
    return [name for name in names if not any(is_in_saved(matrix.name, [name]) for matrix in shape.matrices)]
