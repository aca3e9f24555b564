"""Writes everything that is known after the rows are stored to files, and reads it back."""

import json
from pathlib import Path

import numpy as np

from finetune_trainer.copies.deduplicate import Alike
from finetune_trainer.handover.prepared import SIDES
from finetune_trainer.preflight.data.gather import Gathered
from finetune_trainer.rows.readings import Readings
from finetune_trainer.sources.findings import Findings
from finetune_trainer.tokens.row_notes import RowNotes
from finetune_trainer.tokens.row_store import RowStore

WORDS, NOTES = "words.json", "notes"
ALIKE = ("groups", "repeats", "crowded")


def save_gathered(gathered: Gathered, findings: Findings, folder: Path) -> None:
    """Writes `gathered`, without its store, and `findings` to the new folder `folder`."""
    folder.mkdir()
    for side, rows in gathered.sides.items():
        np.save(folder / f"{side}.npy", rows)
    for name in ALIKE:
        np.save(folder / f"{name}.npy", getattr(gathered.alike, name))
    gathered.notes.save(folder / NOTES)
    words = {"readings": gathered.readings.as_json(), "findings": findings.as_json()}
    (folder / WORDS).write_text(json.dumps(words))


def load_gathered(store: RowStore, findings: Findings, folder: Path) -> Gathered:
    """Returns what `save_gathered` wrote, with the rows in `store`, and fills `findings`.

    Raises OSError, ValueError, KeyError or TypeError if a file or a part of one is missing; `findings` is then
    unchanged."""
    words = json.loads((folder / WORDS).read_text())
    gathered = Gathered(
        store=store,
        sides={side: np.load(folder / f"{side}.npy") for side in SIDES},
        alike=Alike(*(np.load(folder / f"{name}.npy") for name in ALIKE)),
        notes=RowNotes.load(folder / NOTES),
        readings=Readings.of_json(words["readings"]),
    )
    findings.take_over(words["findings"])
    return gathered
