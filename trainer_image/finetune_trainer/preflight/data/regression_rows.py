"""Reads, cleans and tokenizes the rows of the regression sets, in the same way as the rows of the data set.

The regression rows have a separate store, because the job does not train on them. A row may be in the data set and in a
regression set. The row counts of the data set do not include regression rows.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune_api.reasons import FailureReason
from finetune_api.spec.evaluation import RegressionSet
from finetune_api.spec.job import FineTuneJobSpec
from finetune_trainer.base.base_model import BaseModel
from finetune_trainer.copies.deduplicate import prompt_key
from finetune_trainer.copies.openings import Openings
from finetune_trainer.handover.prepared import REGRESSION, place
from finetune_trainer.metrics.metric_choice import require_metric
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.pod.liveness.heartbeat import phase
from finetune_trainer.preflight.resolve import LONGEST_BY_DEFAULT
from finetune_trainer.rows.cleaning import Cleaner
from finetune_trainer.rows.reading import read_rows
from finetune_trainer.rows.readings import Readings
from finetune_trainer.sources.findings import Findings
from finetune_trainer.storage.job_storage import JobStorage
from finetune_trainer.tokens.render import PromptFormat
from finetune_trainer.tokens.row_store import PLACED, Rows, RowStore, StoreWriter
from finetune_trainer.tokens.token_ids import require_rows
from finetune_trainer.tokens.tokenization import tokenize


def gather_regression(
    spec: FineTuneJobSpec,
    storage: JobStorage,
    model: BaseModel,
    format: PromptFormat,
    folder: Path,
) -> dict[str, Rows]:
    """Returns the rows of each set by its name, in a store under `folder`. Rows longer than the model's context length
    or 4096 tokens are left out, and the log reports their number.

    Raises TrainerFailure DatasetInvalid when a row is invalid or a set has no row left; SpecInvalid when the metric
    does not fit the rows of its set."""
    sets = spec.evaluation.regression or []
    if not sets:
        return {}
    findings, readings = Findings(), Readings()
    rows = Cleaner(spec.dataset.clean).clean(read_rows(storage, sets, "spec.evaluation.regression", findings, readings))
    openings = Openings()
    phase("reading the regression rows", steady=True)
    with StoreWriter(folder / REGRESSION) as writer:
        for row, example in require_rows(tokenize(rows, format, model.tokenizer, findings), model):
            writer.append(example, prompt_key(row))
            openings.add(row.messages)
    phase("choosing the regression rows")
    findings.raise_if_invalid()
    for column in readings.unused:
        print(f"Not used: {column}.", flush=True)
    store, found = RowStore(folder / REGRESSION), {}
    keys = openings.keys(store.column("key"))
    limit = min(model.context or LONGEST_BY_DEFAULT, LONGEST_BY_DEFAULT)
    for number, wish in enumerate(sets):
        found[wish.name] = _within(limit, store, keys, number, wish)
        require_metric(wish, found[wish.name])
    return found


def _within(limit: int, store: RowStore, keys: NDArray[np.uint64], number: int, wish: RegressionSet) -> Rows:
    mine, short = store.column("mixture") == number, store.column("tokens") <= limit
    rows, field = np.flatnonzero(mine & short), f"spec.evaluation.regression[{number}] ({wish.name})"
    if not len(rows):
        raise TrainerFailure(
            FailureReason.DATASET_INVALID,
            f"{field} contains no row with at most {limit:,} tokens: {wish.uri}.",
            "Shorten the rows, or remove this regression set.",
        )
    if long := int(np.sum(mine & ~short)):
        print(
            f"{field}: {long:,} of {long + len(rows):,} rows are longer than {limit:,} tokens and are left out.",
            flush=True,
        )
    array = np.zeros(len(rows), PLACED)
    array["row"], array["cluster"] = rows, np.unique(keys[rows], return_inverse=True)[1]
    return place(store, wish.name, array)
