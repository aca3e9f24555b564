"""Generates the demo's rows: support tickets as people write them, and the JSON that a help desk needs.

    python examples/tickets/generate.py --rows 480 --seed 0 > tickets.jsonl

A row is {"task": ..., "ticket": ..., "json": ...}. Each product and issue has several wordings. The urgency is in the
tone. The order number can be anywhere in the ticket, or missing. Tickets also have greetings, names, other numbers and
typing errors. The rows combine these parts at random, so the held-out rows differ from all training rows. A model must
learn the task and cannot memorise the answers.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from random import Random
from typing import Any

TASK = "Turn the support ticket into JSON with product, issue, urgent and order."

PRODUCTS: dict[str, tuple[str, ...]] = {
    "laptop": ("laptop", "notebook computer", "portable computer"),
    "monitor": ("monitor", "computer screen", "27 inch display"),
    "headphones": ("headset", "pair of headphones", "noise cancelling headset"),
    "router": ("router", "wifi router", "wifi box"),
    "phone": ("phone", "smartphone", "mobile phone"),
    "kettle": ("kettle", "water kettle", "electric kettle"),
    "coffee machine": ("coffee machine", "espresso machine", "coffee maker"),
    "office chair": ("office chair", "desk chair", "swivel chair"),
    "lamp": ("lamp", "desk lamp", "reading light"),
    "backpack": ("backpack", "rucksack", "hiking backpack"),
    "running shoes": ("pair of running shoes", "pair of trainers", "pair of jogging shoes"),
    "tent": ("tent", "camping tent", "2 person tent"),
}
ISSUES: dict[str, tuple[str, ...]] = {
    "damaged": (
        "my {product} arrived with a crack",
        "the {product} was in pieces when I opened the parcel",
        "the box was crushed and the {product} is all scratched",
        "I unpacked a badly dented {product}",
    ),
    "defective": (
        "my {product} stopped working after {days} days",
        "the {product} does not do what it should any more",
        "after {days} days of use the {product} just died",
        "I cannot get the {product} to work at all",
    ),
    "late": (
        "I have been waiting {days} days for my {product}",
        "my {product} has still not arrived",
        "where is the {product} I bought {days} days ago",
        "the {product} should have been here {days} days ago",
    ),
    "wrong item": (
        "you sent me {other} instead of the {product}",
        "I bought the {product} but received {other}",
        "this is not the {product} I picked, it is {other}",
        "I wanted the {product} and you sent {other}",
    ),
    "missing part": (
        "some small parts of the {product} are missing",
        "there was no manual with the {product}",
        "the {product} came without the accessories",
        "one piece of the {product} is missing",
    ),
    "refund": (
        "I sent the {product} back and still want my money",
        "please give me my money back for the {product}",
        "I returned the {product} and have not been paid back",
        "I do not want the {product} any more, please refund me",
    ),
    "billing": (
        "I was charged {times} times for the {product}",
        "the invoice for my {product} is wrong",
        "you took too much from my card for the {product}",
        "the discount is missing on the bill for the {product}",
    ),
}
TONES: dict[bool, tuple[str, ...]] = {
    True: ("This is urgent!", "It is really urgent!", "I need help urgently!", "Urgent, please answer today!"),
    False: ("", "", "", "No rush, take your time.", "What should I do?"),
}
ORDERS = (
    "Order {order}: {text}.",
    "About order {order}: {text}.",
    "{text} (order {order}).",
    "{text}, order number {order}.",
    "{text}. My order was {order}.",
    "#{order} - {text}.",
    "{text}. It is order no. {order}.",
)
NO_ORDER = ("{text}.", "{text}. I lost the order number.")
NO_ORDER_SHARE = 0.1
GREETINGS = ("", "", "Hi,", "Hello,", "Dear team,", "Good morning,", "hey there,")
CLOSINGS = ("", "", "Thanks, {name}", "Regards, {name}", "{name}", "Best, {name}", "Thank you!")
NAMES = ("Amir", "Bea", "Carlos", "Dana", "Emeka", "Freya", "Goran", "Hana", "Ivan", "Jun", "Katya", "Liam", "Mei")
TYPO_SHARE = 0.15


def tickets(rows: int, seed: int) -> Iterator[dict[str, str]]:
    """Yields `rows` different rows. The same seed gives the same rows, and a larger number only appends rows."""
    random = Random(seed)
    seen: set[str] = set()
    while len(seen) < rows:
        row = _ticket(random)
        if row["ticket"] not in seen:
            seen.add(row["ticket"])
            yield row


def _ticket(random: Random) -> dict[str, str]:
    answer = {
        "product": random.choice(list(PRODUCTS)),
        "issue": random.choice(list(ISSUES)),
        "urgent": random.choice(list(TONES)),
        "order": None if random.random() < NO_ORDER_SHARE else random.randint(10_000, 99_999),
    }
    return {"task": TASK, "ticket": _text(random, answer), "json": json.dumps(answer)}


def _text(random: Random, answer: dict[str, Any]) -> str:
    product = answer["product"]
    complaint = random.choice(ISSUES[answer["issue"]]).format(
        product=random.choice(PRODUCTS[product]),
        other=_with_article(random.choice(PRODUCTS[random.choice([other for other in PRODUCTS if other != product])])),
        days=random.randint(2, 30),
        times=random.randint(2, 4),
    )
    frame = random.choice(NO_ORDER if answer["order"] is None else ORDERS)
    tone = random.choice(TONES[answer["urgent"]])
    body = _capital(frame.format(text=complaint, order=answer["order"]))
    sentences = [body, tone] if random.random() < 0.7 else [tone, body]
    closing = random.choice(CLOSINGS).format(name=random.choice(NAMES))
    text = " ".join(part for part in (random.choice(GREETINGS), *sentences, closing) if part)
    return _with_typo(random, text) if random.random() < TYPO_SHARE else text


def _with_article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _with_typo(random: Random, text: str) -> str:
    """Swaps two neighbouring letters of one longer word. Numbers do not change, because the model must copy them."""
    words = text.split(" ")
    at = random.choice([index for index, word in enumerate(words) if len(word) >= 4 and word.isalpha()])
    word = words[at]
    letter = random.randint(1, len(word) - 2)
    words[at] = word[:letter] + word[letter + 1] + word[letter] + word[letter + 2 :]
    return " ".join(words)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write support tickets with their JSON, one row per line.")
    parser.add_argument("--rows", type=int, default=480, help="number of rows (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the rows (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        for row in tickets(arguments.rows, arguments.seed):
            print(json.dumps(row))
        sys.stdout.flush()
    except BrokenPipeError:  # The reader, such as `head`, has closed the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
