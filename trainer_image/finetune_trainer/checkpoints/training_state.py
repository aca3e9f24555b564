"""What one whole optimizer step leaves in a model and its optimizer: the trained parameters and their state, by name.

The names are those of the model's parameters, so they do not depend on the number of processes or on the order of the
optimizer's groups."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.optim import Optimizer

from finetune_trainer.model.parameters.tensor_file import DTYPES
from finetune_trainer.model.parameters.trainable import trained_weights
from finetune_trainer.pod.liveness.heartbeat import attended
from finetune_trainer.ranks.shards import fill

MODEL, OPTIMIZER = "model/", "optimizer/"

Numbers = dict[str, int | float]
"""State of an optimizer that is not a tensor, by its key: PagedAdamW8bit counts its steps in an int."""
Layout = tuple[tuple[int, ...], str]
"""Shape and number format of a tensor."""


def live_state(model: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Tensor], Numbers]:
    """Returns the tensors and numbers of the training as they are now, without copying them. Of sharded weights they
    are shards.

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


def misfit(model: nn.Module, optimizer: Optimizer, path: Path, numbers: Mapping[str, int | float]) -> str | None:
    """Returns a clause that says why the state is not one of this model and of its new optimizer, or None if it is.

    Another version of a library may store the state of its optimizer under other names or in other shapes."""
    with safe_open(path, "pt") as file:
        shapes = {name: _layout(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118 - not a dict
    return _other_weights(trained_weights(model), shapes) or _other_moments(model, optimizer, shapes, numbers)


def _layout(part: Any) -> Layout:
    """Returns the shape and the number format of a tensor in a file."""
    return tuple(part.get_shape()), str(part.get_dtype())


def _other_weights(weights: Mapping[str, nn.Parameter], found: Mapping[str, Layout]) -> str | None:
    named = {f"{MODEL}{name}": weight for name, weight in weights.items()}
    if differing := {name for name in found if name.startswith(MODEL)} ^ named.keys():
        return f"it has other trained parameters than the model, for example {min(differing).removeprefix(MODEL)}"
    for name, weight in named.items():
        if (shape := found[name][0]) != tuple(weight.shape):
            return f"its parameter {name.removeprefix(MODEL)} has shape {shape} instead of {tuple(weight.shape)}"
    return None


def _other_moments(
    model: nn.Module, optimizer: Optimizer, found: Mapping[str, Layout], numbers: Mapping[str, int | float]
) -> str | None:
    keys, counts = _by_parameter(found), _by_parameter(numbers)
    for group, place, name, weight in _places(optimizer, trained_weights(model)):
        if not keys[name] and not counts[name]:
            continue
        theirs: dict[str, Layout | None] = {word: found[key] for word, key in keys[name].items()}
        theirs |= dict.fromkeys(counts[name])
        ours = {
            word: (tuple(value.shape), DTYPES[value.dtype]) if isinstance(value, Tensor) else None
            for word, value in _new_state(optimizer, weight, (group, place)).items()
        }
        if ours != theirs:
            other = min(word for word in ours | theirs if ours.get(word, ()) != theirs.get(word, ()))
            return f"the optimizer's state of its parameter {name} is from another version: {other} is different"
    return None


def _new_state(optimizer: Optimizer, weight: Tensor, at: tuple[int, int]) -> Mapping[str, Any]:
    """Returns the state that the optimizer gives the parameter before its first step. Tensors may be empty."""
    if allocate := getattr(optimizer, "init_state", None):
        if not optimizer.state.get(weight):
            allocate(optimizer.param_groups[at[0]], weight, *at)
        state: Mapping[str, Any] = optimizer.state[weight]
        return state
    probe = nn.Parameter(torch.zeros(1, dtype=weight.dtype))
    probe.grad = torch.zeros_like(probe)
    one = type(optimizer)([probe])  # type: ignore[call-arg] # Optimizer itself is abstract
    one.step()
    return {
        key: torch.empty(weight.shape, dtype=value.dtype, device="meta")
        if isinstance(value, Tensor) and value.shape == probe.shape
        else value
        for key, value in one.state[probe].items()
    }


@torch.no_grad()
def restore(model: nn.Module, optimizer: Optimizer, path: Path, numbers: Mapping[str, int | float]) -> None:
    """Gives the model and its new optimizer the state that `live_state` describes, from a file without a `misfit`. Of
    sharded weights each rank takes its own shard.

    Beats at every tensor: the state of a whole model is read for many minutes."""
    weights = trained_weights(model)
    with safe_open(path, "pt") as file:
        for name, weight in attended(weights.items()):
            fill(weight, file.get_tensor(f"{MODEL}{name}"))
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
    if hasattr(optimizer, "init_state"):
        _new_state(optimizer, weight, at)
        for key, saved in attended(state.items()):
            optimizer.state[weight][key].copy_(saved)
        optimizer.state[weight].update(counted)
        return
    optimizer.state[weight] = {
        key: _like(weight, saved) if saved.shape == weight.shape else saved.to(weight.device, copy=True)
        for key, saved in attended(state.items())
    } | dict(counted)


def _like(weight: Tensor, saved: Tensor) -> Tensor:
    """Returns the values of `saved`, as many of them on this rank as `weight` has."""
    state = torch.empty_like(weight, dtype=saved.dtype)
    fill(state, saved)
    return state
