"""The manifests below tests/manifests, by name, and those of examples/, which have to be as good.

A bad one says in its first line what becomes of it, and what the message has to hold, parts divided by " | ":

    # refused: FIELD | REMEDY                 the API server does not take it
    # failed REASON: FINDING | REMEDY         it is taken, and the job ends Failed before its first pod
"""

from pathlib import Path

from tests.example_manifests import FOLDER, JOBS

_ROOT = Path(__file__).parents[3]
_FOLDER = _ROOT / "tests" / "manifests"
BAD = {path.stem: path.read_text() for path in sorted((_FOLDER / "bad").glob("*.yaml"))}
REFUSED = {name: text for name, text in BAD.items() if text.startswith("# refused: ")}
FAILED = {name: text for name, text in BAD.items() if text.startswith("# failed ")}
GOOD = {path.stem: path.read_text() for path in sorted((_FOLDER / "good").glob("*.yaml"))}
GOOD |= {f"{FOLDER.name}/{name}": path.read_text() for name, path in JOBS.items()}


def outcome(text: str) -> tuple[str, list[str]]:
    """What the first line says: the words before the colon and the parts after it."""
    word, _, parts = text.splitlines()[0].removeprefix("# ").partition(": ")
    return word, parts.split(" | ")
