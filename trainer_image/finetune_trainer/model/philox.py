"""Random numbers by key: Philox4x32-10 (Salmon et al. 2011) in plain tensor operations, number for number what
`torch.func._random` draws. A key is a uint64 tensor [..., 2]: the seed and the place in its stream.
They are drawn on the GPU, and so they are here and not in `finetune_trainer.randomness`.

PyTorch 2.15 has that module and 2.11 has not: once pyproject.toml asks for 2.15, this one can go."""

import torch
from torch import Tensor

WORD = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
"""What is added to the two halves of the seed from round to round."""
ROUNDS = 10


def key(seed: int) -> Tensor:
    """The key of `seed`, [2]."""
    return torch.tensor([seed, 0], dtype=torch.uint64)


def split(key: Tensor, count: int) -> Tensor:
    """`count` keys derived from `key`, [2]; returns [count, 2]."""
    return _derived(key[None], torch.arange(count, device=key.device))


def fold_in(keys: Tensor, number: int) -> Tensor:
    """A key derived from each of `keys`, [..., 2], and `number`; returns the same shape."""
    return _derived(keys, torch.tensor(number, device=keys.device))


def uniform(keys: Tensor, rows: int, columns: int) -> Tensor:
    """Numbers in [0, 1) in fp32, [rows, columns], of which each row is drawn by its own key in `keys`, [rows, 1, 2]."""
    # One turn of Philox makes four numbers.
    words = _words(keys, torch.arange(-(-columns // 4), device=keys.device))
    drawn = torch.stack(words, dim=-1).view(rows, -1)[:, :columns]
    return (drawn & 0xFFFFFF).float() * 2.0**-24


def _derived(keys: Tensor, numbers: Tensor) -> Tensor:
    first, second, third, fourth = _words(keys, numbers)
    return torch.stack([first | (second << 32), third | (fourth << 32)], dim=-1).view(torch.uint64)


def _words(keys: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four random words of 32 bits for each key and number, that many places on in the key's stream."""
    # In int64, which every device computes with, and which wraps around as uint64 does.
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
