"""Measurements of a model that a later attempt takes over: complete ones, and the answers of one that is not."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from finetune_trainer.checkpoints.kept import KeptResults
from finetune_trainer.evaluation.kept_answers import KeptAnswers
from finetune_trainer.evaluation.recipe import Baselines
from finetune_trainer.evaluation.scoring import Measure
from finetune_trainer.pod.rank import is_first, place
from finetune_trainer.ranks.group import found_on_each_node, on_first
from finetune_trainer.statistics.measurements import Answer, FewShot, Measured
from finetune_trainer.storage.local_files import sha256_of
from finetune_trainer.training.training_progress import duration

FILE = "measurements.json"
BASELINES = "baselines"


@dataclass(frozen=True)
class _Stored:
    """A Measured as JSON. JSON keeps every digit of a float."""

    losses: list[float]
    labels: list[int]
    answers: list[Answer]
    seconds: float


@dataclass(frozen=True)
class _StoredBaselines:
    base: _Stored
    few_shot: FewShot | None
    regression: Mapping[str, _Stored]
    quantized: _Stored | None
    shortage: str | None


class KeptMeasurements:
    """The measurements of one model of a job."""

    def __init__(self, kept: KeptResults, model: str) -> None:
        """`model`: a word for the model in the names of the folders."""
        self._kept, self._model = kept, model

    def __call__(self, part: str, what: str, measure: Measure) -> Measured:
        """Returns the measurement of an earlier attempt, or measures and keeps the result: a `scoring.Remember`."""
        name = f"{self._model}.{part}"
        if (kept := found_on_each_node(lambda: self._kept.find(name), str)) is not None:
            found = _measured(TypeAdapter(_Stored).validate_json((kept.folder / FILE).read_bytes()))
            print(taken_over(what, kept.attempt, found.seconds), flush=True)
            return found
        found = measure(KeptAnswers(self._kept, f"{name}{_share()}"))
        if is_first():
            self._kept.keep(name, {FILE: _json(_stored(found))})
        return found


def of_tuned(kept: KeptResults, weights: Path) -> KeptMeasurements:
    """Returns the measurements of the tuned model with the weights in the folder `weights`.

    An attempt that has to train again can end with weights that differ by rounding, for example on another GPU. It does
    not take over the measurements of the earlier ones.

    Rank 0 tells how many results there are. If it has written its share of the answers, and is stopped while others
    write theirs, what they have stored counts in the next attempt at the latest."""
    if is_first():
        kept.count()
    digest = hashlib.sha256()
    digest.update(b"".join(bytes.fromhex(sha256) for sha256 in on_first(lambda: _digests(weights))))
    return KeptMeasurements(kept.on(**{"the digest of the tuned weights": digest.hexdigest()}), "tuned")


def _digests(weights: Path) -> list[str]:
    """Returns the sha256 of each file with weights. Rank 0 has written them."""
    return [sha256_of(path) for path in sorted(weights.glob("*.safetensors"))]


def _share() -> str:
    """Returns a suffix for the answers of this rank to its share of the rows. Another number of ranks has other
    shares."""
    here = place()
    return "" if here.ranks == 1 else f".rank{here.rank}of{here.ranks}"


def kept_baselines(kept: KeptResults) -> Baselines | None:
    """Returns all measurements of the base model if an earlier attempt completed them. Prints that they are reused."""
    if (found := found_on_each_node(lambda: kept.find(BASELINES), str)) is None:
        return None
    stored = TypeAdapter(_StoredBaselines).validate_json((found.folder / FILE).read_bytes())
    regression = {name: _measured(each) for name, each in stored.regression.items()}
    quantized = _measured(stored.quantized) if stored.quantized else None
    baselines = Baselines(_measured(stored.base), stored.few_shot, regression, quantized, stored.shortage)
    print(taken_over("the base model", found.attempt, baselines.seconds), flush=True)
    return baselines


def keep_baselines(kept: KeptResults, baselines: Baselines) -> None:
    """Keeps all measurements of the base model. Rank 0 does it for all ranks."""
    if not is_first():
        return
    stored = _StoredBaselines(
        _stored(baselines.base),
        baselines.few_shot,
        {name: _stored(each) for name, each in baselines.regression.items()},
        _stored(baselines.quantized) if baselines.quantized else None,
        baselines.shortage,
    )
    kept.keep(BASELINES, {FILE: _json(stored)})


def taken_over(what: str, attempt: int, seconds: float) -> str:
    """Returns the sentence that the results of a model are reused. `what`: its name, such as "the base model"."""
    return f"The results of {what} are those of attempt {attempt}, measured in {duration(seconds)}."


def _stored(found: Measured) -> _Stored:
    return _Stored(found.losses.tolist(), found.labels.tolist(), found.answers, found.seconds)


def _measured(stored: _Stored) -> Measured:
    return Measured(
        np.array(stored.losses, dtype=np.float64),
        np.array(stored.labels, dtype=np.int64),
        stored.answers,
        stored.seconds,
    )


def _json(value: _Stored | _StoredBaselines) -> bytes:
    return json.dumps(asdict(value)).encode()
