"""Held-out rows for the report: some of each kind, with the differences marked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finetune_trainer.handover.prepared import Prepared
from finetune_trainer.results.differences import Piece, differences
from finetune_trainer.results.pages import shorten
from finetune_trainer.results.results import Results
from finetune_trainer.rows.row_format import final_answer
from finetune_trainer.statistics.measurements import Answer

SHOWN = 12
"""Number of held-out rows in the report. samples.jsonl has all of them."""
KINDS = {
    (False, True): "Only the tuned model is correct",
    (True, False): "Only the base model is correct",
    (False, False): "Neither model is correct",
    (True, True): "Both models are correct",
}
"""Titles by (base, tuned): whether each model gave the expected answer word for word."""


@dataclass(frozen=True)
class Given:
    """A model's answer, in pieces: the same as expected, extra, or missing."""

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
    """The models' answers, by the model's name."""


@dataclass(frozen=True)
class Group:
    """Rows of one kind."""

    title: str
    rows: int
    """Number of rows of this kind. `samples` has some of them."""
    samples: Sequence[Sample]


def sample_groups(results: Results) -> list[Group]:
    """Returns SHOWN rows, equally many of each kind. If a kind has too few rows, the other kinds get more."""
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
    """The change that a cleaning step made in one row."""

    place: str
    pieces: Sequence[Piece]


@dataclass(frozen=True)
class CleaningStep:
    """A cleaning step, with the number of changed rows and examples."""

    name: str
    rows: int
    changes: Sequence[CleanedExample]


def cleaning_steps(prepared: Prepared) -> list[CleaningStep]:
    """Returns every cleaning step that ran. Empty if no cleaning was configured."""
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
    """Returns how many rows to take of each group: as evenly as the sizes allow, at most `total` in all."""
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
