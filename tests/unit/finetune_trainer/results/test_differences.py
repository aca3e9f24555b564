"""What is marked in an answer: all that differs, and nothing of the text is lost."""

from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.results.differences import Piece, differences

TEXT = st.text(st.sampled_from("ab c.,\n{}äß"), max_size=60)


@given(TEXT, TEXT)
def test_the_pieces_are_the_answer_and_the_rest_is_the_expected_one(expected: str, answer: str) -> None:
    pieces = differences(expected, answer)
    assert "".join(piece.text for piece in pieces if piece.kind != "missing") == answer
    if len(pieces) > 1:
        assert "".join(piece.text for piece in pieces if piece.kind != "extra") == expected


def test_words_that_differ_are_marked_with_what_they_stand_for() -> None:
    assert differences('{"area": "login"}', '{"area": "app"}') == [
        Piece('{"area": "', "same"),
        Piece("login", "missing"),
        Piece("app", "extra"),
        Piece('"}', "same"),
    ]


def test_an_answer_with_little_in_common_is_left_unmarked() -> None:
    assert differences("yes", "I would rather not say.") == [Piece("I would rather not say.", "same")]
    assert differences("yes", "") == []
