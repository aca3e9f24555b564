"""Rows of a structured kind: lists of slots, and sentences made of them. They are alike without being copies."""

import random

SLOTS = {
    "name": ["The Copper Kettle", "Blue Door", "Old Mill House", "Rosa", "Pier Nine", "Green Lantern"],
    "kind": ["coffee shop", "restaurant", "pub", "bistro"],
    "food": ["Italian", "Indian", "English", "French", "Japanese"],
    "price": ["cheap", "moderate", "high", "less than 20 pounds"],
    "rating": ["low", "average", "5 out of 5", "3 out of 5"],
    "area": ["city centre", "riverside", "old harbour"],
    "familyFriendly": ["yes", "no"],
}
WAYS = [
    "{name} is a {kind} by the {area} that serves {food} food at {price} prices, is rated {rating} and {friendly}.",
    "In the {area} there is {name}, a {price} {kind} with {food} dishes. It {friendly}; guests rate it {rating}.",
    "Rated {rating}, the {food} {kind} {name} in the {area} asks {price} prices and {friendly}.",
]


def slots(source: random.Random) -> tuple[str, str]:
    """A list of slots and a sentence made of it."""
    chosen = {name: source.choice(values) for name, values in SLOTS.items()}
    text = ", ".join(f"{name}[{value}]" for name, value in chosen.items())
    friendly = "welcomes children" if chosen["familyFriendly"] == "yes" else "is not for children"
    return text, source.choice(WAYS).format(**chosen, friendly=friendly)


def different_slots(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Rows that all ask something else, in the columns of PromptCompletion."""
    source, found = random.Random(seed), dict[str, str]()
    while len(found) < count:
        found.setdefault(*slots(source))
    return [{"prompt": text, "completion": said} for text, said in found.items()]
