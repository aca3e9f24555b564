"""Preflight: checks the job and makes all decisions that do not need a GPU."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune_api.bundle import Bundle
from finetune_api.reasons import FailureReason
from finetune_api.spec.dataset import Dataset
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.method import MethodType
from finetune_api.status.job import ConditionType
from finetune_api.status.preflight import Preflight, Resolved, Revision, SourceRows, Splits
from finetune_trainer.base.base_model import BaseModel, inspect_model, known
from finetune_trainer.base.chosen_modules import require_modules, require_quantizable
from finetune_trainer.base.expert_settings import require_expert_settings
from finetune_trainer.base.previous_adapter import fetch_fitting_adapter
from finetune_trainer.checkpoints.earlier_job import require_checkpoint
from finetune_trainer.handover.prepared import (
    ADAPTER,
    SIDES,
    Prepared,
    Side,
    data_digest,
    learned,
    place,
    write_prepared,
)
from finetune_trainer.handover.prepared_cache import CachedRows
from finetune_trainer.metrics.answer_kind import recognise
from finetune_trainer.metrics.metric_choice import choose_metrics
from finetune_trainer.pod.failure import Superseded, TrainerFailure
from finetune_trainer.pod.liveness.heartbeat import phase
from finetune_trainer.pod.scratch import bytes_in, scratch_folder
from finetune_trainer.pod.status.status_writer import StatusWriter
from finetune_trainer.pod.termination import failure_after_stop, write_failure
from finetune_trainer.preflight.advice.concerns import advise
from finetune_trainer.preflight.advice.end_of_turn import untrained_end
from finetune_trainer.preflight.advice.facts import facts_of
from finetune_trainer.preflight.advice.slow_answers import slow_answers
from finetune_trainer.preflight.data.gather import Gathered
from finetune_trainer.preflight.data.leaked_rows import leaked_rows
from finetune_trainer.preflight.data.overlength import drop_overlong
from finetune_trainer.preflight.data.regression_rows import gather_regression
from finetune_trainer.preflight.data.reuse import gather_or_reuse
from finetune_trainer.preflight.data.split import split_rows
from finetune_trainer.preflight.hardware.fitting import require_fit, require_gpu_type
from finetune_trainer.preflight.hardware.pod_fit import require_memory, require_scratch, without_checkpoints
from finetune_trainer.preflight.hardware.prediction import DataSize, data_size, of_allowed, sized
from finetune_trainer.preflight.places import check_output, check_places
from finetune_trainer.preflight.rehearsal import Rehearse, rehearse_start, unrehearsed
from finetune_trainer.preflight.resolve import LONGEST_BY_DEFAULT, lora_or_qlora, resolve, sequence_limit
from finetune_trainer.sizing.model_shape import ModelShape
from finetune_trainer.sources.findings import Findings
from finetune_trainer.storage.job_storage import JobStorage
from finetune_trainer.tokens.render import PromptFormat, prompt_format
from finetune_trainer.tokens.row_store import Rows, lengths, supervised_counts


def preflight(bundle: Bundle, storage: JobStorage, status: StatusWriter, rehearse: Rehearse = unrehearsed) -> str:
    """Checks the job, uploads its prepared data and writes its status. Returns the message of the status. `rehearse`:
    finds what the start of the training would raise.

    Raises TrainerFailure when the job is invalid. The status then has the condition Validated=False, and what is known
    about the data."""
    findings = Findings()
    # The failure is told before the folder is deleted: that can take longer than the grace period.
    with scratch_folder("preflight-") as scratch:
        try:
            prepared = prepare(bundle, storage, findings, scratch, rehearse)
            require_checkpoint(bundle, storage, prepared)
            write_prepared(storage, bundle, prepared, scratch / "prepared")
        except BaseException as error:
            _tell_failure(failure_after_stop(error), findings, status)
            raise
    phase("writing the status")
    watched = f"{len(prepared.validation):,} validation rows, " if prepared.validation else ""
    steps = prepared.resolved.total_steps
    message = (
        f"{len(prepared.train):,} training rows in {steps:,} optimizer step{'s' * (steps != 1)}, "
        f"{watched}{len(prepared.test):,} test rows."
    )
    if prepared.cached and prepared.cached.reused:
        message += f" The rows are those that job {prepared.cached.job} prepared from the same files."
    status.condition(ConditionType.VALIDATED, True, "DataValid", message)
    status.result(preflight=prepared.preflight, resolved=prepared.resolved)
    return message


def _tell_failure(failure: TrainerFailure, findings: Findings, status: StatusWriter) -> None:
    """Writes the termination message, then the status. A pod that got SIGTERM tries the status once: its grace period
    is a few seconds."""
    write_failure(failure)
    status.condition(ConditionType.VALIDATED, False, failure.reason, failure.for_the_status)
    write = status.progress if failure.reason is FailureReason.PREEMPTED else status.result
    try:
        write(preflight=_found(findings))
    except (ConnectionError, RuntimeError, Superseded) as unwritten:
        # The termination message still says what was wrong; this must not take its place.
        print(f"The status could not be written: {unwritten}", flush=True)


def tell_stall(failure: TrainerFailure, status: StatusWriter) -> None:
    """Reports that the preflight made no progress. Tries the status once, because the termination message has the same
    content."""
    write_failure(failure)
    status.condition(ConditionType.VALIDATED, False, failure.reason, failure.for_the_status)
    status.progress()


def prepare(
    bundle: Bundle, storage: JobStorage, findings: Findings, scratch: Path, rehearse: Rehearse = unrehearsed
) -> Prepared:
    """Checks the output, the model and the rows, splits the rows and resolves the defaults. The quickest checks run
    first. Stores the rows in `scratch`/prepared, as `write_prepared` expects them."""
    spec = bundle.spec
    check_places(spec)
    require_gpu_type(spec, bundle.gpu_types)
    check_output(bundle, storage)
    model = _fitting_model(spec, storage, scratch)
    shape = replace(model.shape, layered=rehearse_start(rehearse, spec, model, scratch).layered)
    format = prompt_format(model.tokenizer, spec.training.loss_on)
    gathered, cached, limit = _rows_within_limit(bundle, storage, model, format, findings, scratch)
    sides = learned(split_rows(gathered, spec.dataset.split), spec.training.loss_on)
    answers = recognise(sides["train"])
    metrics = choose_metrics(spec.evaluation, answers)
    regression = gather_regression(spec, storage, model, format, scratch / "prepared")
    resolved = resolve(spec, model.shape.parameters, limit, format.kind, metrics, **sides)
    size = data_size(sides, spec.evaluation.max_rows)
    resolved = _with_method(bundle, resolved, model, shape, size, findings)
    leaked = _place_sides(gathered, sides)
    stops = known(dict.fromkeys((*format.stop_token_ids, *model.end_tokens)), model.rows)
    untrained = untrained_end(storage, model, spec.method, sides["train"], stops)
    facts = facts_of(
        spec, gathered, sides, resolved, findings, leaked=leaked, context=model.context, untrained_end=untrained
    )
    unwritten = without_checkpoints(bundle, findings.estimates, resolved, model)
    slow = slow_answers(bundle, findings.estimates, resolved, shape, size)
    findings.advice, findings.leaked = [*unwritten, *slow, *advise(facts)], facts.leaked_rows
    require_fit(findings.estimates, bundle.gpu_types, spec, resolved, shape, size)
    findings.estimates = require_memory(bundle, findings.estimates, resolved, model)
    require_scratch(bundle, findings.estimates, resolved, model, bytes_in(scratch / "prepared"))
    digest = data_digest(sides, model.fingerprint, format.source, limit, spec.training.loss_on)
    return Prepared(
        **sides,
        resolved=resolved.model_copy(update={"revisions": _revisions(storage)}),
        answers=answers,
        preflight=_found(findings, sides, digest, _sources(gathered, spec.dataset)),
        cleaning=findings.cleaned.examples if findings.cleaned else (),
        stop_token_ids=stops,
        model_files=model.files,
        model_pins=model.pins,
        adapter=_hand_over_adapter(scratch),
        chat_template=format.source,
        regression=regression,
        cached=cached,
    )


def _fitting_model(spec: FineTuneJobSpec, storage: JobStorage, scratch: Path) -> BaseModel:
    """Returns the base model, to which the method and the adapter to continue from fit. Raises TrainerFailure if they
    do not fit."""
    model = inspect_model(storage, spec.model.uri, scratch / "model")
    require_expert_settings(spec.method, model.sizes)
    if spec.method.type is not MethodType.FULL:
        require_modules(spec.method.lora, model)
        fetch_fitting_adapter(storage, spec.method, model, scratch / ADAPTER)
    return model


def _rows_within_limit(
    bundle: Bundle, storage: JobStorage, model: BaseModel, format: PromptFormat, findings: Findings, scratch: Path
) -> tuple[Gathered, CachedRows | None, int]:
    """Returns the stored rows without those that are too long, their place in the cache if they are there, and the
    maximum length of a row in tokens. Raises TrainerFailure as `gather` and `drop_overlong` do."""
    spec = bundle.spec
    most = sequence_limit(spec.training, LONGEST_BY_DEFAULT, model.context)
    gathered, cached = gather_or_reuse(bundle, storage, model, format, most, findings, scratch)
    limit = sequence_limit(spec.training, int(gathered.store.column("tokens").max()), model.context)
    drop_overlong(gathered, spec, limit, model.context, findings)
    return gathered, cached, limit


def _with_method(
    bundle: Bundle, resolved: Resolved, model: BaseModel, shape: ModelShape, size: DataSize, findings: Findings
) -> Resolved:
    """Returns `resolved` with the method that Auto chooses and the settings that depend on memory. `findings` gets the
    estimates. Raises TrainerFailure SpecInvalid if QLoRA cannot quantize the model."""
    spec, gpu_types = bundle.spec, bundle.gpu_types
    resolved, findings.estimates = sized(gpu_types, spec, resolved, shape, size)
    if spec.method.type is MethodType.AUTO:
        resolved = lora_or_qlora(resolved, of_allowed(findings.estimates, spec, gpu_types))
        resolved, findings.estimates = sized(gpu_types, spec, resolved, shape, size)
    if resolved.method is MethodType.QLORA:
        require_quantizable(model, spec.method.lora)
    return resolved


def _place_sides(gathered: Gathered, sides: dict[Side, Rows]) -> NDArray[np.int64]:
    """Writes the rows of each side to the store, with the leaked test rows marked. Returns the result of
    `leaked_rows`."""
    leaked = leaked_rows(sides["test"], sides["train"], gathered.notes)
    sides["test"] = sides["test"].marked(leaked >= 0)
    for name, placed in sides.items():
        place(gathered.store, name, placed.placed)
    return leaked


def _revisions(storage: JobStorage) -> list[Revision] | None:
    """Returns the commits of the repositories of a hub that preflight has read; None if there are none."""
    return [Revision(uri=uri, commit=commit) for uri, commit in sorted(storage.commits().items())] or None


def _hand_over_adapter(scratch: Path) -> Path | None:
    """Moves the downloaded adapter to the prepared data, which exists now. Returns its folder, or None if there is
    none."""
    if not (scratch / ADAPTER).is_dir():
        return None
    return (scratch / ADAPTER).rename(scratch / "prepared" / ADAPTER)


def _sources(gathered: Gathered, dataset: Dataset) -> list[SourceRows]:
    """Counts the used rows of each source and their tokens."""
    found = []
    for side in SIDES:
        mixtures, tokens = (gathered.store.column(name)[gathered.sides[side]] for name in ("mixture", "tokens"))
        for index, name in enumerate(dataset.source_names(side)):
            own = tokens[mixtures == index]
            found.append(SourceRows(side=side, name=name, rows=len(own), tokens=int(own.sum())))
    return found


def _found(
    findings: Findings,
    sides: Mapping[Side, Rows] | None = None,
    digest: str | None = None,
    sources: Sequence[SourceRows] = (),
) -> Preflight:
    """Returns what the status reports about the data. The tokens are those of the training rows, that is, of one
    epoch."""
    return Preflight(
        rows=findings.rows,
        invalid=findings.invalid,
        findings=findings.listed() or None,
        cleaned=findings.cleaned.status() if findings.cleaned else None,
        duplicates=findings.duplicates,
        near_duplicates=findings.near_duplicates,
        overlength=findings.overlength,
        leaked=findings.leaked,
        tokens=int(lengths(sides["train"]).sum()) if sides else None,
        supervised_tokens=int(supervised_counts(sides["train"]).sum()) if sides else None,
        sources=list(sources) or None,
        splits=Splits(**{side: len(rows) for side, rows in sides.items()}) if sides else None,
        advice=findings.advice,
        digest=digest,
        estimate=findings.estimates or None,
        observed_time=datetime.now(UTC),
    )
