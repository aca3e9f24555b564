"""Tells rows apart whose first question is a template: one prompt over many system prompts, or a greeting that begins
many conversations. Rows with an ordinary question are grouped by that question alone."""

from array import array
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.copies.clusters import CAP_SHARE, SMALLEST_CAP
from finetune_trainer.copies.near_duplicates import MULTIPLIER
from finetune_trainer.rows.row_format import Message, system_of

SEVERAL = 3
"""Different system prompts, or different next turns, from which on a question can be a template: fewer may be the same
question asked in another style, or one conversation with another end."""
Keys = NDArray[np.uint64]


class Openings:
    """The system prompt and the further user turns of each row, as 64-bit keys, in the order of the rows."""

    def __init__(self) -> None:
        self._systems, self._further, self._turns = array("Q"), array("Q"), array("L")

    def add(self, messages: Sequence[Message]) -> None:
        """Adds the next row. Each further user turn gets a key of all user turns up to this one, so that the parts of
        one conversation that was cut off at several lengths keep equal keys."""
        self._systems.append(_key(system_of(messages)))
        users = [message.content for message in messages if message.role == "user"]
        self._further.extend(_key("\0".join(users[:end])) for end in range(2, len(users) + 1))
        self._turns.append(max(0, len(users) - 1))

    def keys(self, questions: Keys) -> Keys:
        """One key for each row, equal for rows to group. `questions`: equal for rows with the same first question.
        Both have shape [rows]. A row whose question is no template keeps the key of its question."""
        return self._by_turn(self._by_system(questions))

    def _by_system(self, questions: Keys) -> Keys:
        """Splits a question that several system prompts share, of which each has fewer questions: the system prompt
        then holds the material, and the question is the template."""
        systems = np.frombuffer(self._systems, np.uint64)
        return np.where(over_material(questions, systems, SEVERAL), _mixed(questions, systems), questions)

    def _by_turn(self, keys: Keys) -> Keys:
        """Splits a group of more rows than one may have at the first user turn that several continue differently."""
        turns = np.frombuffer(self._turns, np.dtype("L")).astype(np.int64)
        starts = np.cumsum(turns) - turns
        further = np.frombuffer(self._further, np.uint64)
        most = min(max(SMALLEST_CAP, int(len(keys) * CAP_SHARE)), len(keys) // 2)
        depth = 0
        while len(rows := np.flatnonzero(_in_large(keys, most) & (turns > depth))):
            told_apart = _mixed(keys[rows], further[starts[rows] + depth])
            pairs = np.unique(told_apart, return_index=True)[1]
            groups, counts = np.unique(keys[rows][pairs], return_counts=True)
            parting = counts[np.searchsorted(groups, keys[rows])] >= SEVERAL
            keys = keys.copy()
            keys[rows[parting]] = told_apart[parting]
            depth += 1
        return keys


def over_material(questions: Keys, systems: Keys, least: int) -> NDArray[np.bool_]:
    """Returns for each row whether its system prompt holds the material of its question: at least `least` system
    prompts share the question, and the row's system prompt has fewer questions. Shape [rows], like both keys."""
    pairs = np.unique(_mixed(questions, systems), return_index=True)[1]
    prompts, prompt_counts = np.unique(questions[pairs], return_counts=True)
    names, question_counts = np.unique(systems[pairs], return_counts=True)
    shared = prompt_counts[np.searchsorted(prompts, questions)]
    return (shared >= least) & (shared > question_counts[np.searchsorted(names, systems)])


def material(messages: Sequence[Message]) -> str:
    """What a row is asked with besides its first question: its system prompt and its further user turns."""
    system = [message.content for message in messages if message.role == "system"]
    return "\n".join(system + [message.content for message in messages if message.role == "user"][1:])


def _in_large(keys: Keys, most: int) -> NDArray[np.bool_]:
    """Rows of groups of more than `most` rows. Shape [rows]."""
    groups, sizes = np.unique(keys, return_counts=True)
    return np.isin(keys, groups[sizes > most])


def _mixed(first: Keys, second: Keys) -> Keys:
    """A key of two keys."""
    return (first * np.uint64(MULTIPLIER)) ^ (second * np.uint64(0xFF51AFD7ED558CCD))


def _key(text: str) -> int:
    return int.from_bytes(blake2b(" ".join(text.split()).encode(), digest_size=8).digest(), "little")
