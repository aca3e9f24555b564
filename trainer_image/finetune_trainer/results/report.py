"""Builds report.html from a run's results. The templates get plain values."""

from collections.abc import Sequence

from finetune_api.bundle import Bundle
from finetune_trainer.evaluation.gates import shortfall
from finetune_trainer.evaluation.verdict import METRIC_TITLES
from finetune_trainer.results.chart import Chart, Series, chart, histogram, smoothed
from finetune_trainer.results.pages import template
from finetune_trainer.results.report_results import (
    confusion_table,
    deciding_intervals,
    metrics_table,
    other_tables,
    tone,
)
from finetune_trainer.results.report_samples import cleaning_steps, sample_groups
from finetune_trainer.results.report_tables import (
    data_facts,
    evaluation_seconds,
    peak_memory,
    provenance,
    recipe,
    training_facts,
)
from finetune_trainer.results.results import Results
from finetune_trainer.results.serving import QUESTION, vllm_of
from finetune_trainer.tokens.row_store import lengths
from finetune_trainer.training.loop import Step
from finetune_trainer.training.validation import ValidationLoss


def report_page(results: Results) -> str:
    """Returns the report as one HTML page. The page loads no other files."""
    bundle, prepared = results.bundle, results.prepared
    groups = sample_groups(results)
    tokens = lengths(prepared.train)
    return template("report.html.j2").render(
        name=bundle.job.name if bundle.job else "Local run",
        job=bundle.job,
        spec=bundle.spec,
        resolved=prepared.resolved,
        evaluation=results.evaluation,
        # The page already shows the verdict above this sentence.
        shortfall=shortfall(results.evaluation.model_copy(update={"verdict": None})),
        tone=tone(results),
        intervals=deciding_intervals(results.comparison),
        deciding=METRIC_TITLES[results.comparison.decision.name],
        metrics=metrics_table(results),
        tables=other_tables(results),
        confusion=confusion_table(results.comparison),
        training=results.training,
        training_facts=training_facts(results),
        curves=curves(results.steps, results.validation) if results.steps else [],
        sample_groups=groups,
        shown=sum(len(group.samples) for group in groups),
        data=prepared.preflight,
        data_facts=data_facts(results),
        cleaning=cleaning_steps(prepared),
        lengths=histogram(tokens),
        shortest=int(tokens.min()),
        longest=int(tokens.max()),
        used_gpu_type=used_gpu_type(bundle),
        measured_seconds=results.training_seconds + evaluation_seconds(results),
        measured_memory=peak_memory(results),
        serving=results.serving,
        question=QUESTION,
        vllm=vllm_of(results.adapter, results.quantization) if results.adapter else None,
        recipe=recipe(results),
        provenance=provenance(results),
    )


def used_gpu_type(bundle: Bundle) -> str | None:
    """Returns the name of the GPU type of the pod. None if the bundle has several, because no operator chose one."""
    return bundle.gpu_types[0].name if len(bundle.gpu_types) == 1 else None


def curves(steps: Sequence[Step], validation: Sequence[ValidationLoss] = ()) -> list[Chart]:
    """Returns the charts of loss, learning rate, throughput and memory over the optimizer steps."""
    numbers = [step.number for step in steps]
    loss = smoothed("training", numbers, [step.loss for step in steps])
    if validation:
        points = [point.step for point in validation], [point.loss for point in validation]
        loss.append(Series("validation", *points, style="second", dotted=True))
    speeds = [step.tokens / step.seconds for step in steps]
    small = {"width": 300, "height": 100}
    return [
        chart("Loss", "nats per trained token", loss),
        chart("Learning rate", "", [Series("learning rate", numbers, [step.learning_rate for step in steps])], **small),
        chart("Throughput", "tokens per second", smoothed("throughput", numbers, speeds), **small),
        chart("Memory", "GiB", [Series("memory", numbers, [step.memory / 2**30 for step in steps])], **small),
    ]
