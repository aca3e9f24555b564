"""Finds e-mail addresses, card numbers and phone numbers in a text.

The run time of every pattern is linear in the length of the text. Quantifiers are possessive, and a match can only
start at a place that does not follow one of its own characters."""

import re
from collections.abc import Callable, Iterator, Sequence

import phonenumbers

from finetune_api.spec.row_cleaning import Masked

Span = tuple[int, int]
"""Characters [start, end) of a text."""
Finder = Callable[[str], Iterator[Span]]

MARKS = {Masked.EMAIL: "<EMAIL_ADDRESS>", Masked.CARD: "<CREDIT_CARD>", Masked.PHONE: "<PHONE_NUMBER>"}
"""The text that replaces a masked value. The names of the entities are those of Presidio."""

_EMAIL = re.compile(r"(?<![\w.+%'-])[\w.+%'-]++@(?:[\w-]++\.)+(?:xn--[\w-]+|[^\W\d_]{2,}\w*+)")

_THIRTEEN_DIGITS = re.compile(r"(?:\d[ -]?){12}\d")
"""A cheap test: a text without a match contains no card number."""
_CARD_LAYOUTS = tuple(
    re.compile(rf"(?<![\w+])(?=({layout})(?!\w))")
    for layout in (
        r"\d{4}([ -])\d{4}\2\d{4}\2\d{4}\2\d{3}",
        r"\d{4}([ -])\d{4}\2\d{4}\2\d{1,4}",
        r"\d{4}([ -])\d{6}\2\d{4,5}",
        r"\d{13,19}",
    )
)
"""The usual groupings of card numbers: groups of four, 4-6-5 (American Express), 4-6-4 (Diners Club), or no groups.
A number with another grouping is not a card number. Matches may overlap: digits before a card must not hide it."""
_CARD_NETWORKS = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})"  # Visa
    r"|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}"  # Mastercard
    r"|3[47]\d{13}"  # American Express
    r"|3(?:0[0-5]|[689]\d)\d{11}"  # Diners Club
    r"|6(?:011|4[4-9]\d|5\d\d)\d{12,15}"  # Discover
    r"|35(?:2[89]|[3-8]\d)\d{12}"  # JCB
    r"|62\d{14,17}"  # UnionPay
    r"|(?:5018|5020|5038|6304|6759|676[1-3])\d{8,15}"  # Maestro
)
"""Prefixes and lengths of the card networks (issuer identification numbers, ISO/IEC 7812). Nine of ten random numbers
fail the Luhn check. This pattern excludes most of the others."""

_SEVEN_DIGITS = re.compile(r"(?:\d[ ()./\xa0\u2010-\u2015-]{0,4}){6}\d")
"""A cheap test: a line without a match contains no phone number, because no phone number is shorter."""
_LINES = re.compile(r"[^\n]+")
_PHONE_WORD = re.compile(
    r"(?:phone|tele?|tel[eé]fono|t[eé]l[eé]phone|mobil\w*|cell|fax|call|whatsapp|☎)(?:\W{1,3}\w{1,4}){0,2}\W{0,4}$",
    re.I,
)
"""A word that announces a phone number, and at most two short words after it: phone, call me at, tel. no."""
_LOOK_BACK = 28


def finders(kinds: Sequence[Masked], regions: Sequence[str]) -> dict[Masked, Finder]:
    """Returns the search function of each of `kinds`, in the order of masking. The order matters because an address or
    a card can contain digits that look like a phone number. `regions`: ISO 3166-1 codes. Raises KeyError for a region
    that libphonenumber does not know."""
    unknown = [region for region in regions if region not in phonenumbers.SUPPORTED_REGIONS]
    if unknown:
        raise KeyError(unknown[0])
    known: dict[Masked, Finder] = {
        Masked.EMAIL: emails,
        Masked.CARD: cards,
        Masked.PHONE: lambda text: phones(text, regions),
    }
    return {kind: find for kind, find in known.items() if kind in kinds}


def replaced(text: str, find: Finder, replacement: Callable[[str], str]) -> str:
    """Replaces every match of `find` in `text`. Repeats until there is no match, because the text next to a mark can be
    a new match."""
    while spans := list(find(text)):
        parts: list[str] = []
        end = 0
        for start, stop in spans:
            parts += text[end:start], replacement(text[start:stop])
            end = stop
        text = "".join(parts) + text[end:]
    return text


def hidden(value: str) -> str:
    """Returns a masked value in the form in which it may be shown: its first character and its length."""
    return value[:1] + "•" * (len(value) - 1)


def emails(text: str) -> Iterator[Span]:
    """Yields e-mail addresses in their usual form, without quoted local parts and without hosts that have no dot."""
    if "@" in text:
        yield from (match.span() for match in _EMAIL.finditer(text))


def cards(text: str) -> Iterator[Span]:
    """Yields card numbers: in a usual grouping, of a card network, and with a correct check digit."""
    if not _THIRTEEN_DIGITS.search(text):
        return
    end = 0
    spans = sorted(match.span(1) for layout in _CARD_LAYOUTS for match in layout.finditer(text))
    for start, stop in spans:
        digits = re.sub("[ -]", "", text[start:stop])
        if start >= end and _CARD_NETWORKS.fullmatch(digits) and luhn(digits):
            yield start, stop
            end = stop


def luhn(digits: str) -> bool:
    """Returns whether the last digit is the check digit of the other digits (ISO/IEC 7812-1, annex B)."""
    values = [int(digit) for digit in reversed(digits)]
    doubled = (2 * value for value in values[1::2])
    return (sum(values[::2]) + sum(value - 9 if value > 9 else value for value in doubled)) % 10 == 0


def phones(text: str, regions: Sequence[str] = ()) -> Iterator[Span]:
    """Yields phone numbers that are valid in the numbering plan of their own country code, or of one of `regions`. Uses
    the text search of libphonenumber, which excludes dates, page numbers and digits in unusual groups."""
    end = 0
    for line in _LINES.finditer(text):
        if _SEVEN_DIGITS.search(line.group()):
            for start, stop in sorted(_phones_of_line(line.group(), regions)):
                if line.start() + start >= end:
                    end = line.start() + stop
                    yield line.start() + start, end


def _phones_of_line(line: str, regions: Sequence[str]) -> set[Span]:
    """Returns digits in the usual groups of phone numbers, and digits in any groups that are announced as one."""
    return {
        (match.start, match.end)
        for region in (None, *regions)
        if region or "+" in line or "\uff0b" in line
        for leniency in (phonenumbers.Leniency.STRICT_GROUPING, phonenumbers.Leniency.VALID)
        for match in phonenumbers.PhoneNumberMatcher(line, region, leniency)
        if _said_to_be_phone(line, match.start, match.raw_string)
        or (leniency == phonenumbers.Leniency.STRICT_GROUPING and not match.raw_string.isdigit())
    }


def _said_to_be_phone(line: str, start: int, raw: str) -> bool:
    """Returns whether a country code, an area code in parentheses or a word before the digits announces a number."""
    return raw.startswith(("+", "\uff0b", "(")) or bool(_PHONE_WORD.search(line, max(0, start - _LOOK_BACK), start))
