"""The table of failures: complete, unambiguous, and a remedy in each."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.bundle import TerminationMessage
from finetune_api.reasons import FAILURES, SUPERSEDED_EXIT_CODE, FailureReason, reason_of_exit_code, sentence

CODES = [failure.exit_code for failure in FAILURES.values() if failure.exit_code]


def test_every_reason_stands_in_the_table_once() -> None:
    assert list(FAILURES) == list(FailureReason)


def test_exit_codes_are_unique_and_clear_of_those_a_shell_or_python_gives() -> None:
    assert len({*CODES, SUPERSEDED_EXIT_CODE}) == len(CODES) + 1
    assert all(3 <= code < 126 for code in [*CODES, SUPERSEDED_EXIT_CODE])


@pytest.mark.parametrize("reason", FailureReason)
def test_every_reason_has_a_remedy_in_one_sentence(reason: FailureReason) -> None:
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


def test_a_sentence_is_the_finding_and_then_the_remedy() -> None:
    assert sentence(FailureReason.HOST_OUT_OF_MEMORY, "It was killed. ") == "It was killed. Raise compute.memory."


@given(st.sampled_from(FailureReason), st.text(max_size=200), st.none() | st.integers(0, 10**7))
def test_a_termination_message_reads_as_it_was_written(reason: FailureReason, text: str, step: int | None) -> None:
    message = TerminationMessage(reason=reason, message=text, step=step)
    assert TerminationMessage.model_validate_json(message.model_dump_json(by_alias=True)) == message
