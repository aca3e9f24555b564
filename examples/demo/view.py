"""Shows the job's status: on a terminal, one updated line per phase; otherwise plain lines."""

import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from finetune_api.status.job import ConditionType, FineTuneJobStatus, State, Training

LINE_SECONDS = 10.0
ENDS = {State.COMPLETE, State.FAILED}


class Phase(IntEnum):
    """The phases of a job, in their order."""

    PREFLIGHT = 0
    QUEUED = 1
    TRAINING = 2
    EVALUATING = 3
    PUBLISHING = 4
    ENDED = 5

    @property
    def title(self) -> str:
        return self.name.capitalize()


def phase_of(status: FineTuneJobStatus) -> Phase:
    """Returns the job's current phase."""
    if status.state in ENDS:
        return Phase.ENDED
    if status.state is State.QUEUED:
        return Phase.QUEUED
    return Phase[status.stage.name] if status.stage else Phase.PREFLIGHT


class Timeline:
    """Measures how long each phase took."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = {Phase.PREFLIGHT: clock()}
        self.phase = Phase.PREFLIGHT

    def observe(self, phase: Phase) -> bool:
        """Records the phase. Returns whether it is new."""
        if phase is self.phase:
            return False
        self._began[phase], self.phase = self._clock(), phase
        return True

    def seconds(self, phase: Phase) -> float | None:
        """Returns the seconds spent in `phase`, or None if the phase was not observed."""
        if phase not in self._began:
            return None
        later = [began for other, began in self._began.items() if other > phase]
        return (min(later) if later else self._clock()) - self._began[phase]


def follow(resources: Iterable[dict[str, Any]], console: Console) -> None:
    """Shows the job until it is Complete or Failed."""
    screen = _Screen(console) if console.is_terminal else _Lines(console)
    with screen:
        for resource in resources:
            status = FineTuneJobStatus.model_validate(resource.get("status", {}))
            screen.show(status)
            if status.state in ENDS:
                return


def detail(phase: Phase, status: FineTuneJobStatus, now: datetime) -> str:
    """Returns a short description of a phase."""
    match phase:
        case Phase.PREFLIGHT:
            return _data(status)
        case Phase.QUEUED if phase_of(status) is Phase.QUEUED:
            return _message(status)
        case Phase.TRAINING if status.training and status.training.step:
            return _progress(status.training, now)
        case Phase.TRAINING if phase_of(status) is Phase.TRAINING:
            return _message(status, ConditionType.TRAINED)
        case Phase.EVALUATING if status.evaluation and (found := status.evaluation.decision):
            before, after = _percent(found.baseline), _percent(found.tuned)
            return f"{found.metric} {before} -> {after} on {status.evaluation.rows} held-out rows"
        case Phase.PUBLISHING if status.artifacts:
            return status.artifacts.adapter or status.artifacts.model or ""
        case Phase.EVALUATING if phase_of(status) is Phase.EVALUATING:
            return _message(status, ConditionType.EVALUATED)
    return _message(status) if phase is phase_of(status) else ""


def _data(status: FineTuneJobStatus) -> str:
    found = status.preflight
    if not found or not found.splits or found.tokens is None:
        return _message(status) if phase_of(status) is Phase.PREFLIGHT else ""
    return f"{found.splits.train} training rows, {found.splits.test} held-out rows, {found.tokens:,} tokens"


def _progress(training: Training, now: datetime) -> str:
    parts = [f"{training.step}/{training.total_steps}"]
    if training.loss is not None:
        parts.append(f"loss {training.loss:.3f}")
    if training.tokens_per_second is not None:
        parts.append(f"{training.tokens_per_second:,.0f} tokens/s")
    if training.estimated_completion_time and training.step < training.total_steps:
        parts.append(f"{clock((training.estimated_completion_time - now).total_seconds())} left")
    return "  ".join(parts)


def _message(status: FineTuneJobStatus, of: ConditionType = ConditionType.READY) -> str:
    """Returns the pod's message about its own work, or else the operator's message about the job."""
    condition = status.condition(of) or status.condition(ConditionType.READY)
    return condition.message if condition else "Waiting for the operator."


def _percent(share: float | None) -> str:
    return "?" if share is None else f"{share:.0%}"


def clock(seconds: float) -> str:
    """Formats seconds as minutes and seconds."""
    whole = max(0, round(seconds))
    return f"{whole // 60}:{whole % 60:02d}"


class _Screen:
    """Redraws all phases in place."""

    def __init__(self, console: Console) -> None:
        self._timeline = Timeline()
        self._live = Live(console=console, auto_refresh=False)
        self._spinner = Spinner("dots")

    def __enter__(self) -> None:
        self._live.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._live.__exit__(*error)

    def show(self, status: FineTuneJobStatus) -> None:
        self._timeline.observe(phase_of(status))
        self._live.update(render(status, self._timeline, self._spinner), refresh=True)


def render(status: FineTuneJobStatus, timeline: Timeline, spinner: Spinner) -> Table:
    """Returns a table with one line per phase: mark, name, time and description."""
    table = Table.grid(padding=(0, 1))
    table.add_column(width=3, justify="right")
    table.add_column(width=10)
    table.add_column(width=5, justify="right", style="dim")
    table.add_column(ratio=1)
    current = phase_of(status)
    for phase in list(Phase)[:-1]:
        seconds = timeline.seconds(phase)
        table.add_row(
            spinner if phase is current else _mark(phase, status, timeline),
            Text(phase.title, style="" if phase <= current else "dim"),
            "" if seconds is None else clock(seconds),
            _detail_line(phase, status) if seconds is not None else "",
        )
    return table


def _mark(phase: Phase, status: FineTuneJobStatus, timeline: Timeline) -> Text:
    if phase > phase_of(status) or timeline.seconds(phase) is None:
        return Text("")
    last = max(seen for seen in list(Phase)[:-1] if timeline.seconds(seen) is not None)
    return Text("✗", style="red") if status.state is State.FAILED and phase is last else Text("✓", style="green")


def _detail_line(phase: Phase, status: FineTuneJobStatus) -> RenderableType:
    words = Text(detail(phase, status, datetime.now(UTC)), overflow="ellipsis", no_wrap=True)
    training = status.training
    if phase is not Phase.TRAINING or phase is not phase_of(status) or training is None or not training.step:
        return words
    line = Table.grid(padding=(0, 1))
    line.add_row(ProgressBar(total=training.total_steps, completed=training.step, width=16), words)
    return line


class _Lines:
    """Prints a line when a phase begins or ends, and every ten seconds."""

    def __init__(self, console: Console) -> None:
        self._console, self._timeline = console, Timeline()
        self._printed = 0.0

    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: Any) -> None:
        return None

    def show(self, status: FineTuneJobStatus) -> None:
        before = self._timeline.phase
        new = self._timeline.observe(phase_of(status))
        if new:
            self._print(before, status)
        if (new or time.monotonic() - self._printed > LINE_SECONDS) and status.state not in ENDS:
            self._print(self._timeline.phase, status)
            self._printed = time.monotonic()

    def _print(self, phase: Phase, status: FineTuneJobStatus) -> None:
        elapsed = clock(self._timeline.seconds(phase) or 0)
        words = escape(detail(phase, status, datetime.now(UTC)))
        self._console.print(f"  {phase.title:<10} {elapsed:>5}  {words}".rstrip(), soft_wrap=True)
