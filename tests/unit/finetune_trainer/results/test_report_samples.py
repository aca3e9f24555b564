"""The report shows some held-out rows of each kind."""

from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.results.report_samples import SHOWN, sample_groups, shares
from finetune_trainer.statistics.measurements import Answer
from tests.unit.finetune_trainer.complete_run import json_results
from tests.unit.finetune_trainer.conftest import MakeBundle
from tests.unit.finetune_trainer.small_runs import examples, results


def test_some_of_each_kind_are_shown_and_all_are_counted(make_bundle: MakeBundle) -> None:
    run = results(make_bundle(), examples([12] * 100))
    for row in (90, 91):
        run.base.answers[row] = Answer("right", truncated=False, matches=True)
    found = {group.title: (group.rows, len(group.samples)) for group in sample_groups(run)}
    assert found == {
        "Only the tuned model is correct": (50, 5),
        "Only the base model is correct": (2, 2),
        "Neither model is correct": (48, 5),
    }
    assert sum(shown for _, shown in found.values()) == SHOWN


def test_a_sample_is_the_row_with_both_models_own_answers(make_bundle: MakeBundle) -> None:
    run = results(make_bundle(), examples([12] * 4))
    run.base.answers[1] = Answer("an other answer", truncated=True, matches=False)
    group = sample_groups(run)[0]
    sample = group.samples[1]
    assert (sample.place, sample.prompt, sample.expected) == ("rows.jsonl:1", "a question", "answer 1")
    base, tuned = sample.answers["Base"], sample.answers["Tuned"]
    assert (base.truncated, base.matches, tuned.matches) == (True, False, True)
    assert "".join(piece.text for piece in base.pieces if piece.kind != "missing") == "an other answer"


def test_the_few_shot_answer_is_between_base_and_tuned() -> None:
    run = json_results()
    assert run.assessment.baselines.few_shot
    sample = sample_groups(run)[0].samples[0]
    assert list(sample.answers) == ["Base", "Few-shot", "Tuned"]
    row = [example.place for example in run.held_out].index(sample.place)
    assert sample.answers["Few-shot"].matches == run.assessment.baselines.few_shot.draws[0][row].matches


@given(st.lists(st.integers(0, 50), min_size=1, max_size=6), st.integers(0, 60))
def test_shares_are_even_and_use_all_places(sizes: list[int], total: int) -> None:
    taken = shares(sizes, total)
    assert all(0 <= count <= size for count, size in zip(taken, sizes, strict=True))
    assert sum(taken) == min(total, sum(sizes))
    unfilled = [count for count, size in zip(taken, sizes, strict=True) if count < size]
    assert all(count <= min(unfilled, default=0) + 1 or not unfilled for count in taken)
