"""The command line of the operator."""

import pytest

from finetune_operator.__main__ import _arguments


def test_an_operator_without_namespaces_serves_the_whole_cluster() -> None:
    assert _arguments([]).namespaces == ()


def test_namespaces_are_separated_by_commas() -> None:
    longest = "t" * 63
    assert _arguments([f"--namespaces=tickets,team-2,7,{longest}"]).namespaces == ("tickets", "team-2", "7", longest)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "'' is not the name of a namespace"),
        ("tickets,", "'' is not the name of a namespace"),
        ("tickets, search", "' search' is not the name of a namespace"),
        ("team-*", "'team-*' is not the name of a namespace"),
        ("!tickets", "'!tickets' is not the name of a namespace"),
        ("Tickets", "'Tickets' is not the name of a namespace"),
        ("tickets\n", "'tickets\\n' is not the name of a namespace"),
        ("t" * 64, "is not the name of a namespace"),
        ("tickets,search,tickets", "the namespace 'tickets' is named twice"),
    ],
)
def test_what_is_no_list_of_namespaces_ends_the_process_with_a_sentence(
    text: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        _arguments([f"--namespaces={text}"])
    assert sentence in capsys.readouterr().err
