"""Finds near-duplicates by meaning: rows whose embeddings by a small sentence model have a high cosine similarity.

Only this part of preflight needs torch. `__main__` hides torch from every preflight without a sentence model
(`Deduplicate.sentence_model`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from finetune_api.reasons import FailureReason
from finetune_trainer.base.model_files import copy_files, fetch_settings
from finetune_trainer.copies.clusters import Clusters
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.pod.liveness.heartbeat import phase
from finetune_trainer.pod.progress import Progress
from finetune_trainer.storage.job_storage import JobStorage

if TYPE_CHECKING:
    import torch

FIELD = "spec.dataset.deduplicate.embeddingModel"
CORRECT_URI = f"Correct {FIELD}.uri, or upload the model to that folder."
USE_SUPPORTED = f"Set {FIELD}.uri to an encoder that sentence-transformers saved, such as all-MiniLM-L6-v2."
MOST_ROWS = 200_000
"""Most rows that can be compared by meaning, because every pair is compared. 200,000 rows of 384 numbers need about 15
TFLOP, which is minutes on a few cores. Computing their embeddings takes longer than that."""
BATCH, SORTED, COMPARED = 64, 1024, 4096
"""Number of texts that are embedded, sorted by length, and compared with all other rows at a time. Texts are sorted so
that a batch needs little padding."""
LONGEST = 512
"""Most tokens of a text that are embedded. The settings of a sentence model can reduce this number."""
TRIAL = "word 7, "
"""At least one token in every tokenizer. Repeated once per token of the limit, it fills the model's input."""
LOOKED_AT = 20_000
"""Most characters that the tokenizer gets. They are more than LONGEST tokens in every language."""


POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
"""The pooling of tokens to one vector: settings of older files of sentence-transformers, and values of newer files."""
MODULES = ("Transformer", "Pooling", "Normalize")
"""Supported modules of a sentence-transformers model. Normalize does not change the cosine similarity."""


class SentenceModel:
    """A model that converts texts to unit vectors: the mean of its last layer over the tokens (Reimers and Gurevych
    2019), or the vector of the first token if the settings of sentence-transformers in the folder say so."""

    def __init__(self, storage: JobStorage, uri: str, scratch: Path) -> None:
        """Raises TrainerFailure ModelNotFound or ModelUnsupported if there is no usable sentence model at `uri`."""
        phase("loading the sentence model")
        try:
            files = fetch_settings(storage, uri, scratch, is_pooling_file)
        except TrainerFailure as failure:
            missing = failure.reason is FailureReason.MODEL_NOT_FOUND
            remedy = failure.remedy or (CORRECT_URI if missing else None)
            raise TrainerFailure(failure.reason, f"{FIELD}: {failure.finding}", remedy) from failure
        copy_files(storage, uri, files, scratch)
        from transformers import AutoModel, AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(scratch, local_files_only=True, trust_remote_code=False)
            self._model = AutoModel.from_pretrained(
                scratch, local_files_only=True, trust_remote_code=False, use_safetensors=True
            ).eval()
            self._first_token = _pooling(scratch) == "cls"
            self._longest = _longest(scratch, self._tokenizer.model_max_length, self._model.config)
            self._tokenizer.padding_side = "right"
            if self._tokenizer.pad_token is None:
                self._tokenizer.pad_token = self._tokenizer.eos_token
            self._require_vectors()
        except Exception as error:  # a damaged file or another kind of model can raise any error
            cause = (str(error).splitlines() or [type(error).__name__])[0][:300].rstrip(".")
            raise TrainerFailure(
                FailureReason.MODEL_UNSUPPORTED,
                f"{FIELD}: {uri} cannot be loaded as a sentence model: {cause}.",
                USE_SUPPORTED,
            ) from error

    def _require_vectors(self) -> None:
        """Embeds one text of the greatest length, so that an unusable model is refused before any row is read. Raises
        ValueError if the model has a decoder, if the tokenizer has more tokens than the model, or if a vector is not
        finite."""
        if self._model.config.is_encoder_decoder:
            raise ValueError("it has an encoder and a decoder")
        tokens, rows = len(self._tokenizer), self._model.get_input_embeddings().num_embeddings
        if tokens > rows:
            raise ValueError(f"its tokenizer has {tokens:,} tokens, but its weights have embeddings for {rows:,}")
        if not np.isfinite(self.embed([TRIAL * self._longest])).all():
            raise ValueError("its vectors contain numbers that are not finite")

    def embed(self, texts: list[str]) -> NDArray[np.float32]:
        """Returns the unit vectors of the texts. Shape [texts, width]."""
        import torch

        batch = self._tokenizer(texts, padding=True, truncation=True, max_length=self._longest, return_tensors="pt")
        with torch.inference_mode():
            states = self._model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        pooled = states[:, 0].float() if self._first_token else _mean(states.float(), batch["attention_mask"])
        vectors: NDArray[np.float32] = torch.nn.functional.normalize(pooled, dim=1).numpy()
        return vectors


def is_pooling_file(path: str) -> bool:
    """Returns whether a file contains settings of sentence-transformers for the pooling of tokens."""
    return path in ("modules.json", "sentence_bert_config.json") or path.endswith("_Pooling/config.json")


def _mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Returns the mean over the tokens that are not padding. Shape [texts, width]. `states`: [texts, tokens, width];
    `mask`: [texts, tokens], 0 for padding."""
    kept = mask[..., None].to(states.dtype)
    return (states * kept).sum(1) / kept.sum(1).clamp(min=1)


def _pooling(folder: Path) -> str:
    """Returns the pooling in the settings of sentence-transformers, or "mean" without settings. Raises ValueError for a
    pooling or a module that is not supported."""
    modules = _json(folder / "modules.json") or []
    for module in modules:
        if (name := module["type"].rpartition(".")[2]) not in MODULES:
            raise ValueError(f"its modules.json has a part {name}; supported parts are {', '.join(MODULES)}")
    path = next((module["path"] for module in modules if module["type"].endswith("Pooling")), None)
    config = (path and _json(folder / path / "config.json")) or {}
    older = [POOLINGS.get(name, name) for name, wanted in config.items() if name.startswith("pooling_mode_") and wanted]
    pooling = config.get("pooling_mode", older[0] if len(older) == 1 else older or "mean")
    if pooling not in POOLINGS.values():
        raise ValueError(f"its pooling is {pooling}; supported are mean and cls")
    return str(pooling)


def _longest(folder: Path, allowed: int, config: Any) -> int:
    """Returns the most tokens of a text that are embedded."""
    trained = (_json(folder / "sentence_bert_config.json") or {}).get("max_seq_length") or LONGEST
    return int(min(LONGEST, trained, allowed, getattr(config, "max_position_embeddings", LONGEST)))


def _json(path: Path) -> Any:
    """Returns the content of the file, or None if it does not exist."""
    return json.loads(path.read_text()) if path.is_file() else None


class Embeddings:
    """The rows' texts, in the order they are added, as vectors of half precision in a file of `folder`."""

    def __init__(self, model: SentenceModel, folder: Path, name: str) -> None:
        self._path, self._model = folder / f"{name}.vectors", model
        self._file = self._path.open("wb")
        self._waiting: list[str] = []
        self._rows = 0
        self._progress = Progress("Embedding", "rows")

    def add(self, text: str) -> None:
        """Adds the next row's text. Raises TrainerFailure SpecInvalid for more than MOST_ROWS rows."""
        self._rows += 1
        if self._rows > MOST_ROWS:
            raise TrainerFailure(
                FailureReason.SPEC_INVALID,
                f"{FIELD} compares every row with every other row, which takes too long for more than {MOST_ROWS:,} "
                "rows.",
                f"Remove {FIELD} to compare rows by their words, or provide fewer rows.",
            )
        self._waiting.append(text[:LOOKED_AT])
        if len(self._waiting) == SORTED:
            self._write()

    def join(self, clusters: Clusters, threshold: float, apart: NDArray[np.uint64] | None = None) -> None:
        """Joins each row with the first one whose cosine similarity to it is at least `threshold`; no more rows can be
        added then. `apart`: rows of different numbers are not joined, shape [rows]."""
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
                if apart is not None:
                    near &= apart[other : other + COMPARED] == apart[start : start + COMPARED, None]
                near &= np.arange(other, other + near.shape[1]) < np.arange(start, start + len(later))[:, None]
                first = np.where((first < 0) & near.any(1), other + near.argmax(1), first)
            for row in np.flatnonzero(first >= 0):
                clusters.join(int(first[row]), start + int(row))
            progress.advance(len(later))

    def _write(self) -> None:
        order = sorted(range(len(self._waiting)), key=lambda row: len(self._waiting[row]))
        found: dict[int, NDArray[np.float32]] = {}
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            found.update(zip(rows, self._model.embed([self._waiting[row] for row in rows]), strict=True))
            self._progress.advance(len(rows))
        self._file.writelines(found[row].astype(np.float16).tobytes() for row in range(len(order)))
        self._waiting = []
