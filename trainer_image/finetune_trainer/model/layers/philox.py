"""Random numbers by key: Philox4x32-10 (Salmon et al. 2011) in plain tensor operations. The numbers equal those of
`torch.func._random`. A key is a uint64 tensor of shape [..., 2]: the seed and the position in its stream.

PyTorch 2.15 has `torch.func._random` and 2.11 does not. Delete this module when pyproject.toml requires 2.15."""

import torch
from torch import Tensor

WORD = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
"""Values that each round adds to the two halves of the seed."""
ROUNDS = 10


def key(seed: int) -> Tensor:
    """Returns the key of `seed`, shape [2]."""
    return torch.tensor([seed, 0], dtype=torch.uint64)


def split(key: Tensor, count: int) -> Tensor:
    """Derives `count` keys from `key`, shape [2]. Returns shape [count, 2]."""
    return _derived(key[None], torch.arange(count, device=key.device))


def fold_in(keys: Tensor, number: int) -> Tensor:
    """Derives a key from each of `keys`, shape [..., 2], and `number`. Returns the same shape."""
    return _derived(keys, torch.tensor(number, device=keys.device))


def uniform(keys: Tensor, rows: int, columns: int) -> Tensor:
    """Returns fp32 numbers in [0, 1), shape [rows, columns]. Each row uses its own key in `keys`, shape [rows, 1,
    2]."""
    # One call of Philox gives four numbers.
    words = _words(keys, torch.arange(-(-columns // 4), device=keys.device))
    drawn = torch.stack(words, dim=-1).view(rows, -1)[:, :columns]
    return (drawn & 0xFFFFFF).float() * 2.0**-24


def _derived(keys: Tensor, numbers: Tensor) -> Tensor:
    first, second, third, fourth = _words(keys, numbers)
    return torch.stack([first | (second << 32), third | (fourth << 32)], dim=-1).view(torch.uint64)


def _words(keys: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns four random 32-bit words for each key, `numbers` positions later in the key's stream."""
    # In int64, because every device supports it, and it wraps around as uint64 does.
    seed, place = keys.view(torch.int64).unbind(-1)
    place = place + numbers
    left, right = seed & WORD, (seed >> 32) & WORD
    a, b = place & WORD, (place >> 32) & WORD
    c = d = torch.zeros_like(a)
    for _ in range(ROUNDS):
        even, odd = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a, b, c, d = ((odd >> 32) & WORD) ^ b ^ left, odd & WORD, ((even >> 32) & WORD) ^ d ^ right, even & WORD
        left, right = (left + WEYL[0]) & WORD, (right + WEYL[1]) & WORD
    return a, b, c, d
