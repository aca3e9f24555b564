"""Near copies by meaning: rows whose embeddings by a small sentence model point in nearly the same direction.

The only part of preflight that needs torch, which is imported when such a model is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from finetune_api.reasons import FailureReason
from finetune_trainer.base_model import SMALL_FILES
from finetune_trainer.clusters import Clusters
from finetune_trainer.failure import TrainerFailure
from finetune_trainer.progress import Progress
from finetune_trainer.storage import Storage

if TYPE_CHECKING:
    import torch

FIELD = "dataset.deduplicate.embeddingModel"
MOST_ROWS = 200_000
"""Every pair is compared: 200,000 rows of 384 numbers take about 15 TFLOP, minutes of a few cores, and embedding them
takes longer than that. More rows are compared by their words."""
BATCH, COMPARED = 64, 4096
"""Texts embedded, and rows compared with all others, at a time."""
LONGEST = 512
"""Tokens of a text that are embedded: what sentence models are trained on at most."""
LOOKED_AT = 20_000
"""Characters the tokenizer is given, which hold more tokens than that in any language."""


class SentenceModel:
    """A model that turns texts into unit vectors: the mean of its last layer over a text's tokens, as
    sentence-transformers does by default (Reimers and Gurevych 2019)."""

    def __init__(self, storage: Storage, uri: str, scratch: Path) -> None:
        """Raises TrainerFailure ModelNotFound or ModelUnsupported where no such model lies at `uri`."""
        if "config.json" not in storage.list_folder(uri):
            raise TrainerFailure(FailureReason.MODEL_NOT_FOUND, f"{FIELD}: there is no config.json in {uri}.")
        # Sentence models' folders hold the same weights again for other runtimes, in folders of their own.
        storage.download_folder(
            uri, scratch, lambda path: "/" not in path and path.endswith((*SMALL_FILES, ".safetensors"))
        )
        from transformers import AutoModel, AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(scratch, local_files_only=True, trust_remote_code=False)
            self._model = AutoModel.from_pretrained(
                scratch, local_files_only=True, trust_remote_code=False, use_safetensors=True
            ).eval()
        except (OSError, ValueError, KeyError, TypeError) as error:
            cause = str(error).splitlines()[0][:300].rstrip(".")
            raise TrainerFailure(
                FailureReason.MODEL_UNSUPPORTED, f"{FIELD}: {uri} cannot be loaded as a sentence model: {cause}."
            ) from error
        self._tokenizer.padding_side = "right"
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token

    def embed(self, texts: list[str]) -> NDArray[np.float32]:
        """Unit vectors, shape [texts, width]."""
        import torch

        longest = min(LONGEST, self._tokenizer.model_max_length)
        batch = self._tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        with torch.inference_mode():
            states = self._model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        vectors: NDArray[np.float32] = _mean(states, batch["attention_mask"]).numpy()
        return vectors


def _mean(states: torch.Tensor, mask: torch.Tensor) -> Any:
    """Mean over the tokens that are no padding, scaled to length 1. `states`: [texts, tokens, width]; `mask`: [texts,
    tokens], 0 for padding."""
    import torch

    kept = mask[..., None].to(torch.float32)
    return torch.nn.functional.normalize((states.float() * kept).sum(1) / kept.sum(1).clamp(min=1), dim=1)


class Embeddings:
    """The rows' texts, in the order they are added, as vectors of half precision in a file of `folder`."""

    def __init__(self, model: SentenceModel, folder: Path, name: str) -> None:
        self._path, self._model = folder / f"{name}.vectors", model
        self._file = self._path.open("wb")
        self._waiting: list[str] = []
        self._rows = 0
        self._progress = Progress("Embedding", "rows")

    def add(self, text: str) -> None:
        """Adds the next row's text. Raises TrainerFailure SpecInvalid where there are too many to compare."""
        self._rows += 1
        if self._rows > MOST_ROWS:
            raise TrainerFailure(
                FailureReason.SPEC_INVALID,
                f"{FIELD} compares every row with every other, which takes too long for more than {MOST_ROWS:,} rows: "
                "remove it to compare by words, or give fewer rows.",
            )
        self._waiting.append(text[:LOOKED_AT])
        if len(self._waiting) == BATCH:
            self._write()

    def join(self, clusters: Clusters, threshold: float) -> None:
        """Joins each row with the first one whose cosine similarity to it is at least `threshold`; no more rows can be
        added then."""
        self._write()
        self._file.close()
        if self._rows < 2:
            return
        vectors = np.memmap(self._path, np.float16, "r").reshape(self._rows, -1)
        progress = Progress("Comparing", "rows", self._rows)
        for start in range(0, self._rows, COMPARED):
            later = vectors[start : start + COMPARED].astype(np.float32)
            first = np.full(len(later), -1)
            for other in range(0, start + COMPARED, COMPARED):
                near = later @ vectors[other : other + COMPARED].astype(np.float32).T >= threshold
                near &= np.arange(other, other + near.shape[1]) < np.arange(start, start + len(later))[:, None]
                first = np.where((first < 0) & near.any(1), other + near.argmax(1), first)
            for row in np.flatnonzero(first >= 0):
                clusters.join(int(first[row]), start + int(row))
            progress.advance(len(later))

    def _write(self) -> None:
        if self._waiting:
            self._file.write(self._model.embed(self._waiting).astype(np.float16).tobytes())
            self._progress.advance(len(self._waiting))
            self._waiting = []
