"""Collects the numbers that the advice depends on, after the rows are split and the settings are resolved."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from finetune_api.reasons import FailureReason
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.method import MethodType
from finetune_api.status.preflight import Resolved
from finetune_trainer.handover.mixing import Mixture
from finetune_trainer.handover.prepared import Side
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.preflight.advice.concerns import Facts
from finetune_trainer.preflight.advice.row_concerns import RowFacts
from finetune_trainer.preflight.data.gather import Gathered
from finetune_trainer.preflight.resolve import default_learning_rate
from finetune_trainer.sources.findings import Findings, place_of
from finetune_trainer.tokens.row_notes import Mark
from finetune_trainer.tokens.row_store import Rows, lengths, mixtures, supervised_counts

LEAKS_SHOWN = 2
"""Leaked test rows that the advice names."""
URI_SHOWN = 100
"""Characters of a file's URI that are shown. One message can contain four URIs."""


def facts_of(
    spec: FineTuneJobSpec,
    gathered: Gathered,
    sides: Mapping[Side, Rows],
    resolved: Resolved,
    findings: Findings,
    *,
    leaked: NDArray[np.int64],
    context: int | None,
    untrained_end: str | None,
) -> Facts:
    """Returns the facts of a job. `leaked`: the result of `leaked_rows`. `context`: the context length of the model in
    tokens. `untrained_end`: see Facts. Raises TrainerFailure DatasetInvalid when a weighted source has no row."""
    train, test = sides["train"], sides["test"]
    learned = train.placed["row"]
    steps = findings.cleaned.steps if findings.cleaned else {}
    return Facts(
        full=resolved.method is MethodType.FULL,
        train_rows=len(train),
        all_rows=sum(map(len, sides.values())),
        steps=resolved.total_steps,
        max_steps=spec.training.max_steps,
        global_batch_size=spec.training.global_batch_size,
        learning_rate=resolved.learning_rate,
        usual_learning_rate=default_learning_rate(resolved.method, resolved.parameters),
        max_sequence_length=resolved.max_sequence_length,
        context=context,
        overlength=findings.overlength,
        taken_apart=findings.taken_apart,
        same_answer=gathered.notes.most_frequent_answer(learned),
        marks=gathered.notes.marked(learned, Mark.FORMAT),
        tokens=int(lengths(train).sum()),
        supervised_tokens=int(supervised_counts(train).sum()),
        tested_rows=min(len(test), spec.evaluation.max_rows),
        test_rows=len(test),
        leaked_rows=int(np.count_nonzero(leaked >= 0)),
        leaks=tuple(
            f"{_place(test, int(row))} in {_place(train, int(leaked[row]))}"
            for row in np.flatnonzero(leaked >= 0)[:LEAKS_SHOWN]
        ),
        near_copies=int(gathered.alike.repeats[learned].sum()),
        crowded=int(gathered.alike.crowded[learned].sum()),
        stops_early=spec.training.early_stopping is not None,
        passes=_passes(spec, train, resolved),
        unused_patterns=tuple(
            f"spec.dataset.clean.{step}" for step, rows in steps.items() if not rows and step.startswith("remove")
        ),
        untrained_end=untrained_end,
        rows=RowFacts(
            readings=gathered.readings,
            text_rows=gathered.notes.documents(learned),
            own_tokens=gathered.notes.marked(learned, Mark.OWN),
            foreign_marks=gathered.notes.marked(learned, Mark.FOREIGN),
        ),
    )


def _place(rows: Rows, row: int) -> str:
    return place_of(rows[row].place, URI_SHOWN)


def _passes(spec: FineTuneJobSpec, train: Rows, resolved: Resolved) -> dict[str, float]:
    """Returns how often the run uses each row of each weighted source. Raises TrainerFailure DatasetInvalid when a
    weighted source has no row."""
    sources = spec.dataset.train
    mixture = Mixture.of(mixtures(train), [source.weight for source in sources])
    if mixture.weights is None:
        return {}
    for index, rows in enumerate(mixture.sizes):
        if not rows:
            raise TrainerFailure(
                FailureReason.DATASET_INVALID,
                f"spec.dataset.train[{index}] has a weight but no usable training row: {sources[index].uri[:500]}.",
                "Remove this source, or correct its rows. status.preflight.findings says why they are not used.",
            )
    epochs = resolved.total_steps * spec.training.global_batch_size / len(train)
    taken = zip(mixture.rows_per_epoch, mixture.sizes, strict=True)
    return {f"spec.dataset.train[{index}]": epochs * rows / size for index, (rows, size) in enumerate(taken)}
