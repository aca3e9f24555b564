"""Stores the measured figures in a file that is complete at any time."""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One measured number, with a comparison."""

    what: str
    value: float
    unit: str
    beside: str = ""
    """The comparison, as text for people."""
    right: bool | None = None
    """Whether the figure passed its check. None if there is no check."""
    more: dict[str, Any] = field(default_factory=dict)
    """More data for the file."""

    def __str__(self) -> str:
        wrong = "  WRONG" if self.right is False else ""
        beside = f"  ({self.beside})" if self.beside else ""
        return f"  {self.what}: {_shown(self.value)} {self.unit}{beside}{wrong}"


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


class Record:
    """The file with all cases. Both processes write it, but never at the same time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.content: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"cases": {}}

    def begin(self, case: str, seconds: float) -> None:
        """Records that `case` starts and has `seconds`. If no end follows, the case crashed its process."""
        self.content["cases"][case] = {"began": time.monotonic(), "given": seconds, "figures": []}
        self._save()

    def add(self, case: str, figure: Figure) -> None:
        """Adds and prints a figure of `case`."""
        print(figure, flush=True)
        self.content["cases"][case]["figures"].append(asdict(figure))
        self._save()

    def end(self, case: str, error: str = "") -> None:
        """Records that `case` ended, or failed with the message `error`."""
        entry = self.content["cases"][case]
        entry["seconds"] = round(time.monotonic() - entry.pop("began"), 2)
        if error:
            print(f"  failed: {error}", flush=True)
            entry["error"] = error
        self._save()

    def leave_out(self, case: str, why: str) -> None:
        """Records that `case` is skipped."""
        print(f"{case}: skipped, because {why}", flush=True)
        self.content["cases"][case] = {"left_out": why, "figures": []}
        self._save()

    def note(self, **facts: Any) -> None:
        """Records facts about the whole run, such as the machine and versions."""
        self.content |= facts
        self._save()

    def has(self, case: str) -> bool:
        """Returns whether `case` was started, finished or skipped."""
        return case in self.content["cases"]

    def running(self) -> tuple[str, float] | None:
        """Returns the running case, and its elapsed time as a multiple of its planned seconds. None if none runs."""
        begun = ((name, case) for name, case in self.content["cases"].items() if "began" in case)
        return next(((name, (time.monotonic() - case["began"]) / case["given"]) for name, case in begun), None)

    def figure(self, case: str, what: str) -> float | None:
        """Returns the value of a figure that was measured earlier, or None."""
        figures = self.content["cases"].get(case, {"figures": []})["figures"]
        return next((figure["value"] for figure in figures if figure["what"] == what), None)

    def _save(self) -> None:
        # A process that is killed while it writes leaves the old file.
        whole = self._path.with_suffix(".part")
        whole.write_text(json.dumps(self.content, indent=1))
        whole.replace(self._path)
