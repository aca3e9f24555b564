"""An attempt that is interrupted while a model answers loses a batch, and the later one ends with the same answers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from finetune_api.reasons import FailureReason
from finetune_trainer.checkpoints import kept as kept_results
from finetune_trainer.checkpoints.kept import KeptResults
from finetune_trainer.evaluation import generation as module
from finetune_trainer.evaluation import kept_answers, scoring
from finetune_trainer.evaluation.generation import write_answers
from finetune_trainer.evaluation.kept_answers import KeptAnswers
from finetune_trainer.evaluation.scoring import Evaluator
from finetune_trainer.model.parameters.loading import greedy_generation
from finetune_trainer.pod import termination
from finetune_trainer.pod.failure import PeerFailed, StopRequested, Superseded, TrainerFailure
from finetune_trainer.statistics.measurements import Answer
from finetune_trainer.storage.job_storage import open_storage
from tests.unit.finetune_trainer.evaluation.test_generation import END, prompts
from tests.unit.finetune_trainer.small_runs import examples, fresh_accelerator, tiny_llama
from tests.unit.finetune_trainer.storage.test_job_storage import bundle

LENGTHS = [9, 30, 14, 7, 22, 5, 18, 11, 26, 13, 16]
generate = module.generate


class Interrupted(BaseException):
    """The end of an attempt by SIGKILL: nothing can be written."""


@pytest.fixture
def tokenizer(tiny_model_dir: str) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_model_dir)


@pytest.fixture
def attempt(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[list[Answer], list[list[int]]]]:
    """Runs one attempt. Returns its answers, none if it was interrupted, and the prompts' lengths of each batch."""
    numbers = iter(range(100))

    def run(
        batches: int = 100,
        *,
        holds: int = 1000,
        every: float = 0.0,
        facts: str = "these",
        counted: Callable[[int], None] = lambda results: None,
        ending: BaseException | type[BaseException] = Interrupted,
        raised: list[BaseException] | None = None,
    ) -> tuple[list[Answer], list[list[int]]]:
        answered: list[list[int]] = []

        def limited(model: Any, asked: Sequence[NDArray[np.int32]], settings: GenerationConfig) -> list[list[int]]:
            if len(asked) * (max(map(len, asked)) + 8) > holds and len(asked) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            if len(answered) == batches:
                raise ending
            answered.append([len(prompt) for prompt in asked])
            return generate(model, asked, settings)

        number = next(numbers)
        monkeypatch.setenv("POD_UID", f"pod{number}")
        monkeypatch.setattr(kept_answers, "PIECE_SECONDS", every)
        monkeypatch.setattr(kept_answers, "SHARE", float("inf"))
        storage = open_storage(bundle(str(tmp_path / "out")))
        place, scratch = str(tmp_path / "out" / "kept"), tmp_path / f"scratch{number}"
        log = KeptAnswers(KeptResults(storage, place, number, {"facts": facts}, scratch, counted), "base.rows")
        model, asked = tiny_llama(), prompts(LENGTHS)
        settings = greedy_generation(model, (END,), max_new_tokens=8)
        with mock.patch.object(module, "generate", limited), torch.no_grad():
            last = ending if isinstance(ending, type) else type(ending)
            try:
                with log.kept_at_the_end():
                    found = write_answers("it", model, tokenizer, asked, [""] * len(asked), 80, settings, log)
            except (StopRequested, last) as error:
                found = []
                if raised is not None:
                    raised.append(error)
        return found, answered

    return run


def test_a_later_attempt_writes_only_the_answers_that_are_missing_in_the_same_batches(
    attempt: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    whole, batches = attempt(every=600.0)
    assert len(batches) > 3, "a test that can fail"
    counts: list[int] = []
    done: list[list[int]] = []
    for _ in batches:
        answers, written = attempt(1, counted=counts.append)
        done += written
    answers, rest = attempt()
    assert (done, rest, answers) == (batches, [], whole)
    assert counts == list(range(1, len(batches) + 1)), "each piece is progress"
    assert f"The first {len(LENGTHS)} answers of it are those of earlier attempts." in capsys.readouterr().out


def test_a_later_attempt_goes_on_with_the_batch_size_that_fits_into_the_memory(attempt: Callable[..., Any]) -> None:
    whole, batches = attempt(holds=50, every=600.0)
    assert max(map(len, batches)) < max(map(len, attempt(facts="more memory")[1])), "a test that can fail"
    _, first = attempt(2, holds=50)
    answers, rest = attempt()
    assert (first + rest, answers) == (batches, whole)


def test_an_interruption_within_a_minute_keeps_nothing(attempt: Callable[..., Any]) -> None:
    whole, batches = attempt(every=600.0)
    attempt(2, every=60.0)
    assert attempt() == (whole, batches)


LOST = TrainerFailure(FailureReason.PEER_LOST, "The connection broke.")


@pytest.mark.parametrize(
    "ending", [StopRequested(), PeerFailed(LOST), LOST, RuntimeError("CUDA error: unspecified launch failure")]
)
def test_an_end_with_warning_loses_only_the_batch_that_is_being_written(
    attempt: Callable[..., Any], ending: BaseException
) -> None:
    whole, batches = attempt(every=600.0)
    assert len(batches) > 3, "a test that can fail"
    counts: list[int] = []
    _, first = attempt(2, every=600.0, ending=ending, counted=counts.append)
    _, second = attempt(1, every=600.0, ending=ending, counted=counts.append)
    answers, rest = attempt()
    assert (first + second + rest, answers) == (batches, whole)
    assert counts == [1, 2], "each of the two attempts is progress"


def test_an_attempt_that_another_one_has_replaced_keeps_nothing(attempt: Callable[..., Any], tmp_path: Path) -> None:
    attempt(2, every=600.0, ending=Superseded)
    assert not (tmp_path / "out" / "kept").exists()


def test_sigterm_between_two_answers_of_a_batch_leaves_whole_batches(
    attempt: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, batches = attempt(every=600.0)
    assert len(batches[1]) > 1, "a test that can fail"
    read, left = module.read_answer, iter(range(len(batches[0]) + 1))

    def stopped(*arguments: Any) -> Answer:
        if next(left, None) is None:
            raise StopRequested
        return read(*arguments)

    with mock.patch.object(module, "read_answer", stopped):
        attempt(every=600.0)
    assert attempt() == (whole, batches[1:])


def test_sigterm_before_the_first_answer_keeps_nothing(attempt: Callable[..., Any], tmp_path: Path) -> None:
    attempt(0, every=600.0, ending=StopRequested)
    assert not (tmp_path / "out" / "kept").exists()


def test_a_rank_that_waits_for_the_answers_of_a_lost_one_keeps_its_own(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kept(number: int) -> KeptAnswers:
        place, scratch = str(tmp_path / "out" / "kept"), tmp_path / f"scratch{number}"
        return KeptAnswers(KeptResults(open_storage(bundle(place)), place, number, {}, scratch), "base.rows")

    def lost(lengths: Sequence[int], write: Callable[[Sequence[int]], list[Answer]]) -> list[Answer]:
        write(range(len(lengths)))
        raise PeerFailed(LOST)

    model = tiny_llama()
    rows = examples(LENGTHS)
    evaluator = Evaluator(tokenizer, 50, greedy_generation(model, (END,), max_new_tokens=4), fresh_accelerator())
    with mock.patch.object(scoring, "divided", lost), pytest.raises(PeerFailed):
        evaluator.answers("it", model, rows, kept=kept(1))
    whole = evaluator.answers("it", model, rows)
    monkeypatch.setattr(module, "generate", mock.Mock(side_effect=AssertionError("they are written already")))
    assert evaluator.answers("it", model, rows, kept=kept(2)) == whole


def test_sigterm_does_not_wait_for_a_storage_that_does_not_answer(
    attempt: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, batches = attempt(every=600.0)
    monkeypatch.setenv("GRACE_SECONDS", "0.2")
    answers = Event()
    with mock.patch.object(kept_results, "write_folder", side_effect=lambda *_: answers.wait(60)):
        attempt(2, every=600.0, ending=StopRequested)
    answers.set()
    assert "the storage did not answer before the pod had to end." in capsys.readouterr().out
    assert attempt() == (whole, batches)


def test_a_failure_is_told_also_if_the_pod_is_stopped_while_its_answers_are_kept(
    attempt: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(termination._Stop, "requested", False)

    def stopped(results: int) -> None:
        termination._Stop.requested, termination._Stop.since = True, monotonic()

    raised: list[BaseException] = []
    attempt(2, every=600.0, ending=LOST, counted=stopped, raised=raised)
    assert raised == [LOST]


def test_answers_of_other_facts_are_not_taken_over(attempt: Callable[..., Any]) -> None:
    _, batches = attempt(2, facts="another data set")
    _, answered = attempt(facts="this data set")
    assert answered[:2] == batches


def test_answers_that_the_storage_refuses_are_part_of_the_next_piece(
    attempt: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, batches = attempt(every=600.0)
    write, calls = kept_answers.KeptResults.keep, iter([False, True, True])

    def sometimes(kept: KeptResults, name: str, files: Any, again: bool) -> bool:
        return write(kept, name, files, again) if next(calls) else False

    with mock.patch.object(kept_answers.KeptResults, "keep", sometimes):
        attempt(3)
    answers, rest = attempt()
    assert (answers, rest) == (whole, batches[3:])
    assert sorted(path.name for path in (tmp_path / "out" / "kept").glob("*-pod1")) == [
        "base.rows.answers0-pod1",
        f"base.rows.answers{len(batches[0]) + len(batches[1])}-pod1",
    ]


def test_from_a_damaged_piece_on_the_answers_are_written_again(
    attempt: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, batches = attempt(every=600.0)
    attempt(3)
    piece = tmp_path / "out" / "kept" / f"base.rows.answers{len(batches[0])}-pod1" / kept_answers.FILE
    piece.write_bytes(piece.read_bytes()[:-1])
    answers, written = attempt()
    assert (answers, written) == (whole, batches[1:])
    assert f"{piece.parent.name} is not used: its file {kept_answers.FILE} has " in capsys.readouterr().out


def test_the_time_of_earlier_attempts_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    storage = open_storage(bundle(str(tmp_path / "out")))
    answer = Answer("a", truncated=False, matches=True)
    for number, seconds in enumerate((90.0, 70.0)):
        monkeypatch.setenv("POD_UID", f"pod{number}")
        kept = KeptResults(storage, str(tmp_path / "out"), number, {}, tmp_path / f"scratch{number}")
        log = KeptAnswers(kept, "base.rows", lambda: now[0])
        answers, tokens = log.earlier("it", 80)
        now[0] += seconds
        log.written([*answers, answer], tokens)
    last = KeptAnswers(KeptResults(storage, str(tmp_path / "out"), 2, {}, tmp_path / "scratch2"), "base.rows")
    assert last.earlier("it", 80) == ([answer, answer], 80)
    assert last.earlier_seconds == 160.0


@pytest.mark.parametrize(("took", "pause"), [(0.1, 60.0), (2.0, 200.0), (100.0, 600.0)])
def test_pieces_take_at_most_one_percent_of_the_time_with_pauses_of_ten_minutes_at_most(
    took: float, pause: float
) -> None:
    now, kept = [0.0], mock.Mock()
    kept.find.return_value = None

    def keep(*_: object, again: bool) -> bool:
        now[0] += took
        return True

    kept.keep.side_effect = keep
    log = KeptAnswers(kept, "base.rows", lambda: now[0])
    log.earlier("it", 80)
    for now[0] in (60.0, 59.0 + took + pause, 61.0 + took + pause):
        log.written([], 80)
    assert kept.keep.call_count == 2
