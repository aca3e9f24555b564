"""All differences in an answer are marked, and no text is lost."""

from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.results.differences import Piece, differences

TEXT = st.text(st.sampled_from("ab c.,\n{}äß"), max_size=60)


@given(TEXT, TEXT)
def test_the_pieces_join_to_the_answer_and_to_the_expected_answer(expected: str, answer: str) -> None:
    pieces = differences(expected, answer)
    assert "".join(piece.text for piece in pieces if piece.kind != "missing") == answer
    if len(pieces) > 1:
        assert "".join(piece.text for piece in pieces if piece.kind != "extra") == expected


def test_different_words_are_marked_next_to_the_expected_words() -> None:
    assert differences('{"area": "login"}', '{"area": "app"}') == [
        Piece('{"area": "', "same"),
        Piece("login", "missing"),
        Piece("app", "extra"),
        Piece('"}', "same"),
    ]


def test_nothing_is_marked_in_a_very_different_answer() -> None:
    assert differences("yes", "I would rather not say.") == [Piece("I would rather not say.", "same")]
    assert differences("yes", "") == []
