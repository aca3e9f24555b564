"""What preflight leaves for the attempts: the rows as token ids, not packed, and everything resolved.

Under the job's work prefix beside the output: SPLIT.safetensors (the tokens of all rows end to end),
SPLIT.jsonl.gz (their texts), and manifest.json, written last, with the sha256 of each.
"""

import gzip
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from finetune_api.bundle import Bundle
from finetune_api.reasons import FailureReason
from finetune_api.status import Preflight, Resolved
from finetune_trainer.failure import TrainerFailure
from finetune_trainer.storage import Storage, join

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")


@dataclass(frozen=True, eq=False, slots=True)
class Example:
    """One row, tokenized."""

    input_ids: NDArray[np.int32]
    """All tokens, prompt and answers, shape [tokens]."""
    supervised: NDArray[np.bool_]
    """True where the token is learned: an answer's tokens and its end of turn. Shape [tokens]; never True at 0."""
    prompt_length: int
    """Tokens before the last answer: what generation starts from."""
    prompt: str
    """What was asked, as shown to people."""
    answer: str
    """The last answer, as the row has it."""
    source: str
    """Where the row stands, as FILE:LINE."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """All rows, and what the run was resolved to."""

    train: Sequence[Example]
    test: Sequence[Example]
    resolved: Resolved
    preflight: Preflight
    stop_token_ids: tuple[int, ...]
    """Tokens that end an answer: the tokenizer's and the model's own list, and the template's end of turn."""
    chat_template: str
    """The template the rows were rendered with: the tokenizer's own, or the one that writes the Plain format."""


def work_prefix(bundle: Bundle) -> str:
    """URI of the job's own folder beside the output, for what is not a result; removed on success."""
    return join(bundle.spec.output.uri, ".work", bundle.job.uid if bundle.job else "local")


def write_prepared(storage: Storage, bundle: Bundle, prepared: Prepared) -> None:
    """Writes everything, the manifest last, so that a reader finds all of it or nothing."""
    folder = join(work_prefix(bundle), "prepared")
    files: dict[str, str] = {}
    for split in SPLITS:
        examples = getattr(prepared, split)
        for name, data in ((f"{split}.safetensors", _tokens(examples)), (f"{split}.jsonl.gz", _texts(examples))):
            storage.write_bytes(join(folder, name), data)
            files[name] = hashlib.sha256(data).hexdigest()
    manifest = {
        "files": files,
        "resolved": prepared.resolved.model_dump(mode="json", by_alias=True),
        "preflight": prepared.preflight.model_dump(mode="json", by_alias=True, exclude_none=True),
        "stopTokenIds": prepared.stop_token_ids,
        "chatTemplate": prepared.chat_template,
    }
    storage.write_bytes(join(folder, "manifest.json"), json.dumps(manifest, indent=2).encode())


def read_prepared(storage: Storage, bundle: Bundle) -> Prepared:
    """Reads what `write_prepared` wrote. Raises TrainerFailure StorageUnavailable when it is gone or not as written."""
    folder = join(work_prefix(bundle), "prepared")
    if not storage.exists(join(folder, "manifest.json")):
        raise TrainerFailure(
            FailureReason.STORAGE_UNAVAILABLE, f"The prepared data at {folder} is gone: preflight has to run again."
        )
    manifest = json.loads(storage.read_bytes(join(folder, "manifest.json")))
    data = {name: _verified(storage, join(folder, name), digest) for name, digest in manifest["files"].items()}
    examples = {split: _examples(data[f"{split}.safetensors"], data[f"{split}.jsonl.gz"]) for split in SPLITS}
    return Prepared(
        train=examples["train"],
        test=examples["test"],
        resolved=Resolved.model_validate(manifest["resolved"]),
        preflight=Preflight.model_validate(manifest["preflight"]),
        stop_token_ids=tuple(manifest["stopTokenIds"]),
        chat_template=manifest["chatTemplate"],
    )


def data_digest(train: Sequence[Example], test: Sequence[Example], *inputs: bytes | str | int) -> str:
    """sha256 as hex over every token, what of it is learned, and which side of the split it is on. `inputs`: the
    tokenizer, template and lengths behind them, which decide how later text is read."""
    digest = hashlib.sha256()
    for part in inputs:
        digest.update(hashlib.sha256(part if isinstance(part, bytes) else str(part).encode()).digest())
    for split, examples in zip(SPLITS, (train, test), strict=True):
        digest.update(f"{split} {len(examples)}".encode())
        for example in examples:
            digest.update(len(example.input_ids).to_bytes(4, "big"))
            digest.update(example.input_ids.astype("<i4").tobytes() + example.supervised.tobytes())
    return digest.hexdigest()


def _tokens(examples: Sequence[Example]) -> bytes:
    lengths = np.array([len(example.input_ids) for example in examples], dtype=np.int64)
    empty = np.zeros(0, dtype=np.int32)
    return save(
        {
            "input_ids": np.concatenate([empty, *(example.input_ids for example in examples)]),
            "supervised": np.concatenate([empty.astype(np.bool_), *(example.supervised for example in examples)]),
            "lengths": lengths,
            "prompt_lengths": np.array([example.prompt_length for example in examples], dtype=np.int64),
        }
    )


def _texts(examples: Sequence[Example]) -> bytes:
    lines = (json.dumps([example.prompt, example.answer, example.source]) for example in examples)
    return gzip.compress("\n".join(lines).encode(), compresslevel=1, mtime=0)


def _examples(tokens: bytes, texts: bytes) -> list[Example]:
    """Rows as views into the flat arrays: one allocation for all tokens, whatever their number."""
    flat: dict[str, NDArray[Any]] = load(tokens)
    ends = np.cumsum(flat["lengths"]).tolist()
    rows = [json.loads(line) for line in gzip.decompress(texts).decode().splitlines()]
    return [
        Example(
            input_ids=flat["input_ids"][start:end],
            supervised=flat["supervised"][start:end],
            prompt_length=int(prompt_length),
            prompt=prompt,
            answer=answer,
            source=source,
        )
        for start, end, prompt_length, (prompt, answer, source) in zip(
            [0, *ends[:-1]], ends, flat["prompt_lengths"], rows, strict=False
        )
    ]


def _verified(storage: Storage, uri: str, digest: str) -> bytes:
    data = storage.read_bytes(uri)
    if hashlib.sha256(data).hexdigest() != digest:
        raise TrainerFailure(
            FailureReason.STORAGE_UNAVAILABLE, f"{uri} is not what preflight wrote: preflight has to run again."
        )
    return data
