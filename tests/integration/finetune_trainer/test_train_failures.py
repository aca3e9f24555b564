"""Runs that are refused, fail, receive SIGTERM or start again: their status and the files that remain."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from finetune_api.bundle import Bundle
from finetune_api.reasons import FAILURES, FailureReason, sentence
from finetune_api.spec.method import MethodType
from finetune_api.status.job import ConditionType
from finetune_trainer.__main__ import main
from finetune_trainer.evaluation.recipe import Assessor
from finetune_trainer.pod.failure import StopRequested, TrainerFailure
from finetune_trainer.pod.status.status_writer import StatusWriter
from finetune_trainer.pod.termination import _Stop, handle_sigterm, stop_because
from finetune_trainer.results import publish as publishing
from finetune_trainer.storage.job_storage import JobStorage, open_storage
from finetune_trainer.train import recipe as module
from finetune_trainer.train.recipe import train
from finetune_trainer.training import run as steps_of_a_run
from finetune_trainer.training.loop import Step, training_steps
from tests.integration.finetune_trainer.trainings import prepare, run
from tests.unit.finetune_trainer.conftest import MakeBundle


def _failure(bundle: Bundle) -> FailureReason:
    """What the run fails with, once the status says the same."""
    writer = StatusWriter(None, "attempt-1")
    with pytest.raises(TrainerFailure) as caught:
        train(bundle, open_storage(bundle), writer, attempt=1)
    condition = writer.intent.conditions[-1] if writer.intent.conditions else None
    assert condition
    assert (condition.type, condition.status, condition.reason) == ("Trained", "False", caught.value.reason)
    assert condition.message == sentence(caught.value.reason, caught.value.for_the_operator)
    return caught.value.reason


def test_an_output_with_results_of_another_job_is_refused_before_the_model_is_loaded(make_bundle: MakeBundle) -> None:
    bundle = make_bundle(job={"namespace": "team-a", "name": "tickets", "uid": "uid-1"})
    Path(bundle.spec.output.uri).mkdir()
    (Path(bundle.spec.output.uri) / "manifest.json").write_text('{"job": {"uid": "uid-2"}}')
    assert _failure(bundle) is FailureReason.OUTPUT_OCCUPIED


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_training_without_a_gpu_fails_unless_the_profile_allows_the_cpu(make_bundle: MakeBundle) -> None:
    prepare(make_bundle())
    assert _failure(make_bundle(allowCPU=False)) is FailureReason.GPU_FAULT


def test_the_condition_trained_stays_true_if_the_evaluation_fails(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle()
    prepare(bundle)
    monkeypatch.setattr(Assessor, "assess", lambda *_: 1 / 0)
    writer = StatusWriter(None, "attempt-1")
    with pytest.raises(TrainerFailure, match="ZeroDivisionError"):
        train(bundle, open_storage(bundle), writer, attempt=1)
    said = {condition.type: (condition.status, condition.reason) for condition in writer.intent.conditions or []}
    assert said == {"Trained": ("True", "TrainingSucceeded"), "Evaluated": ("False", "TrainerCrashed")}
    assert not (Path(bundle.spec.output.uri) / "manifest.json").exists()


def out_of_memory(*_: object) -> NoReturn:
    """Stands for a GPU that is too small for one more model: there is none here."""
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize(
    ("method", "failing"),
    [
        (MethodType.FULL, (Assessor, "assess")),
        (MethodType.LORA, (module, "merge")),
        (MethodType.LORA, (publishing, "report_page")),
    ],
)
def test_the_tuned_weights_are_uploaded_if_a_later_step_fails(
    make_bundle: MakeBundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: MethodType,
    failing: tuple[object, str],
) -> None:
    full = method is MethodType.FULL
    bundle = make_bundle(method={"type": method}, output={"uri": str(tmp_path / "output"), "merge": not full})
    prepare(bundle)
    monkeypatch.setattr(*failing, out_of_memory)
    with pytest.raises(TrainerFailure) as caught:
        run(bundle)
    assert caught.value.reason is FailureReason.GPU_OUT_OF_MEMORY
    folder = Path(bundle.spec.output.uri) / "unpublished" / "local" / ("model" if full else "adapter")
    assert caught.value.message.endswith(f"The tuned weights were saved to {folder}.")
    assert not (Path(bundle.spec.output.uri) / "manifest.json").exists(), "it is not published"
    tuned = AutoModelForCausalLM.from_pretrained(folder if full else bundle.spec.model.uri)
    assert full or PeftModel.from_pretrained(tuned, folder)


def test_an_adapter_from_a_failed_run_can_be_measured_and_merged_without_new_training(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_bundle()
    prepare(first)
    with monkeypatch.context() as patched:
        patched.setattr(Assessor, "assess", out_of_memory)
        with pytest.raises(TrainerFailure):
            run(first)
    kept = f"{first.spec.output.uri}/unpublished/local/adapter"
    second = make_bundle(
        method={"type": "None", "lora": {"from": kept}}, output={"uri": str(tmp_path / "second"), "merge": True}
    )
    prepare(second)
    artifacts = run(second)[1].intent.artifacts
    assert artifacts
    assert AutoModelForCausalLM.from_pretrained(artifacts.merged)


def test_the_tuned_weights_are_not_uploaded_to_an_output_of_another_job(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(job={"namespace": "team-a", "name": "tickets", "uid": "uid-1"})
    prepare(bundle)
    manifest = Path(bundle.spec.output.uri) / "manifest.json"

    def overtaken(*_: object) -> NoReturn:
        manifest.write_text('{"job": {"uid": "uid-2"}}')
        out_of_memory()

    monkeypatch.setattr(Assessor, "assess", overtaken)
    with pytest.raises(TrainerFailure, match=r"Tried to allocate 2.00 GiB\.$"):
        train(bundle, open_storage(bundle), StatusWriter(None, "attempt-1"), attempt=1)
    assert {path.name for path in manifest.parent.iterdir()} == {"manifest.json", ".work"}


@pytest.mark.parametrize("place", ["write_bytes", "delete_prefix"])
def test_a_pod_that_is_stopped_after_writing_its_manifest_reports_what_it_published(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    bundle = make_bundle()
    prepare(bundle)
    real = getattr(JobStorage, place)

    def stopped(self: JobStorage, *arguments: Any, **options: Any) -> Any:
        done = real(self, *arguments, **options)
        if (Path(bundle.spec.output.uri) / "manifest.json").exists():
            signal.raise_signal(signal.SIGTERM)
        return done

    monkeypatch.setattr(JobStorage, place, stopped)
    monkeypatch.setattr(_Stop, "requested", False)
    before, writer = signal.getsignal(signal.SIGTERM), StatusWriter(None, "attempt-1")
    handle_sigterm()
    try:
        with pytest.raises(StopRequested):
            train(bundle, open_storage(bundle), writer, attempt=1)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert writer.intent.artifacts
    assert writer.intent.is_true(ConditionType.EVALUATED), "its last word is that of the evaluation"


def test_a_pod_that_starts_after_publishing_reports_that_and_does_nothing_else(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle()
    prepare(bundle)
    verdict, first = run(bundle)
    monkeypatch.setattr(module, "recipe", lambda *_: pytest.fail("it trained again"))
    again, second = run(bundle)
    assert again == verdict
    # The results were put together a moment after the first pod last reported: the seconds may differ.
    moments = {"observed_time", "estimated_completion_time"}
    for part in ("training", "evaluation", "artifacts"):
        was, now = (getattr(writer.intent, part).model_dump(mode="json", exclude=moments) for writer in (first, second))
        assert now == was
    assert [condition.status for condition in second.intent.conditions or []] == ["True", "True"]


@pytest.mark.parametrize(
    ("stop", "why"),
    [
        (lambda: signal.raise_signal(signal.SIGTERM), "The pod received SIGTERM."),
        (lambda: stop_because("The pod lost its access."), "The pod lost its access."),
    ],
    ids=["sigterm", "own"],
)
def test_a_stop_ends_the_training_after_the_current_step_as_preempted(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: Callable[[], None], why: str
) -> None:
    bundle = make_bundle()
    prepare(bundle)
    path, termination = tmp_path / "bundle.json", tmp_path / "termination-log"
    path.write_text(bundle.model_dump_json(by_alias=True, exclude_none=True))
    monkeypatch.setenv("TERMINATION_LOG", str(termination))
    monkeypatch.setattr(_Stop, "requested", False)
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(steps_of_a_run, "training_steps", _stopped_during(training_steps, 3, stop))
    try:
        exit_code = main(["train", str(path)])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert exit_code == FAILURES[FailureReason.PREEMPTED].exit_code
    assert json.loads(termination.read_text()) == {
        "reason": "Preempted",
        "message": f"{why} The pod stopped after step 3 of 6. Its checkpoint is stored.",
        "step": 3,
        "checkpointStep": 3,
        "keptResults": 5,
    }


def _stopped_during(
    take: Callable[..., Iterator[Step]], step: int, stop: Callable[[], None]
) -> Callable[..., Iterator[Step]]:
    def steps(*arguments: Any, **options: Any) -> Iterator[Step]:
        for done in take(*arguments, **options):
            if done.number == step:
                stop()
            yield done

    return steps
