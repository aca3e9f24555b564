"""Advice on a job whose evaluation takes long, because its weights are sharded: the GPUs gather them for each token."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from finetune_api.bundle import Bundle, allowed_gpu_types
from finetune_api.quantity import bytes_of
from finetune_api.spec.evaluation import Baseline
from finetune_api.status.preflight import Advice, Estimate, Resolved
from finetune_trainer.preflight.hardware.pod_fit import planned_setup
from finetune_trainer.preflight.hardware.prediction import DataSize, loads, work_of
from finetune_trainer.sizing.memory import Setup, first_fit
from finetune_trainer.sizing.model_shape import ModelShape
from finetune_trainer.sizing.run_time import Work, answering_seconds, answers_together, divided
from finetune_trainer.sizing.traffic import Layout, gathering_seconds

LONG_SECONDS = 3600.0
"""Time to answer the test rows that is worth advice. A model with whole weights needs minutes."""


def slow_answers(
    bundle: Bundle, found: Sequence[Estimate], resolved: Resolved, shape: ModelShape, data: DataSize
) -> list[Advice]:
    """Returns the advice that the models will write their answers for hours; none if they will not, or if the weights
    are not sharded. `found`: an estimate for each GPU type."""
    spec, setup = bundle.spec, planned_setup(bundle, found, resolved, shape)
    layout = Layout(spec.compute.gpus, spec.compute.nodes)
    load = loads(data, spec.training.global_batch_size, resolved)[0]
    work = divided(work_of(spec, resolved, data, load, loads=1), layout.gpus)
    seconds = answering_seconds(shape, setup, work, layout)
    if setup.shards == 1 or seconds < LONG_SECONDS:
        return []
    where = f"over the network between {layout.nodes} nodes" if layout.nodes > 1 else "from each other"
    each, gigabytes = gathering_seconds(shape, setup, layout), layout.rate / 1e9
    message = (
        f"The models will write their answers to the test rows for about {seconds / 3600:,.1f} h. The weights are "
        f"sharded, so for each token of the answers the {layout.gpus} GPUs gather them {where}: {each:.1f} s at "
        f"{gigabytes:.1f} GB/s. What helps: {'; '.join(_ways(bundle, resolved, shape, data, setup, work))}."
    )
    return [Advice(reason="AnswersTakeLong", message=message)]


def _ways(
    bundle: Bundle, resolved: Resolved, shape: ModelShape, data: DataSize, setup: Setup, work: Work
) -> Iterator[str]:
    """Yields what shortens the time, the most effective first."""
    spec = bundle.spec
    if spec.compute.nodes > 1:
        yield "spec.compute.nodes 1 with enough gpusPerNode for the model"
    if _fits_in_4_bits(bundle, resolved, shape, data, setup):
        yield "spec.method.type QLoRA, whose 4-bit weights each GPU has whole"
    if work.rounds > 2:
        yield f"spec.evaluation.baselines without {Baseline.FEW_SHOT}, which answers the rows {work.rounds - 2} times"
    yield f"a smaller spec.evaluation.generation.maxNewTokens than {work.answer_tokens:,}"
    if work.answered > answers_together(work):
        yield f"a smaller spec.evaluation.maxRows than {data.answered:,}"


def _fits_in_4_bits(bundle: Bundle, resolved: Resolved, shape: ModelShape, data: DataSize, setup: Setup) -> bool:
    """Returns whether the job fits one of its GPU types with QLoRA, which cannot quantize experts."""
    if shape.routed:
        return False
    quantized = replace(setup, method="QLoRA", shards=1, checkpointing=True)
    least = loads(data, bundle.spec.training.global_batch_size, resolved)[-1:]
    allowed = allowed_gpu_types(bundle.spec, bundle.gpu_types)
    return any(gpu.memory and first_fit(shape, [quantized], least, bytes_of(gpu.memory)) for gpu in allowed)
