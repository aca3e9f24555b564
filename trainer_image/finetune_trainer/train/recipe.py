"""The recipe of the training pod. `train` guards it: a failure is reported, published results are not made again."""

from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from time import perf_counter

from finetune_api.bundle import Bundle
from finetune_trainer.evaluation.base_measurement import BaseMeasuring, measure_base
from finetune_trainer.evaluation.kept_measurements import of_tuned
from finetune_trainer.evaluation.recipe import Assessment, Assessor
from finetune_trainer.handover.prepared import Prepared, read_prepared
from finetune_trainer.handover.prepared_place import Renewal
from finetune_trainer.pod.failure import Superseded
from finetune_trainer.pod.liveness.heartbeat import phase
from finetune_trainer.pod.rank import is_first, is_first_of_node
from finetune_trainer.pod.scratch import scratch_folder
from finetune_trainer.pod.status.status_writer import StatusWriter
from finetune_trainer.pod.termination import failure_after_stop, stop_deferred
from finetune_trainer.ranks.group import on_each_node, on_first
from finetune_trainer.results.merge import MergeFolders, merge
from finetune_trainer.results.model_card import base_license
from finetune_trainer.results.publish import ADAPTER, MERGED, publish, upload_results, weights_kept
from finetune_trainer.results.results import Results
from finetune_trainer.storage.job_storage import JobStorage
from finetune_trainer.storage.ownership import found_published
from finetune_trainer.train.telling import TRAINED, tell, tell_assessment, tell_failure, tell_published
from finetune_trainer.train.tuning import Tuning, Weights, as_measured, cost_of, stage, tune
from finetune_trainer.train.work import Work, begin
from finetune_trainer.training.run import Attempt
from finetune_trainer.training.spent import machine_of


def train(bundle: Bundle, storage: JobStorage, writer: StatusWriter, attempt: int, halvings: int = 0) -> str:
    """Trains, compares base and tuned model, publishes, and reports each step in the job's status. Returns the verdict.

    `halvings`: number of earlier attempts that ran out of GPU memory. Every rank of a training on several GPUs calls
    this; only rank 0 returns the verdict, the others return "". Raises TrainerFailure after writing it to the
    status, and Superseded if another attempt has replaced this one."""
    # The failure is told before the folder is deleted: that can take longer than the grace period.
    with scratch_folder("train-") as scratch:
        try:
            if manifest := on_first(lambda: found_published(storage, bundle)):
                if not is_first():
                    return ""
                return tell_published(manifest, publish(storage, bundle, manifest), writer)
            return recipe(bundle, storage, writer, Attempt(attempt, halvings, perf_counter()), scratch)
        except Superseded:
            raise
        except BaseException as error:
            tell_failure(failure_after_stop(error), writer)
            raise


def recipe(bundle: Bundle, storage: JobStorage, writer: StatusWriter, attempt: Attempt, own_scratch: Path) -> str:
    """Runs all steps in order. Requires that this job has not published results yet. `own_scratch`: a folder of this
    rank for temporary files."""
    scratch = on_each_node(lambda: own_scratch)
    prepared = prepared_rows(bundle, storage, scratch)
    work = begin(bundle, prepared, storage, writer, attempt, scratch)
    with work.kept.missing_kept_at_the_end():
        return phases(work)


def phases(work: Work) -> str:
    """Runs the phases whose results are kept for a later attempt, and publishes. Returns what `train` does."""
    bundle, storage, writer = work.bundle, work.storage, work.writer
    base = BaseMeasuring(
        bundle=bundle,
        prepared=work.prepared,
        tokenizer=work.tokenizer,
        accelerator=work.accelerator,
        folder=work.model_folder,
        kept=work.kept,
        say=lambda message: tell(writer, TRAINED, "EvaluatingBase", message),
        tokens=work.attempt.tokens(work.prepared.resolved),
    )
    model, assessor, baselines = measure_base(base)
    with ExitStack() as until_kept:
        model, tuning = tune(work, model, until_kept)
        weights = stage(work, model, tuning)
    model = as_measured(work, model)
    with weights_kept(storage, bundle, work.output) if is_first() else nullcontext():
        spent = partial(cost_of, tuning.run, work.attempt.started, machine_of(bundle, work.device))
        work.kept.keep_missing()
        assessment = assessor.assess(model, baselines, spent, of_tuned(work.kept, weights.folder))
        tell_assessment(assessment.evaluation, writer)
        if bundle.spec.output.merge:
            # Only one model fits into memory at a time, so the tuned model is deleted before merging.
            del model
            work.kept.keep_missing()
            assessment = assess_merged(work, assessor, assessment)
        if not is_first():
            return ""  # rank 0 publishes for all ranks
        work.kept.keep_missing()
        phase("publishing the results")
        placed = upload_results(storage, results_of(work, tuning, weights, assessor, assessment), work.output)
    with stop_deferred():
        # Once the manifest is published the job is done. A SIGTERM must not keep this out of the status.
        artifacts = publish(storage, bundle, placed)
        return tell_published(placed, artifacts, writer)


def prepared_rows(bundle: Bundle, storage: JobStorage, scratch: Path) -> Prepared:
    """Returns the prepared rows. The first rank of each node downloads them, and then the other ranks of that node open
    the same files."""
    first = read_prepared(storage, bundle, scratch) if is_first_of_node() else None
    on_first(lambda: Renewal(storage, bundle, scratch / "prepared").if_due())
    return first or read_prepared(storage, bundle, scratch, downloaded=True)


def results_of(work: Work, tuning: Tuning, weights: Weights, assessor: Assessor, assessment: Assessment) -> Results:
    """Returns what the report, the model card and the manifest are written from."""
    return Results(
        bundle=work.bundle,
        prepared=work.prepared,
        training=work.progress.training,
        steps=tuning.steps,
        held_out=assessor.held_out,
        assessment=assessment,
        serving=work.serving,
        adapter=weights.adapter,
        base_license=base_license(work.model_folder),
        validation=tuning.validation.curve,
    )


def assess_merged(work: Work, assessor: Assessor, assessment: Assessment) -> Assessment:
    """Merges the adapter into the base model and measures the merged model. Returns the assessment with it."""
    phase("merging")
    work.accelerator.free_memory()
    folders = MergeFolders(work.model_folder, work.output / ADAPTER, work.output / MERGED)
    tokens = work.attempt.tokens(work.prepared.resolved)
    merged = merge(
        folders, assessment.tuned, assessor.held_out, work.prepared, work.tokenizer, work.accelerator, tokens
    )
    assessment = assessment.with_merged(merged)
    tell_assessment(assessment.evaluation, work.writer)
    return assessment
