"""Rows, files and models that the cases read."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from string import ascii_lowercase
from typing import Any

import pyarrow
from pyarrow import parquet

from tests.integration.finetune_trainer.as_the_pod_runs.readings import READINGS, numbers
from tests.unit.finetune_trainer.conftest import near_copies, save_model, save_tokenizer, sum_rows

Rows = list[dict[str, Any]]
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": lambda data: bytes(pyarrow.compress(data, "zstd", asbytes=True)),
}
DIRT = [
    {"prompt": "Is the cafÃ© open?", "completion": "Yes, and the oﬃce."},
    {"prompt": "Write to jane.doe@example.com, or call 030 901820 or +49 30 901821.", "completion": "I will."},
    {"prompt": "The card is 4111 1111 1111 1111.", "completion": "Never send that."},
    {"prompt": "When do you close?   \nSent from my phone", "completion": "At  six."},
    {"prompt": "Is there no answer?"},
]
"""Rows with something to clean; the last one is invalid."""


def write_all(folder: Path) -> None:
    """Every model and file."""
    save_base(folder / "base")
    save_sentence_model(folder / "sentence-model")
    files = {name: [reading.row(number) for number in numbers(name)] for name, reading in READINGS.items()}
    files |= {
        "sums.jsonl": sum_rows(60),
        "few-sums.jsonl": sum_rows(10),
        "few-labels.jsonl": labels(10),
        "labels.jsonl": labels(60),
        "objects.jsonl": objects(60),
        "long-objects.jsonl": [row | {"prompt": row["prompt"] + " of many" * 6} for row in objects(60)],
        "texts.jsonl": [{"text": f"Note {i}: {i} and {i} make {2 * i}, as was to be expected."} for i in range(60)],
        "general.json": [{"question": f"Say {i}", "answer": f"I say {i}."} for i in range(8)],
        "dirty.jsonl": [*sum_rows(40), *sum_rows(3), *near_copies(5), *DIRT],
        "twins.jsonl": [*nonsense(40), *twins(10)],
    }
    for name, rows in files.items():
        write(folder / name, rows)


def labels(count: int) -> Rows:
    """Rows whose answers are one of two labels."""
    return [{"prompt": f"Is {i} even?", "completion": "yes" if i % 2 == 0 else "no"} for i in range(count)]


def objects(count: int) -> Rows:
    """Rows whose answers are JSON."""
    return [{"prompt": f"Order {i}", "completion": json.dumps({"order": i, "odd": i % 2 == 1})} for i in range(count)]


def nonsense(count: int) -> Rows:
    """Rows so different that a sentence model of random weights tells them apart."""
    draws = (Random(i).choices(ascii_lowercase + " ", k=60) for i in range(count))
    return [{"prompt": "".join(letters), "completion": "Another."} for letters in draws]


def twins(count: int) -> Rows:
    """Pairs of rows that a sentence model cannot tell apart, since it reads their beginning alone, and whose words are
    mostly others: the last word of a prompt says which of the two it is."""
    return [
        {
            "prompt": "".join(f" {letter * 3}{n}" for n in range(20)) + "".join(f" {end}{n}" for n in range(30)),
            "completion": "The same.",
        }
        for letter in ascii_lowercase[:count]
        for end in ("left", "right")
    ]


def write(path: Path, rows: Rows) -> None:
    """Writes rows as the kind of file, and under the compression, that the name ends with."""
    compression = path.suffix if path.suffix in COMPRESSIONS else ""
    data = _encoded(path.name.removesuffix(compression).rpartition(".")[2], rows)
    path.write_bytes(COMPRESSIONS[compression](data))


def _encoded(kind: str, rows: Rows) -> bytes:
    match kind:
        case "jsonl" | "ndjson":
            return "".join(json.dumps(row) + "\n" for row in rows).encode()
        case "json":
            return json.dumps(rows).encode()
        case "csv" | "tsv":
            text = io.StringIO(newline="")
            writer = csv.DictWriter(text, list(rows[0]), delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
            return text.getvalue().encode()
        case "parquet":
            data = io.BytesIO()
            parquet.write_table(pyarrow.Table.from_pylist(rows), data)
            return data.getvalue()
    raise ValueError(f"no rows can be written as .{kind}")


def save_base(folder: Path) -> None:
    """A Llama whose attention has biases, so that there are some to train."""
    save_tokenizer(folder)
    save_model(folder, attention_bias=True)


def save_sentence_model(folder: Path) -> None:
    """A BERT in the layout of sentence-transformers, as all-MiniLM-L6-v2 has it. It reads 64 tokens of a text."""
    import torch
    from transformers import BertConfig, BertModel

    save_tokenizer(folder, chat_template=None)
    torch.manual_seed(0)
    sizes = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    BertModel(BertConfig(**sizes, num_hidden_layers=2, max_position_embeddings=64)).save_pretrained(folder)
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": path} for path, kind in kinds.items()]
    (folder / "1_Pooling").mkdir()
    for name, content in {
        "modules.json": modules,
        "1_Pooling/config.json": {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False},
        "sentence_bert_config.json": {"max_seq_length": 64},
    }.items():
        (folder / name).write_text(json.dumps(content))
