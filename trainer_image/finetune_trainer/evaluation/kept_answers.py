"""The answers of a measurement that is not complete. A later attempt takes them over and writes only the rest.

They are kept in pieces. The result `NAME.answers120` has the answers from the 121st on, in the order in which they are
written. A piece ends where a batch ends. A later attempt then forms the same batches, so that its answers are equal bit
for bit to those of an attempt that was not interrupted."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from time import monotonic

from pydantic import TypeAdapter

from finetune_trainer.checkpoints.folder import Content
from finetune_trainer.checkpoints.kept import KeptResults
from finetune_trainer.pod.failure import PeerFailed, StopRequested, Superseded
from finetune_trainer.pod.termination import stop_deferred
from finetune_trainer.statistics.measurements import Answer

FILE = "answers.json"
PIECE_SECONDS = 60.0
"""An end without warning, as by SIGKILL, costs about so much time of answering, and the batch that is being written.
Any other end costs only the batch."""
LONGEST_PAUSE_SECONDS = 600.0
"""Longest time until the next piece, where the storage is slow."""
SHARE = 0.01
"""Share of the time that the pieces may take."""


@dataclass(frozen=True)
class _Piece:
    answers: list[Answer]
    tokens: int
    """Size of the batch that follows, in tokens."""
    seconds: float
    """Time that the attempt needed for these answers."""


class KeptAnswers:
    """The answers of one model to one set of rows, while they are written."""

    def __init__(self, kept: KeptResults, name: str, clock: Callable[[], float] = monotonic) -> None:
        """`name`: the measurement, without hyphen."""
        self._kept, self._name, self._clock = kept, name, clock
        self._stored, self._pause = 0, PIECE_SECONDS
        self._answers: list[Answer] = []
        """All answers so far, in the order of writing, at the end of a batch."""
        self._tokens = 0
        """Size of the next batch, in tokens."""
        self._began = self._tried = clock()
        self.earlier_seconds = 0.0
        """Time that earlier attempts needed for the answers that were taken over."""

    def earlier(self, what: str, tokens: int) -> tuple[list[Answer], int]:
        """Returns the answers of earlier attempts, the first ones in the order of writing, and the size of the next
        batch. Prints that they are reused. `what`: the model's name in messages. `tokens`: size of the first batch.

        Raises TrainerFailure if the storage does not answer or denies access."""
        answers: list[Answer] = []
        while (found := self._kept.find(self._piece_name(len(answers)))) is not None:
            piece = TypeAdapter(_Piece).validate_json((found.folder / FILE).read_bytes())
            answers, tokens = [*answers, *piece.answers], piece.tokens
            self.earlier_seconds += piece.seconds
        if answers:
            print(f"The first {len(answers):,} answers of {what} are those of earlier attempts.", flush=True)
        self._stored = len(answers)
        self._began = self._tried = self._clock()
        return answers, tokens

    def written(self, answers: Sequence[Answer], tokens: int) -> None:
        """Keeps the answers that are not kept yet, if it is time. `answers`: all so far, in the order of writing, at
        the end of a batch. `tokens`: size of the next batch.

        Answers that the storage refuses are part of the next piece. Raises Superseded as StatusWriter.progress does."""
        self._answers, self._tokens = list(answers), tokens
        begun = self._clock()
        if begun - self._tried < self._pause:
            return
        if self._kept.keep(self._piece_name(self._stored), self._piece(), again=False):
            self._stored, self._began = len(answers), begun
        self._tried = self._clock()
        self._pause = min(max(PIECE_SECONDS, (self._tried - begun) / SHARE), LONGEST_PAUSE_SECONDS)

    @contextmanager
    def kept_at_the_end(self) -> Iterator[None]:
        """Keeps the answers that are not kept yet if the work inside ends with an exception. That may be SIGTERM, the
        failure of another rank for whose answers this one waits, or an error of this process.

        It takes `seconds_at_the_end` at most. Raises Superseded as StatusWriter.progress does."""
        try:
            yield
        except Superseded:
            raise
        except (Exception, PeerFailed, StopRequested):
            with suppress(StopRequested), stop_deferred():  # why the work has ended is told, not a stop after it
                self._keep_last()
            raise

    def _keep_last(self) -> None:
        if len(self._answers) > self._stored:
            self._kept.keep_last(self._piece_name(self._stored), self._piece(), self._kept.seconds_at_the_end())

    def _piece(self) -> dict[str, Content]:
        piece = _Piece(self._answers[self._stored :], self._tokens, self._clock() - self._began)
        return {FILE: json.dumps(asdict(piece)).encode()}

    def _piece_name(self, start: int) -> str:
        return f"{self._name}.answers{start}"
