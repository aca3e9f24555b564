"""The evaluation in manifest.json."""

import json

from finetune_trainer.evaluation.table import evaluation_table
from finetune_trainer.metrics.answer_kind import AnswerKind
from tests.unit.finetune_trainer.statistics.test_comparison import compared, labels, tickets


def test_every_metric_of_every_model_is_listed_with_its_interval() -> None:
    expected = labels()
    found = compared(
        expected, ["?"] * 80, expected[:76] + ["?"] * 4, AnswerKind.LABEL, prompted=expected[:40] + ["?"] * 40
    )
    table = json.loads(json.dumps(evaluation_table(found), allow_nan=False))
    assert (table["answers"], table["rows"], table["shots"], table["outcome"]) == ("Label", 80, [5, 5, 5], "Better")
    exact = table["metrics"]["ExactMatch"]
    assert [exact[model]["value"] for model in ("base", "fewShot", "tuned")] == [0, 0.5, 0.95]
    assert exact["overFewShot"]["value"] == 0.45
    assert exact["overFewShot"]["low"] < 0.45 < exact["overFewShot"]["high"]
    assert exact["overFewShot"]["certain"]
    assert table["metrics"]["Loss"]["fewShot"] is None
    assert {score["label"] for score in table["labels"]["scores"]} == set(expected)
    assert sum(cell["rows"] for cell in table["labels"]["confusion"]) == 80
    assert table["overChance"]["certain"]


def test_fields_are_listed_if_answers_are_json() -> None:
    asked = tickets()
    table = evaluation_table(compared(asked, ["?"] * 80, asked, AnswerKind.JSON))
    assert table["labels"] is None
    assert table["fields"] == [
        {"path": "team", "expected": 80, "right": 80},
        {"path": "urgent", "expected": 80, "right": 80},
    ]
