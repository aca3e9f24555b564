"""What each step of cleaning does to a row, and what it tells of it."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.reasons import FailureReason
from finetune_api.spec.row_cleaning import Clean
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.rows.cleaning import Cleaner
from finetune_trainer.rows.row_format import Message, Row
from finetune_trainer.sources.cleaning_record import EXAMPLES

EVERYTHING = Clean(
    mojibake="Repair",
    unicode="NFKC",
    remove=[r"(?m)^Sent from my \w+$", r"<[^>]*>", r"\[\d+\]", "--+"],
    whitespace="Collapse",
    mask=["Email", "Card", "Phone"],
    phone_regions=["US"],
)


def cleaned(text: str, **steps: object) -> str:
    return Cleaner(Clean.model_validate(steps)).text(text)[0]


def row(*contents: str, system: str = "") -> Row:
    turns = tuple(
        Message(role, text) for role, text in zip(["user", "assistant"] * len(contents), contents, strict=False)
    )
    return Row((Message("system", system), *turns) if system else turns, "rows.jsonl:7")


def test_by_default_only_the_composition_of_letters_is_made_one() -> None:
    assert cleaned(" cafe\u0301  x²\r\n") == " caf\u00e9  x²\r\n"


@pytest.mark.parametrize(
    ("steps", "before", "after"),
    [
        ({"unicode": "Keep"}, "cafe\u0301", "cafe\u0301"),
        ({"unicode": "NFKC"}, "ﬁx² \uff21", "fix2 A"),
        ({"mojibake": "Repair"}, "cafÃ© â€œtoâ€\x9d go", "café “to” go"),
        ({"mojibake": "Repair"}, "SÃO PAULO, naïve", "SÃO PAULO, naïve"),
        ({"whitespace": "Trim"}, "\ufeff  a \t\r\n  b\x85c\u2028 d\xa0 ", "\ufeff  a\n  b\nc\n d"),
        ({"whitespace": "Trim"}, "\n  def f():\n      pass  \n\n\n\n", "def f():\n      pass"),
        ({"whitespace": "Collapse"}, "a\xa0 \tb\n\n\n\nc", "a b\n\nc"),
        ({"remove": [r"(?m)^Sent from my \w+$"]}, "yes\nSent from my iPhone", "yes\n"),
        ({"remove": ["<<[^>]*>>"]}, "2*3 = <<2*3=6>>6, a<<1>><<2>>b", "2*3 = 6, a b"),
        ({"remove": ["ab"]}, "-aabb-", "-a b-"),
        ({"mask": ["Email"]}, "joe@x.com, +1 202 456 1111", "<EMAIL_ADDRESS>, +1 202 456 1111"),
        ({"mask": ["Card"]}, "joe@x.com 4111111111111111", "joe@x.com <CREDIT_CARD>"),
        ({"mask": ["Phone"], "phone_regions": ["US"]}, "(202) 456-1111", "<PHONE_NUMBER>"),
    ],
)
def test_a_step(steps: dict[str, object], before: str, after: str) -> None:
    assert cleaned(before, **steps) == after


def test_steps_count_the_rows_they_changed_each_row_once() -> None:
    cleaner = Cleaner(Clean(whitespace="Trim", mask=["Email"]))
    list(cleaner.clean([row(" q ", " a "), row("q", "a@b.co"), row("q", "a")]))
    assert cleaner.cleaned.rows == 2
    assert cleaner.cleaned.steps == {"unicode": 0, "whitespace": 1, "mask[Email]": 1}


def test_a_row_whose_question_or_answer_becomes_empty_is_dropped_and_counted() -> None:
    cleaner = Cleaner(Clean(remove=["(?i)n/a"]))
    kept = list(cleaner.clean([row("q", "N/A"), row("n/a ", "a"), row("q", "a"), row("q", "a", "n/a", "b")]))
    assert kept == [row("q", "a")]
    assert cleaner.cleaned.emptied == 3


def test_a_system_message_that_becomes_empty_is_left_out() -> None:
    assert list(Cleaner(Clean(remove=["boiler"])).clean([row("q", "a", system="boiler")])) == [row("q", "a")]


def test_a_few_examples_are_kept_with_place_and_what_changed() -> None:
    cleaner = Cleaner(Clean(whitespace="Trim"))
    list(cleaner.clean([row("x" * 500 + "\r\n" + "y" * 500, "a")] * 10))
    assert len(cleaner.cleaned.examples) == EXAMPLES
    change = cleaner.cleaned.examples[0]
    assert (change.step, change.place) == ("whitespace", "rows.jsonl:7")
    assert "xx\\r⏎yy" in change.before
    assert "xx⏎yy" in change.after
    assert len(change.before) < 200


SECRETS = ("joe@example.com", "4111 1111 1111 1111", "(202) 456-1111")


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("form", ["{}", "from {} Sent from my phone", "<div {}>text", "  {}  ", "x² {} cafÃ©"])
def test_no_example_shows_a_masked_value(secret: str, form: str) -> None:
    cleaner = Cleaner(EVERYTHING)
    list(cleaner.clean([row(form.format(secret), "a"), row("joe\uff20example.com " + form.format(secret), "b")]))
    shown = " ".join(f"{change.before} {change.after}" for change in cleaner.cleaned.examples)
    assert shown
    assert secret not in shown
    assert "joe" not in shown
    assert not any(part in shown for part in re.split(r"\W+", secret) if len(part) > 3)


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ({"remove": ["ok", "(a"]}, r"dataset\.clean\.remove\[1\] '\(a' is not a regular expression in RE2's syntax"),
        ({"remove": [r"(?<=a)b"]}, "neither look-around"),
        ({"remove": ["a*"]}, "matches empty text"),
        ({"phone_regions": ["ZZ"], "mask": ["Phone"]}, "phoneRegions: ZZ is not a supported country"),
    ],
)
def test_what_cannot_be_used_is_named(steps: dict[str, object], said: str) -> None:
    with pytest.raises(TrainerFailure, match=said) as caught:
        Cleaner(Clean.model_validate(steps))
    assert caught.value.reason is FailureReason.SPEC_INVALID


@pytest.mark.timeout(10)
def test_no_pattern_runs_away() -> None:
    """One that takes Python's own engine 2**40 steps."""
    assert cleaned("a" * 40 + "b", remove=["(a+)+$"]) == "a" * 40 + "b"


pieces = ["a", "B", "é", "e\u0301", "\u0301", "Ã©", "²", " ", "\t", "\n", "\r\n", "\x85", "\xa0", *"<>[1]-@", ".co"]
secrets = [f" {secret} " for secret in SECRETS]
texts = st.lists(st.sampled_from([*pieces, *secrets, "Sent from my phone"]), max_size=20).map("".join)


@given(texts)
def test_cleaning_what_is_clean_changes_nothing(text: str) -> None:
    once = Cleaner(EVERYTHING).text(text)[0]
    assert Cleaner(EVERYTHING).text(once)[0] == once


@given(texts)
def test_words_are_never_joined(text: str) -> None:
    steps = Clean(unicode="NFC", remove=EVERYTHING.remove, whitespace="Collapse")
    before = re.findall(r"\w+", cleaned(text))
    for word in re.findall(r"\w+", Cleaner(steps).text(text)[0]):
        assert any(word in whole for whole in before)


@given(texts)
def test_what_was_masked_is_gone(text: str) -> None:
    once = Cleaner(EVERYTHING).text(text)[0]
    assert not re.search(r"[a-z0-9]@[a-z0-9]+\.[a-z]{2}\b", once)
    assert not any(secret in once for secret in SECRETS[:2])
