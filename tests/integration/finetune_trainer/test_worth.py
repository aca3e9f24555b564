"""The verdict on real, tiny trainings: Better for a task that can be learned, and not for shuffled answers."""

import random

import pytest
import torch
from accelerate.state import AcceleratorState

from finetune_trainer.pod.status.status_writer import StatusWriter
from finetune_trainer.preflight.recipe import preflight
from finetune_trainer.statistics.evidence import Outcome
from finetune_trainer.storage.job_storage import open_storage
from finetune_trainer.train.recipe import train
from tests.unit.finetune_trainer.conftest import MakeBundle
from tests.unit.finetune_trainer.preflight_runs import with_dataset

ANSWERS = {"quick": "to the left", "answer": "to the right", "system": "stay"}


def rows(count: int) -> list[dict[str, str]]:
    """One of three words stands in each question and decides the answer."""
    words = list(ANSWERS)
    return [{"prompt": f"{i} {words[i % 3]} {i * 7 % 97}", "completion": ANSWERS[words[i % 3]]} for i in range(count)]


def shuffled(found: list[dict[str, str]]) -> list[dict[str, str]]:
    answers = random.Random(0).sample([row["completion"] for row in found], len(found))
    return [row | {"completion": answer} for row, answer in zip(found, answers, strict=True)]


@pytest.mark.thorough_for("True-False")
@pytest.mark.parametrize(("spoilt", "praised"), [(False, True), (True, False)])
def test_the_verdict_praises_a_learnable_task_and_not_shuffled_answers(
    make_bundle: MakeBundle, spoilt: bool, praised: bool
) -> None:
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    data = shuffled(rows(360)) if spoilt else rows(360)
    bundle = with_dataset(
        make_bundle(rows=data, method={"type": "Full"}, training={"learningRate": 0.01, "epochs": 5}),
        split={"test": 0.33},
    )
    preflight(bundle, open_storage(bundle), StatusWriter(None, "preflight"))
    writer = StatusWriter(None, "attempt-1")
    verdict = train(bundle, open_storage(bundle), writer, attempt=1)
    found = writer.intent.evaluation
    assert found
    assert found.decision
    assert found.decision.metric == "ExactMatch", "the answers are labels"
    assert found.decision.outcome == (Outcome.BETTER if praised else Outcome.UNRELATED)
    assert verdict.startswith("Tuning was worth it.") is praised
    assert verdict.startswith("The tuned model's answers fit other rows' questions as well as their own") is spoilt
