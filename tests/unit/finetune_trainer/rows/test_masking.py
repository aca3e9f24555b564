"""What is taken for an e-mail address, a card number and a phone number, and what is not."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.spec.row_cleaning import Masked
from finetune_trainer.rows.masking import cards, emails, finders, hidden, luhn, phones, replaced

ALL = (Masked.EMAIL, Masked.CARD, Masked.PHONE)


def found(text: str, spans: object) -> list[str]:
    return [text[start:end] for start, end in spans]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("write to joe.o'hara+x@mail.example.com.", ["joe.o'hara+x@mail.example.com"]),
        ("<müller@bücher.example>, a_b@x.co", ["müller@bücher.example", "a_b@x.co"]),
        ("admin@xn--bcher-kva.xn--p1ai", ["admin@xn--bcher-kva.xn--p1ai"]),
        ("root@localhost, @handle, a@b, 3 @ 4.50, git@1.2.3.4", []),
    ],
)
def test_email_addresses(text: str, addresses: list[str]) -> None:
    assert found(text, emails(text)) == addresses


@pytest.mark.parametrize(
    "number",
    [
        "4111111111111111",
        "4111 1111 1111 1111",
        "4111-1111-1111-1111",
        "5555555555554444",
        "2223 0031 2200 3222",
        "3782 822463 10005",
        "3056 930902 5904",
        "6011111111111117",
        "3530111333300000",
    ],
)
def test_the_networks_own_test_numbers_are_cards(number: str) -> None:
    text = f"1234 {number} 12/27"
    assert found(text, cards(text)) == [number]


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112",  # a wrong check digit
        "41111-11111-11111-1",  # no card is printed so
        "9999999999999995",  # no network's prefix
        "id X4111111111111111, 4111111111111111Z, 00014111111111111111000",
        "2024-01-15 12:00:00.123456, 3.1415926535897931",
    ],
)
def test_other_numbers_are_no_cards(text: str) -> None:
    assert found(text, cards(text)) == []


def test_few_of_the_order_numbers_that_look_like_cards_are_taken_for_one() -> None:
    draw = random.Random(0)
    orders = [str(draw.randrange(10**15, 10**16)) for _ in range(5000)]
    assert sum(any(cards(order)) for order in orders) / len(orders) < 0.03


def test_the_check_digit_is_luhns() -> None:
    assert [digit for digit in range(10) if luhn(f"7992739871{digit}")] == [3]


@pytest.mark.parametrize(
    ("text", "regions", "numbers"),
    [
        ("call +49 30 901820 or +12024561111", (), ["+49 30 901820", "+12024561111"]),
        ("call 030 901820", (), []),
        ("Zentrale: 030 901820, +49 30 90 18 20", ("DE",), ["030 901820", "+49 30 90 18 20"]),
        ("01.42.68.53.00, 020 7946 0958", ("FR", "GB"), ["01.42.68.53.00", "020 7946 0958"]),
        ("(202) 456-1111 or 202-456-1414", ("US",), ["(202) 456-1111", "202-456-1414"]),
        ("phone: 2024561111, call me at 2024561414", ("US",), ["2024561111", "2024561414"]),
        ("order 2024561111, invoice 0309018200", ("US", "DE"), []),
        ("21000-10500 = 10500, 48/2=24>>24 and 2,024,561,111", ("US",), []),
        ("192.168.100.200, ISBN 978-3-16-148410-0, DE89 3704 0044 0532 0130 00", ("US", "DE"), []),
        ("2024-01-15, 15/01/2024 10:30, 1.234.567,89, v1.2.3.4567", ("US", "DE"), []),
    ],
)
def test_phone_numbers(text: str, regions: Sequence[str], numbers: list[str]) -> None:
    assert found(text, phones(text, regions)) == numbers


def test_bare_order_numbers_are_no_phone_numbers() -> None:
    draw = random.Random(0)
    text = "\n".join(f"order {draw.randrange(10**9, 10**10)}" for _ in range(300))
    assert found(text, phones(text, ("US", "DE", "GB"))) == []


def test_a_region_nobody_can_call_is_named() -> None:
    with pytest.raises(KeyError, match="ZZ"):
        finders(ALL, ["DE", "ZZ"])


addresses = ["joe@x.com", "x.co", "@x.co", "4111 1111 1111 1111", "4111111111111111", "+49 30 901820", "phone "]
pieces = st.sampled_from([*"ab1 .@-+'(>\n", *addresses])


@given(st.lists(pieces, max_size=12).map("".join))
def test_masking_a_masked_text_changes_nothing(text: str) -> None:
    every = finders(ALL, ["US"])
    for find in every.values():
        text = replaced(text, find, lambda _: "<MARK>")
    assert all(found(text, find(text)) == [] for find in every.values())


def test_a_hidden_value_shows_its_first_character_and_length() -> None:
    assert hidden("joe@x.com") == "j••••••••"


@pytest.mark.parametrize("text", ["a" * 200_000, "a@" * 100_000, "a@" + "b." * 100_000, "1" * 200_000, "1234 " * 9000])
@pytest.mark.timeout(10)
def test_no_text_needs_long_to_process(text: str) -> None:
    assert not [*emails(text), *cards(text)]
