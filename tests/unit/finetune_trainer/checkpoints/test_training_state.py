"""The state of a model and its optimizer, out and in again."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from finetune_api.spec.training import Optimizer as Kind
from finetune_api.spec.training import Training
from finetune_trainer.checkpoints.training_state import live_state, misfit, restore
from finetune_trainer.model.parameters.tensor_file import open_tensors
from finetune_trainer.pod.liveness.heartbeat import beats
from finetune_trainer.training.optimizer import make_optimizer


class Model(nn.Module):
    """A matrix that has 8-bit moments, a bias, an embedding, a matrix in bf16, a parameter that gets no gradient, and a
    frozen one. The names of two of them begin alike."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.inner = nn.Linear(80, 80)
        self.inner_more = nn.Linear(80, 2, dtype=torch.bfloat16)
        self.embedding = nn.Embedding(64, 80)
        self.idle = nn.Parameter(torch.ones(3))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)


def take(model: Model, optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and name != "idle":
                draw = torch.Generator().manual_seed(step)
                parameter.grad = torch.randn(parameter.shape, generator=draw).to(parameter.dtype)
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        optimizer.step()


def made(seed: int, kind: Kind) -> tuple[Model, Optimizer]:
    model = Model(seed)
    return model, make_optimizer(model, Training(optimizer=kind, weight_decay=0.1))


@pytest.mark.parametrize("kind", Kind)
def test_later_steps_are_the_same_bit_for_bit(tmp_path: Path, kind: Kind) -> None:
    model, optimizer = made(0, kind)
    take(model, optimizer, range(3))
    tensors, numbers = live_state(model, optimizer)
    (tmp_path / "state").write_bytes(open_tensors(tensors).read())
    other, its_optimizer = made(1, kind)
    assert misfit(other, its_optimizer, tmp_path / "state", numbers) is None
    restore(other, its_optimizer, tmp_path / "state", numbers)
    assert other.idle not in its_optimizer.state, "it has no state, as in the original"
    for each, its in ((model, optimizer), (other, its_optimizer)):
        take(each, its, range(3, 6))
    ours, theirs = (live_state(*pair) for pair in ((model, optimizer), (other, its_optimizer)))
    assert ours[1] == theirs[1]
    assert ours[0].keys() == theirs[0].keys()
    assert all(torch.equal(ours[0][name], theirs[0][name]) for name in ours[0])
    assert all(ours[0][name].dtype == theirs[0][name].dtype for name in ours[0])


@pytest.mark.parametrize("kind", Kind)
def test_every_tensor_that_is_restored_is_a_sign_of_life(tmp_path: Path, kind: Kind) -> None:
    model, optimizer = made(0, kind)
    take(model, optimizer, range(1))
    tensors, numbers = live_state(model, optimizer)
    (tmp_path / "state").write_bytes(open_tensors(tensors).read())
    other, its_optimizer = made(1, kind)
    before = beats()
    restore(other, its_optimizer, tmp_path / "state", numbers)
    assert beats() - before == len(tensors)


def test_a_state_before_the_first_step_can_be_restored(tmp_path: Path) -> None:
    model, optimizer = made(0, Kind.ADAMW)
    tensors, numbers = live_state(model, optimizer)
    (tmp_path / "state").write_bytes(open_tensors(tensors).read())
    other, its_optimizer = made(1, Kind.ADAMW)
    restore(other, its_optimizer, tmp_path / "state", numbers)
    assert not its_optimizer.state
    assert torch.equal(other.inner.weight, model.inner.weight)


def test_weights_of_another_model_are_told(tmp_path: Path) -> None:
    model, optimizer = made(0, Kind.ADAMW)
    tensors, numbers = live_state(model, optimizer)
    path = tmp_path / "state"
    path.write_bytes(open_tensors({**tensors, "model/inner.weight": torch.ones(2, 2)}).read())
    assert misfit(model, optimizer, path, numbers) == "its parameter inner.weight has shape (2, 2) instead of (80, 80)"
    del tensors["model/inner.weight"]
    path.write_bytes(open_tensors(tensors).read())
    assert (
        misfit(model, optimizer, path, numbers)
        == "it has other trained parameters than the model, for example inner.weight"
    )


CHANGES = {
    "a tensor of another name": lambda tensors: {
        name.replace("/state1", "/m").replace("/exp_avg", "/m"): t for name, t in tensors.items()
    },
    "a tensor of another shape": lambda tensors: {
        name: t[:1] if name.endswith(("/absmax1", "weight/exp_avg")) else t for name, t in tensors.items()
    },
    "a tensor in another number format": lambda tensors: {
        name: t.double() if name.endswith(("/state2", "/exp_avg_sq")) else t for name, t in tensors.items()
    },
    "a tensor that is not there": lambda tensors: {
        name: t for name, t in tensors.items() if not name.endswith(("/qmap2", "/exp_avg_sq"))
    },
    "one tensor more": lambda tensors: {**tensors, "optimizer/inner.weight/third": torch.ones(1)},
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", Kind)
def test_a_state_of_another_version_of_the_optimizer_is_told(tmp_path: Path, kind: Kind, change: str) -> None:
    model, optimizer = made(0, kind)
    take(model, optimizer, range(2))
    tensors, numbers = live_state(model, optimizer)
    (tmp_path / "state").write_bytes(open_tensors(CHANGES[change](tensors)).read())
    other, its_optimizer = made(1, kind)
    before = other.inner.weight.clone()
    why = misfit(other, its_optimizer, tmp_path / "state", numbers)
    assert why
    assert why.startswith("the optimizer's state of its parameter inner")
    assert torch.equal(other.inner.weight, before)


def test_a_count_of_steps_that_is_not_there_is_told(tmp_path: Path) -> None:
    model, optimizer = made(0, Kind.PAGED_ADAMW_8BIT)
    take(model, optimizer, range(2))
    (tmp_path / "state").write_bytes(open_tensors(live_state(model, optimizer)[0]).read())
    assert "step is different" in str(misfit(*made(1, Kind.PAGED_ADAMW_8BIT), tmp_path / "state", {}))
