"""Measurements that a later attempt takes over."""

from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_trainer.checkpoints.kept import KeptResults
from finetune_trainer.evaluation.kept_measurements import of_tuned
from finetune_trainer.statistics.measurements import Measured
from finetune_trainer.storage.job_storage import open_storage
from tests.unit.finetune_trainer.small_runs import measured
from tests.unit.finetune_trainer.storage.test_job_storage import bundle


def tuned(
    folder: Path, weights: bytes, pod: str, loss: float, counted: Callable[[int], None] = lambda results: None
) -> Measured:
    """The measurement of a tuned model by one attempt, whose own measurement would give `loss`."""
    scratch = folder / pod
    (scratch / "adapter").mkdir(parents=True)
    (scratch / "adapter" / "adapter_model.safetensors").write_bytes(weights)
    (scratch / "adapter" / "README.md").write_text(pod)
    storage = open_storage(bundle(str(folder / "out")))
    kept = KeptResults(storage, str(folder / "out" / "kept"), 1, {"the device": "cuda"}, scratch / "kept", counted)
    return of_tuned(kept, scratch / "adapter")("rows", "the tuned model", lambda answers: measured([loss], [True]))


def test_the_measurement_of_the_same_weights_is_taken_over_and_that_of_others_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = {}
    for number, (pod, weights) in enumerate([("a", b"one"), ("b", b"one"), ("c", b"other"), ("d", b"other")]):
        monkeypatch.setenv("POD_UID", pod)
        losses[pod] = tuned(tmp_path, weights, pod, float(number)).losses.tolist()
    assert losses["b"] == losses["a"]
    assert losses["c"] != losses["a"], "the weights of an attempt that had to train again"
    assert losses["d"] == losses["c"]
    assert "tuned.rows-a is not used: it was written for the digest of the tuned weights" in capsys.readouterr().out


def test_an_attempt_tells_before_it_measures_the_tuned_model_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another rank of an attempt that was killed may have stored something that rank 0 did not tell."""
    counts = list[int]()
    for pod in ("a", "b"):
        monkeypatch.setenv("POD_UID", pod)
        tuned(tmp_path, b"one", pod, 1.0, counts.append)
    assert counts == [0, 1, 1]
