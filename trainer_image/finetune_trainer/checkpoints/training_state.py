"""What one whole optimizer step leaves in a model and its optimizer: the trained parameters and their state, by name.

The names are those of the model's parameters, so they do not depend on the number of processes or on the order of the
optimizer's groups."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.optim import Optimizer

from finetune_trainer.model.trainable import trained_weights

MODEL, OPTIMIZER = "model/", "optimizer/"

Numbers = dict[str, int | float]
"""State of an optimizer that is not a tensor, by its key: PagedAdamW8bit counts its steps in an int."""


def live_state(model: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Tensor], Numbers]:
    """Returns the tensors and numbers of the training as they are now, without copying them.

    Keys are "model/PARAMETER" and "optimizer/PARAMETER/STATE". A parameter that no step has changed has no state."""
    weights = trained_weights(model)
    tensors = {f"{MODEL}{name}": weight.detach() for name, weight in weights.items()}
    numbers: Numbers = {}
    for name, weight in weights.items():
        for key, value in optimizer.state.get(weight, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{OPTIMIZER}{name}/{key}"] = value
            else:
                numbers[f"{OPTIMIZER}{name}/{key}"] = value
    return tensors, numbers


def misfit(model: nn.Module, path: Path) -> str | None:
    """Returns a clause that says why the file's weights are not those of the model, or None if they are."""
    weights = {f"{MODEL}{name}": weight for name, weight in trained_weights(model).items()}
    with safe_open(path, "pt") as file:
        found = {name for name in file.keys() if name.startswith(MODEL)}  # noqa: SIM118 - not a dict
        if differing := found ^ weights.keys():
            return f"it has other trained parameters than the model, for example {min(differing).removeprefix(MODEL)}"
        for name, weight in weights.items():
            shape = tuple(file.get_slice(name).get_shape())
            if shape != tuple(weight.shape):
                return f"its parameter {name.removeprefix(MODEL)} has shape {shape} instead of {tuple(weight.shape)}"
    return None


@torch.no_grad()
def restore(model: nn.Module, optimizer: Optimizer, path: Path, numbers: Mapping[str, int | float]) -> None:
    """Gives the model and its new optimizer the state that `live_state` describes, from a file without a `misfit`."""
    weights = trained_weights(model)
    with safe_open(path, "pt") as file:
        for name, weight in weights.items():
            weight.copy_(file.get_tensor(f"{MODEL}{name}"))
        keys, counts = _by_parameter(file.keys()), _by_parameter(numbers)
        for group, place, name, weight in _places(optimizer, weights):
            state = {word: file.get_tensor(key) for word, key in keys[name].items()}
            counted = {word: numbers[key] for word, key in counts[name].items()}
            if state or counted:
                _fill(optimizer, weight, state, counted, (group, place))


def _by_parameter(keys: Iterable[str]) -> dict[str, dict[str, str]]:
    """Returns the keys of the optimizer's state: for each parameter the whole key by its last part."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for key in keys:
        if key.startswith(OPTIMIZER):
            name, _, word = key.removeprefix(OPTIMIZER).rpartition("/")
            found[name][word] = key
    return found


def _places(optimizer: Optimizer, weights: Mapping[str, nn.Parameter]) -> Iterator[tuple[int, int, str, nn.Parameter]]:
    """Yields each parameter's group, its place in the group, its name, and the parameter."""
    names = {id(weight): name for name, weight in weights.items()}
    for group, settings in enumerate(optimizer.param_groups):
        for place, weight in enumerate(settings["params"]):
            yield group, place, names[id(weight)], weight


def _fill(
    optimizer: Optimizer,
    weight: Tensor,
    state: Mapping[str, Tensor],
    counted: Mapping[str, int | float],
    at: tuple[int, int],
) -> None:
    """Sets the state of one parameter. bitsandbytes allocates its own: it may be in memory that the GPU pages."""
    if allocate := getattr(optimizer, "init_state", None):
        allocate(optimizer.param_groups[at[0]], weight, *at)
        for key, saved in state.items():
            optimizer.state[weight][key].copy_(saved)
        optimizer.state[weight].update(counted)
        return
    optimizer.state[weight] = {
        key: torch.empty_like(weight, dtype=saved.dtype).copy_(saved)
        if saved.shape == weight.shape
        else saved.to(weight.device, copy=True)
        for key, saved in state.items()
    } | dict(counted)
