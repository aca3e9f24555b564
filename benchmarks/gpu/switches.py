"""Measures the gain of each optimization alone, and of all together."""

from collections.abc import Iterator
from dataclasses import fields, replace
from importlib import import_module
from typing import Any, get_args, get_type_hints

from benchmarks.gpu.bench import Bench, Speed
from benchmarks.gpu.record import Figure

TOLERANCE = 5e-3
"""Largest relative difference of the first step's loss and gradient norm that bf16 rounding explains."""


def measure(bench: Bench) -> Iterator[Figure]:
    """Yields the tokens per second with each switch, compared with none. Checks that loss and gradient are equal."""
    settings = _settings()
    if settings is None:
        yield Figure("switches", 0, "", "this checkout has no switches")
        return
    name, tokens = bench.sizes.main, bench.sizes.micro_batches[-1]
    model, rows = bench.model(name, "LoRA"), bench.rows(name)
    plain: Speed | None = None
    for what, speedups in settings:
        if plain and bench.left() < 2 * sum(step.seconds for step in plain.steps):
            yield Figure(what, 0, "", "skipped: not enough time is left")
            continue
        speed = bench.steps(model, rows, tokens, steps=2, speedups=speedups)
        plain = plain or speed
        yield _compare(bench, what, plain, speed)


def _compare(bench: Bench, what: str, plain: Speed, speed: Speed) -> Figure:
    gain = speed.tokens_per_second / plain.tokens_per_second - 1
    first, other = plain.steps[0], speed.steps[0]
    moved = max(abs(other.loss / first.loss - 1), abs(other.gradient_norm / first.gradient_norm - 1))
    wanted = "; wanted: 12,500, with a stretch to 13,000" if what == ALL and bench.sizes.wanted else ""
    beside = f"{gain:+.1%} beside none; loss and gradient moved by {moved:.1e}{wanted}"
    more = {"memory": speed.reserved + speed.outside}
    return Figure(what, speed.tokens_per_second, "tokens/s", beside, moved < TOLERANCE, more)


ALL = "all switches on"


def _settings() -> list[tuple[str, Any]] | None:
    """The default, each other value of each switch by itself, and all; None where the trainer has no switches."""
    default = _default()
    if default is None:
        return None
    changed = [(name, value) for name, values in _others(default).items() for value in values]
    each = [(f"{name}={value}", replace(default, **{name: value})) for name, value in changed]
    return [("as it is", default), *each, (ALL, all_on())]


def all_on() -> Any:
    """Every switch that is on or off switched on, every other at its last value that is not the default; None where
    the trainer has no switches."""
    default = _default()
    if default is None:
        return None
    return replace(default, **{name: values[-1] or True for name, values in _others(default).items()})


def _default() -> Any:
    try:
        return import_module("finetune_trainer.model.layers.speedups").DEFAULT
    except ImportError:
        return None


def _others(default: Any) -> dict[str, list[Any]]:
    """The values of each switch, of which type it may be, that are not its default."""
    kinds = get_type_hints(type(default))
    values = {field.name: get_args(kinds[field.name]) or (False, True) for field in fields(default)}
    return {name: [value for value in all if value != getattr(default, name)] for name, all in values.items()}
