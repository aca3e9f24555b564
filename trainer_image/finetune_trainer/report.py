"""report.html and the model card, from a run's results."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from finetune_trainer.chart import chart
from finetune_trainer.evaluate import Answer
from finetune_trainer.prepared import Example
from finetune_trainer.results import Results, versions
from finetune_trainer.training_progress import duration
from finetune_trainer.verdict import percent

SAMPLES_SHOWN = 20
LONGEST_TEXT = 2000
"""Characters of a text that are shown; samples.jsonl has all of it."""


@dataclass(frozen=True)
class Sample:
    """One held-out row with both models' answers."""

    example: Example
    base: Answer
    tuned: Answer


def report_page(results: Results) -> str:
    """The report: one page that needs nothing beside itself."""
    return _template("report.html.j2").render(
        results=results,
        samples=shown_samples(results),
        loss=chart([step.loss for step in results.steps], height=220, trend=True),
        rate=chart([step.learning_rate for step in results.steps], height=90),
        versions=versions(),
        **_shared(results),
    )


def model_card(results: Results) -> str:
    """README.md of the adapter, with the front matter that hubs read."""
    return _template("model_card.md.j2").render(results=results, **_shared(results))


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


def _template(name: str) -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        # Rows are strangers' text: nothing of them may become markup.
        autoescape=lambda template: template is not None and template.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "duration": duration, "shorten": shorten}
    return environment.get_template(name)


def shorten(text: str) -> str:
    """At most LONGEST_TEXT characters of it."""
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT].rstrip() + " …"
