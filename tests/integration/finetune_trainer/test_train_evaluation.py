"""What a run is measured by, and the gates and regression sets it has to pass."""

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from accelerate.state import AcceleratorState

from finetune_api.reasons import FailureReason
from finetune_trainer.evaluation import scoring
from finetune_trainer.model.row_losses import row_losses
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.pod.status.status_writer import StatusWriter
from finetune_trainer.storage.job_storage import open_storage
from finetune_trainer.train import recipe as module
from finetune_trainer.train.recipe import train
from finetune_trainer.training import validation
from tests.integration.finetune_trainer.trainings import applied, prepare, run
from tests.unit.finetune_trainer.conftest import MakeBundle, write_rows
from tests.unit.finetune_trainer.preflight_runs import with_dataset


def labelled_rows(count: int) -> list[dict[str, str]]:
    """Rows whose answers are one of two labels."""
    return [{"prompt": f"Is {i} even?", "completion": "yes" if i % 2 == 0 else "no"} for i in range(count)]


def test_every_metric_that_fits_is_taken_against_base_and_few_shot(
    make_bundle: MakeBundle, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle(rows=labelled_rows(60))
    prepare(bundle)
    capsys.readouterr()
    _, writer = run(bundle)
    told = [status["conditions"][0]["message"] for status in applied(capsys.readouterr().out)]
    assert "Answering 12 held-out rows with the base model prompted with 5 examples, draw 3 of 3." in told
    found = writer.intent.evaluation
    assert found
    for metrics in (found.base, found.few_shot, found.tuned):
        assert metrics
        assert None not in (metrics.exact_match, metrics.macro_f1, metrics.macro_precision, metrics.macro_recall)
    assert found.base
    assert found.few_shot
    assert (found.base.loss is None, found.few_shot.loss is None) == (False, True)
    assert found.decision
    assert found.decision.metric == "ExactMatch"
    assert found.passed is None


def test_a_failed_gate_fails_the_job_and_keeps_its_results_marked(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(evaluation={"gates": [{"metric": "ExactMatch", "min": 1}], "baselines": ["Base"]})
    prepare(bundle)
    writer = StatusWriter(None, "attempt-1")
    with pytest.raises(TrainerFailure, match=r"ExactMatch is 0, but its gate requires at least 1\.") as caught:
        train(bundle, open_storage(bundle), writer, attempt=1)
    assert caught.value.reason is FailureReason.EVALUATION_GATE_FAILED
    said = {condition.type: (condition.status, condition.reason) for condition in writer.intent.conditions or []}
    assert said == {"Trained": ("True", "TrainingSucceeded"), "Evaluated": ("False", "EvaluationGateFailed")}
    output = Path(bundle.spec.output.uri)
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["evaluation"]["passed"] is False
    assert manifest["evaluation"]["gates"] == [
        {"metric": "ExactMatch", "bound": "Min", "limit": 1.0, "value": 0.0, "passed": False}
    ]
    assert "Do not use it" in (output / "adapter" / "README.md").read_text()
    assert writer.intent.artifacts
    monkeypatch.setattr(module, "recipe", lambda *_: pytest.fail("it trained again"))
    with pytest.raises(TrainerFailure, match="ExactMatch is 0"):
        train(bundle, open_storage(bundle), StatusWriter(None, "attempt-1"), attempt=1)


def test_after_an_attempt_without_enough_memory_every_measurement_has_half_the_tokens(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base model, the validation rows, the tuned and the merged model: each could run out of memory again."""
    asked: dict[str, set[int]] = {}
    for measures in (scoring, validation):

        def spied(model: Any, rows: Any, tokens: int, of: str = measures.__name__) -> Any:
            asked.setdefault(of, set()).add(tokens)
            return row_losses(model, rows, tokens)

        monkeypatch.setattr(measures, "row_losses", spied)
    bundle = with_dataset(
        make_bundle(output={"uri": str(tmp_path / "output"), "merge": True}), split={"validation": 0.2}
    )
    whole = prepare(bundle).resolved.micro_batch_tokens

    train(bundle, open_storage(bundle), StatusWriter(None, "attempt-2"), attempt=2, halvings=1)

    assert asked == {scoring.__name__: {whole // 2}, validation.__name__: {whole // 2}}


def test_a_test_set_that_occurs_in_the_training_data_is_not_called_better(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    words = [f"{first}{second}" for first in ("ta", "re", "mi", "so", "lu") for second in ("ran", "dol", "mek", "sit")]
    texts = [" ".join(Random(i).choices(words, k=12)) for i in range(20)]
    train = write_rows(tmp_path / "train.jsonl", [{"text": f"{text} and so on"} for text in texts])
    test = write_rows(tmp_path / "test.jsonl", [{"text": text} for text in texts])
    dataset = {"train": [{"uri": str(train), "format": "Text"}], "test": [{"uri": str(test), "format": "Text"}]}
    bundle = make_bundle(dataset=dataset, training={"learningRate": 0.05, "epochs": 3})
    assert prepare(bundle).preflight.leaked == 20
    verdict, writer = run(bundle)
    assert writer.intent.evaluation
    assert writer.intent.evaluation.decision
    assert writer.intent.evaluation.decision.outcome == "Noise"
    assert verdict.startswith(
        "It is unknown whether tuning was worth it: all 20 held-out rows, or near-duplicates of them, also occur in "
        "the training data with their answers."
    )


def test_a_gain_on_learned_test_rows_alone_is_called_a_leak(make_bundle: MakeBundle, tmp_path: Path) -> None:
    # The other rows use other letters, so training on the first ten does not make them more likely.
    letters = ["abcdefghijklm    ", "NOPQRSTUVWXYZ"]
    texts = ["".join(Random(i).choices(letters[i >= 10], k=80)) for i in range(50)]
    train = write_rows(tmp_path / "train.jsonl", [{"text": f"{text} and so on"} for text in texts[:10]])
    test = write_rows(tmp_path / "test.jsonl", [{"text": text} for text in texts])
    dataset = {"train": [{"uri": str(train), "format": "Text"}], "test": [{"uri": str(test), "format": "Text"}]}
    training = {"learningRate": 0.01, "epochs": 20}
    prepared = prepare(bundle := make_bundle(dataset=dataset, method={"type": "Full"}, training=training))
    assert 0 < (prepared.preflight.leaked or 0) <= 10
    verdict, writer = run(bundle)
    assert writer.intent.evaluation
    assert writer.intent.evaluation.decision
    assert writer.intent.evaluation.decision.outcome == "Leaked", verdict
    assert writer.intent.evaluation.decision.rows == 50 - (prepared.preflight.leaked or 0)


def unlike(number: int) -> str:
    """An answer that resembles no training row, so that training makes it less likely."""
    return "@#~" * 8 + str(number)


def test_a_regression_set_is_measured_before_and_after(make_bundle: MakeBundle, tmp_path: Path) -> None:
    general = write_rows(
        tmp_path / "general.jsonl", [{"prompt": f"Say {i}", "completion": unlike(i)} for i in range(9)]
    )
    wish = {"name": "general", "uri": str(general), "metric": "Loss"}
    training = {"learningRate": 0.05, "epochs": 3}
    for name, max_drop, passed in (("strict", 0.0, False), ("lenient", 1000.0, True)):
        evaluation = {"regression": [wish | {"maxDrop": max_drop}], "metrics": ["Loss"]}
        bundle = make_bundle(evaluation=evaluation, training=training, output={"uri": str(tmp_path / name)})
        prepared = prepare(bundle)
        assert [row.answer for row in prepared.regression["general"]] == [unlike(i) for i in range(9)]
        writer = StatusWriter(None, "attempt-1")
        if passed:
            train(bundle, open_storage(bundle), writer, attempt=1)
        else:
            with pytest.raises(TrainerFailure, match="Loss on regression set general changed from"):
                train(bundle, open_storage(bundle), writer, attempt=1)
        AcceleratorState._reset_state(reset_partial_state=True)
        found = writer.intent.evaluation
        assert found
        assert found.regression
        assert (found.regression[0].rows, found.regression[0].passed, found.passed) == (9, passed, passed)
        assert found.tuned
        assert found.tuned.exact_match is None, "no metric asked for answers, so none were written"
