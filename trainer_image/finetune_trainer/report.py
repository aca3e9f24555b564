"""report.html, from a run's results."""

from collections.abc import Sequence
from dataclasses import dataclass

from finetune_trainer.chart import chart
from finetune_trainer.evaluate import Answer
from finetune_trainer.pages import template
from finetune_trainer.prepared import Example
from finetune_trainer.results import Results, versions

SAMPLES_SHOWN = 20


@dataclass(frozen=True)
class Sample:
    """One held-out row with both models' answers."""

    example: Example
    base: Answer
    tuned: Answer


def report_page(results: Results) -> str:
    """The report: one page that needs nothing beside itself."""
    return template("report.html.j2").render(
        results=results,
        samples=shown_samples(results),
        loss=chart([step.loss for step in results.steps], height=220, trend=True),
        rate=chart([step.learning_rate for step in results.steps], height=90),
        versions=versions(),
        **_shared(results),
    )


def shown_samples(results: Results) -> Sequence[Sample]:
    """Some rows, an equal share of each kind where there are enough: gained, lost, right in both, wrong in both."""
    triples = zip(results.held_out, results.base.answers, results.tuned.answers, strict=True)
    kinds: dict[tuple[bool, bool], list[Sample]] = {
        (False, True): [],
        (True, False): [],
        (False, False): [],
        (True, True): [],
    }
    for sample in (Sample(*triple) for triple in triples):
        kinds[sample.base.matches, sample.tuned.matches].append(sample)
    share, shown = SAMPLES_SHOWN // len(kinds), []
    for samples in kinds.values():
        shown += samples[:share]
    rest = [sample for samples in kinds.values() for sample in samples[share:]]
    return shown + rest[: SAMPLES_SHOWN - len(shown)]


def _shared(results: Results) -> dict[str, object]:
    bundle, prepared = results.bundle, results.prepared
    return {
        "job": bundle.job,
        "spec": bundle.spec,
        "spec_digest": bundle.spec_digest,
        "resolved": prepared.resolved,
        "data": prepared.preflight,
        "training": results.training,
        "comparison": results.comparison,
        "evaluation": results.comparison.evaluation,
    }
