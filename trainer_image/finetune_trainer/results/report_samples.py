"""Held-out rows for the report: some of each kind, with what differs marked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finetune_trainer.handover.prepared import Prepared
from finetune_trainer.results.differences import Piece, differences
from finetune_trainer.results.pages import shorten
from finetune_trainer.results.results import Results
from finetune_trainer.rows.row_format import final_answer
from finetune_trainer.statistics.measurements import Answer

SHOWN = 12
"""Rows in the report; samples.jsonl has all of them."""
KINDS = {
    (False, True): "Gained by tuning",
    (True, False): "Lost by tuning",
    (False, False): "Right in neither",
    (True, True): "Right in both",
}
"""By whether the base and the tuned model answered word for word."""


@dataclass(frozen=True)
class Given:
    """An answer, in pieces by how it compares with the expected one."""

    pieces: Sequence[Piece]
    matches: bool
    truncated: bool


@dataclass(frozen=True)
class Sample:
    """One held-out row with the models' answers."""

    place: str
    prompt: str
    expected: str
    answers: Mapping[str, Given]
    """By the model's name."""


@dataclass(frozen=True)
class Group:
    """Rows of one kind."""

    title: str
    rows: int
    """All of them, of which some are shown."""
    samples: Sequence[Sample]


def sample_groups(results: Results) -> list[Group]:
    """Rows of each kind there is: an equal share, more where other kinds have too few."""
    kinds: dict[tuple[bool, bool], list[int]] = {kind: [] for kind in KINDS}
    for row, (base, tuned) in enumerate(zip(results.base.answers, results.tuned.answers, strict=True)):
        kinds[base.matches, tuned.matches].append(row)
    room = shares([len(rows) for rows in kinds.values()], SHOWN)
    return [
        Group(KINDS[kind], len(rows), [_sample(results, row) for row in rows[:count]])
        for (kind, rows), count in zip(kinds.items(), room, strict=True)
        if rows
    ]


@dataclass(frozen=True)
class CleanedExample:
    """What a step of cleaning changed in one row."""

    place: str
    pieces: Sequence[Piece]


@dataclass(frozen=True)
class CleaningStep:
    """A step of cleaning, with examples."""

    name: str
    rows: int
    changes: Sequence[CleanedExample]


def cleaning_steps(prepared: Prepared) -> list[CleaningStep]:
    """Every step that ran; none where nothing was to be cleaned."""
    cleaned = prepared.preflight.cleaned
    return [
        CleaningStep(
            step.name,
            step.rows,
            [
                CleanedExample(change.place, differences(change.before, change.after))
                for change in prepared.cleaning
                if change.step == step.name
            ],
        )
        for step in (cleaned.steps if cleaned else ())
    ]


def shares(sizes: Sequence[int], total: int) -> list[int]:
    """How many to take of each, at most its size, as evenly as they allow and at most `total` together."""
    taken, left = [0] * len(sizes), min(total, sum(sizes))
    while left:
        for i in sorted(range(len(sizes)), key=lambda i: taken[i]):
            if taken[i] < sizes[i] and left:
                taken[i], left = taken[i] + 1, left - 1
    return taken


def _sample(results: Results, row: int) -> Sample:
    example, few_shot = results.held_out[row], results.assessment.baselines.few_shot
    answers = {
        "Base": results.base.answers[row],
        **({"Few-shot": few_shot.draws[0][row]} if few_shot else {}),
        "Tuned": results.tuned.answers[row],
    }
    given = {name: _given(example.final_answer, answer) for name, answer in answers.items()}
    return Sample(example.place, example.prompt, example.final_answer, given)


def _given(expected: str, answer: Answer) -> Given:
    return Given(differences(shorten(expected), shorten(final_answer(answer.text))), answer.matches, answer.truncated)
