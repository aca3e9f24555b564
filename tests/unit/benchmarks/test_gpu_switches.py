"""Each other value of each switch is measured alone, and all switches together."""

import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import pytest

from benchmarks.gpu import switches


@dataclass(frozen=True)
class Speedups:
    norm: bool = False
    shared: bool = True
    attention: Literal["flash", "cudnn", "flash3"] = "flash"


def test_each_other_value_of_each_switch_is_measured_by_itself_and_all_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module: Any = ModuleType("finetune_trainer.model.layers.speedups")
    module.DEFAULT = Speedups()
    monkeypatch.setitem(sys.modules, "finetune_trainer.model.layers.speedups", module)
    assert switches._settings() == [
        ("as it is", Speedups()),
        ("norm=True", Speedups(norm=True)),
        ("shared=False", Speedups(shared=False)),
        ("attention=cudnn", Speedups(attention="cudnn")),
        ("attention=flash3", Speedups(attention="flash3")),
        ("all switches on", Speedups(norm=True, shared=True, attention="flash3")),
    ]


def test_a_trainer_without_switches_has_none_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "finetune_trainer.model.layers.speedups", None)
    assert switches._settings() is None
    assert switches.all_on() is None
