"""What is measured: the real thing, and as small as it gets, to see that all of it works."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Models by their names in benchmarks.random_models, and lengths in tokens."""

    main: str
    """What most is measured on."""
    small: str
    full: str
    """What is trained whole."""
    document: int
    """Tokens of a row, all of them learned."""
    rows: int
    """Of a step."""
    micro_batches: tuple[int, int]
    long: int
    """Tokens of a micro-batch of the small model."""
    too_long: int
    """Tokens of a micro-batch that no GPU holds."""
    prompt: int
    answer: int
    answers: int
    wanted: bool
    """Whether what is wanted of an H100 or H200 is a comparison."""


REAL = Sizes(
    main="llama-3.1-8b",
    small="qwen2.5-0.5b",
    full="llama-3.2-1b",
    document=4096,
    rows=4,
    micro_batches=(4096, 8192),
    long=16_384,
    too_long=131_072,
    prompt=512,
    answer=128,
    answers=64,
    wanted=True,
)
TOY = Sizes(
    main="toy",
    small="toy",
    full="toy",
    document=64,
    rows=4,
    micro_batches=(64, 128),
    long=256,
    too_long=4096,
    prompt=16,
    answer=8,
    answers=8,
    wanted=False,
)
SIZES = {"8b": REAL, "toy": TOY}
