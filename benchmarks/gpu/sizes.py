"""The measured sizes: real ones, and tiny ones to test the script."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Models by their names in benchmarks.random_models, and lengths in tokens."""

    main: str
    """The model of most cases."""
    small: str
    full: str
    """The model for full fine-tuning."""
    document: int
    """Tokens per row, all of them trained."""
    rows: int
    """Rows per step."""
    micro_batches: tuple[int, int]
    long: int
    """Tokens per micro-batch of the small model."""
    too_long: int
    """Tokens of a micro-batch that fits on no GPU."""
    prompt: int
    answer: int
    answers: int
    copied: int
    """Bytes of the copy for a checkpoint."""
    wanted: bool
    """Whether figures are compared with the goals for an H100 or H200."""


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
    copied=2**29,
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
    copied=2**20,
    wanted=False,
)
SIZES = {"8b": REAL, "toy": TOY}
