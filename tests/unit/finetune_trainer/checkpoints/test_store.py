"""The checkpoints of a job, on a real S3 server and on the local file system."""

import io
from collections.abc import Callable
from pathlib import Path
from time import time
from typing import BinaryIO

import pytest

from finetune_api.reasons import FailureReason
from finetune_trainer.checkpoints.store import (
    BEST,
    RENEWED_SECONDS,
    STATE,
    WORDS,
    BestWeights,
    CheckpointStore,
    Found,
)
from finetune_trainer.pod import termination
from finetune_trainer.pod.failure import Superseded, TrainerFailure
from finetune_trainer.storage.job_storage import JobStorage, join
from tests.unit.finetune_trainer.storage.test_job_storage import Place, claim_place, local_place, place, s3_place

__all__ = ["claim_place", "local_place", "place", "s3_place"]

FACTS = {"the digest of the data": "d"}
Open = Callable[..., CheckpointStore]


@pytest.fixture
def root(place: Place) -> str:
    return place.uri("out", ".work", "u", "checkpoints")


@pytest.fixture
def opened(place: Place, root: str) -> Open:
    """Opens the job's checkpoints as the pod of an attempt does."""

    def open(
        pod: str = "p1",
        keep: int = 2,
        facts: dict[str, str] = FACTS,
        attempt: int = 1,
        clock: Callable[[], float] = time,
    ) -> CheckpointStore:
        return CheckpointStore(place.storage, root, pod, facts, keep, attempt, clock)

    return open


def write(store: CheckpointStore, step: int, best: BestWeights | None = None) -> None:
    store.begin()
    words = (store.best_name(best) or "").encode()
    store.write(step, lambda: io.BytesIO(b"state of %d" % step), words, best, lambda size: None)


def newest(store: CheckpointStore, into: Path, misfit: str | None = None) -> tuple[Found | None, list[str]]:
    return store.newest(into, lambda words: words.decode() or None, lambda path, words: misfit)


def folders(place: Place, root: str) -> list[str]:
    return sorted({path.split("/")[0] for path in place.storage.list_folder(root)})


def weights(folder: Path, step: int) -> BestWeights:
    path = folder / "kept"
    path.write_bytes(b"best of %d" % step)
    return BestWeights(step, path)


def test_a_job_without_checkpoints_has_none(opened: Open, tmp_path: Path) -> None:
    assert newest(opened(), tmp_path / "into") == (None, [])


def test_the_newest_is_found_whichever_pod_wrote_it(opened: Open, tmp_path: Path) -> None:
    write(opened("p9"), 9)
    write(opened("p2"), 12)
    write(opened("p1"), 11)
    found, skipped = newest(opened("p3"), tmp_path / "into")
    assert found
    assert (found.name, found.state.read_bytes(), skipped) == ("step-00000012-1.2-p2", b"state of 12", [])


def test_older_ones_are_deleted_after_a_newer_one_is_complete(place: Place, root: str, opened: Open) -> None:
    store = opened(keep=2)
    for step in (5, 10, 15):
        write(store, step)
    assert folders(place, root) == ["step-00000010-1.1-p1", "step-00000015-1.1-p1"]


def test_a_checkpoint_counts_although_older_ones_cannot_be_deleted(
    place: Place,
    root: str,
    opened: Open,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refused(self: JobStorage, uri: str) -> None:
        raise TrainerFailure(FailureReason.OUTPUT_NOT_WRITABLE, f"The S3 service does not allow to delete {uri}.")

    store = opened(keep=1)
    write(store, 5)
    with monkeypatch.context() as patched:
        patched.setattr(JobStorage, "delete_prefix", refused)
        write(store, 10)
    assert "Checkpoints before step 10 could not be deleted: The S3 service" in capsys.readouterr().out
    found, _ = newest(opened("p2"), tmp_path / "into")
    assert found
    assert found.name == "step-00000010-1.1-p1"
    write(store, 15)
    assert folders(place, root) == ["step-00000015-1.1-p1"], "the next one deletes what was left"


def test_a_checkpoint_of_a_higher_step_by_another_pod_is_left_alone(place: Place, root: str, opened: Open) -> None:
    write(opened("other"), 20)
    store = opened("p1", keep=1)
    write(store, 5)
    write(store, 10)
    assert folders(place, root) == ["step-00000010-1.2-p1", "step-00000020-1.1-other"]


def test_the_one_with_which_an_attempt_began_is_kept_beside_its_first_own(
    place: Place, root: str, opened: Open, tmp_path: Path
) -> None:
    first = opened("p1")
    write(first, 5)
    write(first, 6)
    store = opened("p2", keep=2)
    newest(store, tmp_path / "into")
    write(store, 9)
    assert folders(place, root) == ["step-00000006-1.1-p1", "step-00000009-1.2-p2"]


def test_best_weights_are_uploaded_once_and_deleted_with_the_last_checkpoint_that_needs_them(
    place: Place, root: str, opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    send = JobStorage.send

    def noted(storage: JobStorage, open: Callable[[], BinaryIO], uri: str, advance: Callable[[int], None]) -> None:
        sent.append(uri)
        send(storage, open, uri, advance)

    monkeypatch.setattr(JobStorage, "send", noted)
    store = opened(keep=2)
    best = weights(tmp_path, 4)
    write(store, 5, best)
    write(store, 10, best)
    assert [uri for uri in sent if uri.endswith(BEST)] == [join(root, "best-00000004-1.1-p1", BEST)]
    write(store, 15, weights(tmp_path, 12))
    assert "best-00000004-1.1-p1" in folders(place, root), "the checkpoint of step 10 needs it"
    write(store, 20, weights(tmp_path, 12))
    assert folders(place, root) == ["best-00000012-1.1-p1", "step-00000015-1.1-p1", "step-00000020-1.1-p1"]


def test_an_attempt_finds_the_best_weights_and_uploads_its_own_copy(
    place: Place, root: str, opened: Open, tmp_path: Path
) -> None:
    write(opened("p1"), 5, weights(tmp_path, 4))
    store = opened("p2", keep=1)
    found, _ = newest(store, tmp_path / "into")
    assert found
    assert found.best
    assert (found.best.step, found.best.path.read_bytes()) == (4, b"best of 4")
    write(store, 6, found.best)
    assert folders(place, root) == ["best-00000004-1.2-p2", "step-00000006-1.2-p2"]


def test_best_weights_are_written_again_after_a_day(place: Place, root: str, opened: Open, tmp_path: Path) -> None:
    """A lifecycle rule of the bucket deletes what was not written for some days."""
    now = [0.0]
    store, best = opened(clock=lambda: now[0]), weights(tmp_path, 4)
    write(store, 5, best)
    place.storage.delete_prefix(join(root, "best-00000004-1.1-p1"))
    now[0] = RENEWED_SECONDS - 1
    write(store, 10, best)
    assert "best-00000004-1.1-p1" not in folders(place, root)
    now[0] = RENEWED_SECONDS
    write(store, 15, best)
    found, skipped = newest(opened("p2"), tmp_path / "into")
    assert found
    assert found.best
    assert (found.name, found.best.path.read_bytes(), skipped) == ("step-00000015-1.1-p1", b"best of 4", [])


@pytest.mark.parametrize("same_attempt", [False, True])
def test_a_pod_stops_when_a_later_one_stores_checkpoints(opened: Open, tmp_path: Path, same_attempt: bool) -> None:
    pod, later = opened("p1"), opened("p2", attempt=1 if same_attempt else 2)
    write(pod, 5)
    write(later, 6)
    with pytest.raises(Superseded, match=r"a later pod of the job, in attempt [12], stores checkpoints"):
        write(pod, 10)
    found, skipped = newest(opened("p3", attempt=3), tmp_path / "into")
    assert found
    assert (found.name, skipped) == ("step-00000010-1.1-p1", []), "its last checkpoint is whole"


def test_pods_that_began_at_the_same_time_leave_each_others_checkpoints(
    place: Place, root: str, opened: Open, tmp_path: Path
) -> None:
    pods = [opened("p1", keep=1), opened("p2", keep=1)]
    for pod in pods:
        pod.begin()
    for step in (5, 10):
        for pod in pods:
            write(pod, step, weights(tmp_path, 4))
    of_both = [f"{kind}-1.1-{pod}" for kind in ("best-00000004", "step-00000010") for pod in ("p1", "p2")]
    assert folders(place, root) == of_both


def test_a_pod_does_not_begin_after_a_later_attempt(opened: Open) -> None:
    write(opened("p2", attempt=2), 5)
    with pytest.raises(Superseded, match="in attempt 2"):
        opened("p1", attempt=1).begin()
    opened("p3", attempt=2).begin()


Harm = Callable[[JobStorage, str], object]
HARMS: dict[str, tuple[Harm, str]] = {
    "truncated": (
        lambda storage, root: storage.write_bytes(join(root, "step-00000010-1.1-p1", STATE), b"state"),
        "step-00000010-1.1-p1 is not used: its file state.safetensors has 5 bytes instead of 11",
    ),
    "without its words": (
        lambda storage, root: storage.delete_prefix(join(root, "step-00000010-1.1-p1")) or _words_only(storage, root),
        "step-00000010-1.1-p1 is not used: it has no manifest.json",
    ),
    "foreign": (
        lambda storage, root: storage.write_bytes(join(root, "step-00000010-1.1-p1", STATE), b"state of 99"),
        "the content of its file state.safetensors is not what was written",
    ),
    "without its best weights": (
        lambda storage, root: storage.delete_prefix(join(root, "best-00000008-1.1-p1")),
        "step-00000010-1.1-p1 is not used, because",
    ),
}


def _words_only(storage: JobStorage, root: str) -> None:
    storage.write_bytes(join(root, "step-00000010-1.1-p1", WORDS), b"best-00000008-1.1-p1")


@pytest.mark.parametrize("harm", HARMS)
def test_a_harmed_checkpoint_is_skipped_for_the_one_before_it_and_a_sentence_says_why(
    place: Place, root: str, opened: Open, tmp_path: Path, harm: str
) -> None:
    store = opened()
    write(store, 5, weights(tmp_path, 4))
    write(store, 10, weights(tmp_path, 8))
    act, sentence = HARMS[harm]
    act(place.storage, root)
    found, skipped = newest(opened("p2"), tmp_path / "into")
    assert found
    assert (found.name, found.best and found.best.step) == ("step-00000005-1.1-p1", 4)
    assert len(skipped) == 1
    assert sentence in skipped[0]


def test_a_checkpoint_of_other_data_or_another_model_is_not_used(opened: Open, tmp_path: Path) -> None:
    write(opened(), 5)
    found, skipped = newest(opened("p2", facts={"the digest of the data": "e"}), tmp_path / "into")
    assert found is None
    assert 'it was written for the digest of the data "d", and this run has "e"' in skipped[0]
    assert newest(opened("p2"), tmp_path / "into", misfit="it has other parameters")[1][0].endswith(
        "step-00000005-1.1-p1 is not used: it has other parameters."
    )


def test_files_beside_the_checkpoints_are_ignored(place: Place, root: str, opened: Open, tmp_path: Path) -> None:
    for name in ("step-x", "step-5", "notes", "step-00000007"):
        place.storage.write_bytes(join(root, name, "manifest.json"), b"{}")
    write(opened(), 5)
    found, skipped = newest(opened("p2"), tmp_path / "into")
    assert found
    assert (found.name, skipped) == ("step-00000005-1.1-p1", [])


def test_whether_a_checkpoint_is_usable_is_known_without_its_weights(place: Place, root: str, opened: Open) -> None:
    assert (opened().is_empty, opened().unusable()) == (True, [])
    store = opened()
    for step in (5, 10):
        write(store, step)
    assert (opened().is_empty, opened().unusable()) == (False, [])
    place.storage.write_bytes(join(root, "step-00000010-1.1-p1", STATE), b"")
    assert opened().unusable() == [], "the one before it is whole"
    newer, older = opened(facts={"the digest of the data": "e"}).unusable()
    assert "step-00000010-1.1-p1 is not used: its file state.safetensors has 0 bytes" in newer.why
    assert 'step-00000005-1.1-p1 is not used: it was written for the digest of the data "d"' in older.why


def test_checkpoints_of_another_format_are_not_used_and_the_log_says_how_many_there_are(
    opened: Open, place: Place, root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("step-00000120-p0", "step-00000090-p0"):
        for file in ("state.safetensors", "manifest.json"):
            place.storage.write_bytes(join(root, name, file), b"1")
    assert newest(opened(), tmp_path / "into") == (None, [])
    said = [line for line in capsys.readouterr().out.splitlines() if "another format" in line]
    assert said == [
        f"2 folders have a name of another format in {root}, for example step-00000090-p0, as another version of the "
        "trainer writes them. They are not used as checkpoints, and not deleted."
    ]
    write(opened(), 1)
    assert newest(opened(), tmp_path / "into")[0] is not None
    assert "step-00000120-p0" in folders(place, root)


@pytest.mark.usefixtures("unstopped")
def test_after_sigterm_old_best_weights_are_not_written_again_before_the_last_step(
    opened: Open, place: Place, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    store, best = opened(clock=lambda: now), weights(tmp_path, 1)
    write(store, 1, best)
    now += 2 * RENEWED_SECONDS
    monkeypatch.setattr(termination._Stop, "requested", True)
    place.storage.delete_prefix(join(root, store.best_name(best) or ""))
    write(store, 2, best)
    assert folders(place, root) == [name for name in folders(place, root) if name.startswith("step")]
    monkeypatch.setattr(termination._Stop, "requested", False)
    write(store, 3, best)
    assert store.best_name(best) in folders(place, root)
