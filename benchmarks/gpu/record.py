"""What was measured, in a file that is whole at any moment."""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One number, and what it is to be compared with."""

    what: str
    value: float
    unit: str
    beside: str = ""
    """What it is compared with, as a person reads it."""
    right: bool | None = None
    """Whether a check was passed; None where there is nothing to pass."""
    more: dict[str, Any] = field(default_factory=dict)
    """What else was seen, for the file."""

    def __str__(self) -> str:
        wrong = "  WRONG" if self.right is False else ""
        beside = f"  ({self.beside})" if self.beside else ""
        return f"  {self.what}: {_shown(self.value)} {self.unit}{beside}{wrong}"


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


class Record:
    """The file of all cases. Both processes write it, but never at the same time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.content: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"cases": {}}

    def begin(self, case: str, seconds: float) -> None:
        """`case` is about to run for up to `seconds`: should nothing follow, it took the process down."""
        self.content["cases"][case] = {"began": time.monotonic(), "given": seconds, "figures": []}
        self._save()

    def add(self, case: str, figure: Figure) -> None:
        """One more figure of it, printed too."""
        print(figure, flush=True)
        self.content["cases"][case]["figures"].append(asdict(figure))
        self._save()

    def end(self, case: str, error: str = "") -> None:
        """It is over, or it failed with the sentence `error`."""
        entry = self.content["cases"][case]
        entry["seconds"] = round(time.monotonic() - entry.pop("began"), 2)
        if error:
            print(f"  failed: {error}", flush=True)
            entry["error"] = error
        self._save()

    def leave_out(self, case: str, why: str) -> None:
        """It is not run at all."""
        print(f"{case}: skipped, because {why}", flush=True)
        self.content["cases"][case] = {"left_out": why, "figures": []}
        self._save()

    def note(self, **facts: Any) -> None:
        """Facts about the whole run: the machine, versions."""
        self.content |= facts
        self._save()

    def has(self, case: str) -> bool:
        """Whether it was run, left out, or begun."""
        return case in self.content["cases"]

    def running(self) -> tuple[str, float] | None:
        """The case that was begun and is not over, and how many times the seconds it was given it has taken."""
        begun = ((name, case) for name, case in self.content["cases"].items() if "began" in case)
        return next(((name, (time.monotonic() - case["began"]) / case["given"]) for name, case in begun), None)

    def figure(self, case: str, what: str) -> float | None:
        """One that was measured before."""
        figures = self.content["cases"].get(case, {"figures": []})["figures"]
        return next((figure["value"] for figure in figures if figure["what"] == what), None)

    def _save(self) -> None:
        # A process that is killed while it writes leaves the old file.
        whole = self._path.with_suffix(".part")
        whole.write_text(json.dumps(self.content, indent=1))
        whole.replace(self._path)
