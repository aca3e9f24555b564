"""report.html, from a run's results: what each section shows, as plain values for the templates."""

from collections.abc import Sequence

from finetune_trainer.chart import Chart, Series, chart, histogram, smoothed
from finetune_trainer.gates import shortfall
from finetune_trainer.pages import template
from finetune_trainer.report_samples import sample_groups
from finetune_trainer.report_tables import data_facts, provenance, recipe, results_table, tone, training_facts
from finetune_trainer.results import Results
from finetune_trainer.serving import QUESTION, vllm_obstacles, vllm_rank
from finetune_trainer.training_loop import Step
from finetune_trainer.validation import ValidationLoss

MEASURED_ROWS = 20_000
"""Rows whose lengths are drawn."""


def report_page(results: Results) -> str:
    """The report: one page that needs nothing beside itself."""
    bundle, prepared = results.bundle, results.prepared
    groups = sample_groups(results)
    lengths = row_lengths(results)
    return template("report.html.j2").render(
        name=bundle.job.name if bundle.job else "Local run",
        job=bundle.job,
        spec=bundle.spec,
        resolved=prepared.resolved,
        evaluation=results.evaluation,
        shortfall=shortfall(results.evaluation),
        tone=tone(results),
        table=results_table(results),
        training_facts=training_facts(results),
        curves=curves(results.steps, results.validation) if results.steps else [],
        sample_groups=groups,
        shown=sum(len(group.samples) for group in groups),
        data_facts=data_facts(results),
        lengths=histogram(lengths),
        shortest=min(lengths),
        longest=max(lengths),
        serving=results.serving,
        question=QUESTION,
        vllm_obstacles=vllm_obstacles(results.adapter) if results.adapter else [],
        vllm_rank=vllm_rank(results.adapter) if results.adapter and results.adapter.r <= 512 else None,
        recipe=recipe(results),
        provenance=provenance(results),
    )


def curves(steps: Sequence[Step], validation: Sequence[ValidationLoss] = ()) -> list[Chart]:
    """Loss, learning rate, throughput and memory over the steps."""
    numbers = [step.number for step in steps]
    loss = smoothed("training", numbers, [step.loss for step in steps])
    if validation:
        points = [point.step for point in validation], [point.loss for point in validation]
        loss.append(Series("validation", *points, style="second", dotted=True))
    speeds = [step.tokens / step.seconds for step in steps]
    small = {"width": 300, "height": 100}
    return [
        chart("Loss", "nats per learned token", loss),
        chart("Learning rate", "", [Series("learning rate", numbers, [step.learning_rate for step in steps])], **small),
        chart("Throughput", "tokens per second", smoothed("throughput", numbers, speeds), **small),
        chart("Memory", "GiB", [Series("memory", numbers, [step.memory / 2**30 for step in steps])], **small),
    ]


def row_lengths(results: Results) -> list[int]:
    """Tokens of the rows learned from, of all or of some spread evenly."""
    train = results.prepared.train
    every = max(1, len(train) // MEASURED_ROWS)
    return [len(train[row].input_ids) for row in range(0, len(train), every)]
