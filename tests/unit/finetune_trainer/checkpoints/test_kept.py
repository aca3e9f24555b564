"""The number of kept results, by which the operator sees that an attempt made progress."""

import errno
import os
import signal
from pathlib import Path
from time import monotonic
from typing import NoReturn

import pytest

from finetune_api.reasons import FailureReason
from finetune_trainer.checkpoints import kept as module
from finetune_trainer.checkpoints.background import Background
from finetune_trainer.checkpoints.kept import KeptResults
from finetune_trainer.pod.failure import PeerFailed, StopRequested, Superseded, TrainerFailure
from finetune_trainer.pod.liveness.heartbeat import beats, patience
from finetune_trainer.storage.files import PATIENCE_SECONDS
from finetune_trainer.storage.job_storage import JobStorage
from tests.unit.finetune_trainer.storage.test_job_storage import Place, claim_place, local_place, place, s3_place

__all__ = ["claim_place", "local_place", "place", "s3_place"]


@pytest.fixture
def counts() -> list[int]:
    return []


def down(*_: object) -> NoReturn:
    """A storage that does not answer."""
    raise TrainerFailure(FailureReason.STORAGE_UNAVAILABLE, "No answer.")


def opened(place: Place, pod: str, scratch: Path, counts: list[int], monkeypatch: pytest.MonkeyPatch) -> KeptResults:
    """The results as the pod of one attempt uses them."""
    monkeypatch.setenv("POD_UID", pod)
    return KeptResults(place.storage, place.uri("out", "kept"), 1, {"data": "d"}, scratch / pod, counts.append)


def test_the_count_grows_with_each_result_that_no_attempt_had_stored(
    place: Place, tmp_path: Path, counts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened(place, "a", tmp_path, counts, monkeypatch)
    assert first.find("base") is None
    assert first.keep("base", {"f": b"1"})
    assert first.on(weights="w").keep("tuned", {"f": b"2"})
    second = opened(place, "b", tmp_path, counts, monkeypatch)
    assert second.find("base") is not None
    assert counts == [1, 2], "a result that is only taken over is no progress"
    assert second.keep("more", {"f": b"3"})
    assert counts == [1, 2, 3]


def test_a_result_whose_writer_was_killed_does_not_count(
    place: Place, tmp_path: Path, counts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    place.storage.write_bytes(place.uri("out", "kept", "base-a", "measurements.json"), b"1")
    assert opened(place, "b", tmp_path, counts, monkeypatch).keep("base", {"f": b"1"})
    assert counts == [1]


def test_a_result_that_was_damaged_and_is_written_again_counts_again(
    place: Place, tmp_path: Path, counts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the attempts after it would seem to stand still until they have stored one more."""
    assert opened(place, "a", tmp_path, counts, monkeypatch).keep("base", {"f": b"1"})
    place.storage.write_bytes(place.uri("out", "kept", "base-a", "f"), b"22")
    again = opened(place, "b", tmp_path, counts, monkeypatch)
    assert again.find("base") is None
    assert again.keep("base", {"f": b"1"})
    assert opened(place, "c", tmp_path, counts, monkeypatch).keep("more", {"f": b"1"})
    assert counts == [1, 2, 3]


def test_a_result_that_the_storage_refuses_does_not_count(
    s3_place: Place, tmp_path: Path, counts: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    reader = s3_place.open("reader")
    kept = KeptResults(reader, s3_place.uri("out", "kept"), 1, {"data": "d"}, tmp_path, counts.append)
    assert not kept.keep("base", {"f": b"1"})
    assert counts == []
    assert "A later attempt will have to repeat what " in capsys.readouterr().out


def test_storing_a_large_result_shows_progress(
    place: Place, tmp_path: Path, counts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = opened(place, "a", tmp_path, counts, monkeypatch)
    weights = tmp_path / "weights"
    weights.write_bytes(bytes(40_000_000))
    before = beats()
    assert kept.keep("trained", {"weights": weights, "again": weights})
    assert beats() - before >= 10, "both files are read twice in parts"


def test_a_result_that_the_storage_did_not_take_is_written_when_it_works_again(
    place: Place,
    tmp_path: Path,
    counts: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kept, then = opened(place, "a", tmp_path, counts, monkeypatch), list[str]()
    with monkeypatch.context() as patched:
        patched.setattr(JobStorage, "send", down)
        assert not kept.on(weights="w").keep("trained", {"f": b"1"}, then=lambda: then.append("trained"))
        assert not kept.keep("base", {"f": b"2"}, then=lambda: then.append("base"))
        assert not kept.keep("base.answers0", {"f": b"3"}, again=False)
        kept.keep_missing()
    assert (counts, then) == ([], [])
    assert capsys.readouterr().out.count("A later attempt will have to repeat") == 3, "each is told once"
    assert kept.keep("tuned", {"f": b"4"})
    assert (counts, then) == ([1, 2, 3], ["trained", "base"])
    later = opened(place, "b", tmp_path, counts, monkeypatch)
    assert later.on(weights="w").find("trained") is not None
    assert later.find("base") is not None
    assert later.find("base.answers0") is None, "its writer tries again itself"
    kept.keep_missing()
    assert counts == [1, 2, 3], "nothing is missing any more"


@pytest.mark.parametrize("end", [StopRequested(), TrainerFailure(FailureReason.GPU_FAULT, "It fell off the bus.")])
def test_a_result_that_the_storage_did_not_take_is_written_before_the_pod_ends_if_the_storage_works_again(
    place: Place, tmp_path: Path, counts: list[int], monkeypatch: pytest.MonkeyPatch, end: BaseException
) -> None:
    kept, then, send = opened(place, "a", tmp_path, counts, monkeypatch), list[str](), JobStorage.send
    refused = iter(range(3))

    def down_thrice(self: JobStorage, *arguments: object) -> None:
        if next(refused, None) is not None:
            down()
        send(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(JobStorage, "send", down_thrice)
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.01)
    assert not kept.on(weights="w").keep("trained", {"f": b"1"}, then=lambda: then.append("trained"))
    with pytest.raises(type(end)), kept.missing_kept_at_the_end():
        raise end
    assert (counts, then) == ([1], ["trained"])
    assert opened(place, "b", tmp_path, counts, monkeypatch).on(weights="w").find("trained") is not None


def test_a_result_that_is_too_large_for_the_time_that_is_left_is_not_begun_again(
    place: Place, tmp_path: Path, counts: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, sent = opened(place, "a", tmp_path, counts, monkeypatch), list[str]()

    def refused(self: JobStorage, *arguments: object) -> None:
        sent.append("again")
        down()

    monkeypatch.setattr(JobStorage, "send", refused)
    monkeypatch.setattr(module, "STORAGE_SPEED", 0.01)
    (tmp_path / "model").write_bytes(b"whole")
    assert not kept.keep("trained", {"model": tmp_path / "model"})
    before = list(sent)
    with pytest.raises(StopRequested), kept.missing_kept_at_the_end():
        raise StopRequested
    assert sent == before
    assert "A later attempt will have to repeat" in capsys.readouterr().out


def test_a_storage_that_stays_away_does_not_hold_the_end_of_the_pod(
    place: Place, tmp_path: Path, counts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = opened(place, "a", tmp_path, counts, monkeypatch)
    monkeypatch.setattr(JobStorage, "send", down)
    monkeypatch.setattr(module, "LAST_UPLOAD_SECONDS", 0.2)
    assert not kept.keep("trained", {"f": b"1"})
    began = monotonic()
    for _ in ("once", "and not longer if something else ends it too"):
        with pytest.raises(TrainerFailure), kept.missing_kept_at_the_end():
            down()
    assert 0.2 <= monotonic() - began < 5
    assert kept.seconds_at_the_end() == 0


def test_a_pod_that_was_replaced_writes_nothing_more(
    place: Place, tmp_path: Path, counts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = opened(place, "a", tmp_path, counts, monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr(JobStorage, "send", down)
        assert not kept.keep("trained", {"f": b"1"})
    with pytest.raises(Superseded), kept.missing_kept_at_the_end():
        raise Superseded
    assert counts == []


def test_a_result_that_a_thread_writes_may_wait_for_the_storage_as_long_as_any_other(
    place: Place, tmp_path: Path, counts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the watchdog would end the pod while the storage is away."""
    kept, send, allowed = opened(place, "a", tmp_path, counts, monkeypatch), JobStorage.send, list[float]()

    def noted(self: JobStorage, *arguments: object) -> None:
        allowed.append(patience(None))
        send(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(JobStorage, "send", noted)
    assert kept.keep_last("trained", {"f": b"1"}, seconds=60)
    assert {*allowed} == {PATIENCE_SECONDS}
    assert patience(None) < PATIENCE_SECONDS


@pytest.mark.parametrize("error", [OSError(errno.EHOSTUNREACH, "No route to host"), ValueError("I/O on a closed file")])
@pytest.mark.parametrize("last", [False, True], ids=["keep", "keep_last"])
def test_a_result_is_missing_whatever_the_error_of_the_storage_is(
    place: Place, tmp_path: Path, counts: list[int], monkeypatch: pytest.MonkeyPatch, error: Exception, last: bool
) -> None:
    """A thread that dies of an error must not look like one that has written the result."""

    def broken(*_: object) -> NoReturn:
        raise error

    kept, then = opened(place, "a", tmp_path, counts, monkeypatch), list[str]()
    with monkeypatch.context() as patched:
        patched.setattr(JobStorage, "send", broken)
        if last:
            written = kept.keep_last("trained", {"f": b"1"}, 60, again=True, then=lambda: then.append("told"))
        else:
            written = kept.keep("trained", {"f": b"1"}, then=lambda: then.append("told"))
        kept.keep_missing()
    assert (written, counts, then) == (False, [], [])
    kept.keep_missing()
    assert (counts, then) == ([1], ["told"])
    assert opened(place, "b", tmp_path, counts, monkeypatch).find("trained") is not None


@pytest.mark.parametrize(
    "end", [StopRequested(), PeerFailed(TrainerFailure(FailureReason.PEER_LOST, "The connection broke."))]
)
def test_a_result_whose_writing_is_interrupted_is_written_before_the_pod_ends(
    place: Place, tmp_path: Path, counts: list[int], monkeypatch: pytest.MonkeyPatch, end: BaseException
) -> None:
    kept, then = opened(place, "a", tmp_path, counts, monkeypatch), list[str]()
    send, ends = JobStorage.send, iter([end])

    def interrupted(self: JobStorage, *arguments: object) -> None:
        if now := next(ends, None):
            raise now
        send(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(JobStorage, "send", interrupted)
    with pytest.raises(type(end)), kept.missing_kept_at_the_end():
        kept.keep("base", {"f": b"1"}, then=lambda: then.append("base"))
    assert (counts, then) == ([1], ["base"])
    assert opened(place, "b", tmp_path, counts, monkeypatch).find("base") is not None


def test_a_writing_that_is_interrupted_while_a_thread_does_it_is_done_again_before_the_pod_ends(
    place: Place, tmp_path: Path, counts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, wait, ends = opened(place, "a", tmp_path, counts, monkeypatch), Background.wait, iter([StopRequested()])

    def interrupted(self: Background, seconds: float) -> bool:
        if now := next(ends, None):
            raise now
        return wait(self, seconds)

    monkeypatch.setattr(Background, "wait", interrupted)
    with pytest.raises(StopRequested), kept.missing_kept_at_the_end():
        kept.keep_last("trained", {"f": b"1"}, 60, again=True)
    assert counts == [1]
    assert opened(place, "b", tmp_path, counts, monkeypatch).find("trained") is not None


@pytest.mark.usefixtures("handled")
def test_the_failure_of_the_work_is_told_also_if_a_missing_result_is_written_after_sigterm(
    place: Place, tmp_path: Path, counts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = opened(place, "a", tmp_path, counts, monkeypatch)
    stored = "It stopped after step 5. Its checkpoint is stored."
    with monkeypatch.context() as patched:
        patched.setattr(JobStorage, "send", down)
        assert not kept.keep("base", {"f": b"1"})
    with pytest.raises(TrainerFailure, match=stored), kept.missing_kept_at_the_end():  # noqa: PT012
        with pytest.raises(StopRequested):
            os.kill(os.getpid(), signal.SIGTERM)
        raise TrainerFailure(FailureReason.PREEMPTED, stored)
    assert counts == [1]


def test_results_that_were_never_written_are_told_at_the_end(
    place: Place,
    tmp_path: Path,
    counts: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kept = opened(place, "a", tmp_path, counts, monkeypatch)

    def interrupted(*_: object) -> NoReturn:
        monkeypatch.setattr(JobStorage, "send", down)
        raise StopRequested

    monkeypatch.setattr(JobStorage, "send", interrupted)
    monkeypatch.setattr(module, "LAST_UPLOAD_SECONDS", 0.05)
    with pytest.raises(StopRequested), kept.missing_kept_at_the_end():
        kept.keep("base", {"f": b"1"})
    assert "before the pod had to end." in capsys.readouterr().out


def test_an_attempt_tells_what_other_ranks_have_stored_in_an_earlier_one(
    place: Place, tmp_path: Path, counts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an attempt in which rank 0 has nothing to write would seem to stand still."""
    first = opened(place, "a", tmp_path / "0", counts, monkeypatch)
    other = opened(place, "a", tmp_path / "1", list[int](), monkeypatch)
    assert first.keep("tuned.rank0of2.answers0", {"f": b"1"})
    assert other.keep("tuned.rank1of2.answers0", {"f": b"2"})
    assert counts == [1]
    opened(place, "b", tmp_path, counts, monkeypatch).count()
    assert counts == [1, 2]
