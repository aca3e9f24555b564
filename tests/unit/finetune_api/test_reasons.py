"""The table of failures: complete, unambiguous, and a remedy in each."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.bundle import TerminationMessage
from finetune_api.reasons import (
    FAILURES,
    SUPERSEDED_EXIT_CODE,
    FailureReason,
    finding_of,
    reason_of_exit_code,
    sentence,
    with_remedy,
)
from finetune_api.status.fields import MESSAGE_LENGTH

CODES = [failure.exit_code for failure in FAILURES.values() if failure.exit_code]


def test_every_reason_is_in_the_table_once() -> None:
    assert list(FAILURES) == list(FailureReason)


def test_exit_codes_are_unique_and_clear_of_those_a_shell_or_python_gives() -> None:
    assert len({*CODES, SUPERSEDED_EXIT_CODE}) == len(CODES) + 1
    assert all(3 <= code < 126 for code in [*CODES, SUPERSEDED_EXIT_CODE])


@pytest.mark.parametrize("reason", FailureReason)
def test_every_reason_has_a_remedy_that_begins_and_ends_as_a_sentence(reason: FailureReason) -> None:
    remedy = FAILURES[reason].remedy
    assert remedy[0].isupper()
    assert remedy.endswith(".")
    assert reason.isalnum()


@given(st.sampled_from(FailureReason))
def test_a_typed_exit_code_leads_back_to_its_reason(reason: FailureReason) -> None:
    code = FAILURES[reason].exit_code
    assert not code or reason_of_exit_code(code) is reason


@given(st.integers(0, 255).filter(lambda code: code not in CODES))
def test_any_other_exit_code_is_a_crash(code: int) -> None:
    assert reason_of_exit_code(code) is FailureReason.TRAINER_CRASHED


def test_a_message_is_the_finding_and_then_the_remedy_of_the_reason() -> None:
    said = sentence(FailureReason.HOST_OUT_OF_MEMORY, "The container was killed. ")
    assert said == "The container was killed. Raise spec.compute.memory in a new job."


def test_a_finding_with_its_own_remedy_gets_no_second_one() -> None:
    found = with_remedy("s3://m has no tokenizer.json.", "Upload that file too")
    said = sentence(FailureReason.MODEL_UNSUPPORTED, found)
    assert said == "s3://m has no tokenizer.json. Upload that file too. Then create the job again."


@given(st.sampled_from(FailureReason), st.text(min_size=1, max_size=50), st.text(max_size=20))
def test_a_sentence_after_an_own_remedy_brings_no_second_remedy(reason: FailureReason, found: str, more: str) -> None:
    assert FAILURES[reason].remedy not in sentence(reason, f"{with_remedy(found, 'Mend that')} {more}")


@pytest.mark.parametrize("finding", ["Upload it again. The loss is NaN at step 7.", "Set the table", "upload it", ""])
def test_an_imperative_in_a_finding_is_not_taken_for_a_remedy(finding: str) -> None:
    assert sentence(FailureReason.TRAINER_CRASHED, finding).endswith(FAILURES[FailureReason.TRAINER_CRASHED].remedy)


def test_a_finding_that_is_cut_gets_the_remedy_of_its_reason() -> None:
    said = sentence(FailureReason.DATASET_INVALID, with_remedy("row " * 2000, "Shorten the row."))
    assert said.endswith(f"... {FAILURES[FailureReason.DATASET_INVALID].remedy}")


@given(
    st.sampled_from(FailureReason),
    st.text(max_size=50) | st.just(with_remedy("The key is unknown.", "Remove it.")) | st.just("row " * 2000),
)
def test_a_message_stays_the_same_when_it_is_read_back_and_made_again(reason: FailureReason, finding: str) -> None:
    said = sentence(reason, finding)
    assert sentence(reason, finding_of(reason, said)) == said
    assert len(said) <= MESSAGE_LENGTH


@given(st.sampled_from(FailureReason), st.text(max_size=200), st.none() | st.integers(0, 10**7))
def test_a_termination_message_reads_as_it_was_written(reason: FailureReason, text: str, step: int | None) -> None:
    message = TerminationMessage(reason=reason, message=text, step=step)
    assert TerminationMessage.model_validate_json(message.model_dump_json(by_alias=True)) == message
