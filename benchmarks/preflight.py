"""Compares the speed and memory of preflight with a hand-written `datasets.map` pipeline, on generated rows.

    python -m benchmarks.preflight --model FOLDER [--rows 10000 ...] [--gigabytes 5] [--skip-plain]

`FOLDER` holds a model as save_pretrained writes it; only its tokenizer and its weights' headers are read. Each
measurement is a process of its own, so that its peak memory is its own. MB are those of the data file. Rows per second
of one core's time do not depend on what else the machine does. The file of --gigabytes is there for the memory it
takes, and is cut into whole words in place of the model's tokens, which would take hours and say nothing about memory.
"""

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

SEED = 0
SENTENCES, VOCABULARY = 20_000, 8_000


def sentences(rng: random.Random) -> list[str]:
    """Sentences of words whose frequencies fall as one over their rank, as those of natural text do (Zipf's law), and
    whose lengths are those of English words. The commonest are English, so that they are single tokens."""
    common = "the of and to in a is that for it as was with be by on not he his but at are this have from or".split()  # noqa: SIM905
    syllables = [c + v for c in "bcdfghjklmnprstvw" for v in "aeiou"]
    made = ("".join(rng.choices(syllables, k=rng.choice((1, 2, 2, 3, 3, 4)))) for _ in range(VOCABULARY))
    words = [*common, *made]
    frequencies = list(accumulate(1 / rank for rank in range(1, len(words) + 1)))
    texts = (" ".join(rng.choices(words, cum_weights=frequencies, k=rng.randint(5, 22))) for _ in range(SENTENCES))
    return [f"{text.capitalize()}{rng.choice('.....?!')}" for text in texts]


def write_rows(path: Path, rows: int | None, size: int | None) -> int:
    """Writes rows of a question and its answer, together about 550 bytes in the mean and unevenly long, until there are
    `rows` of them or `size` bytes. Returns how many."""
    rng = random.Random(SEED)
    pool = sentences(rng)
    lengths = [max(1, min(40, round(rng.lognormvariate(1.0, 0.6)))) for _ in range(10_007)]
    count = written = 0
    with path.open("w", encoding="utf-8") as file:
        while (rows is None or count < rows) and (size is None or written < size):
            asked, answered = lengths[count % 10_007], lengths[count * 7 % 10_007]
            row = {
                "prompt": f"{' '.join(rng.choices(pool, k=asked))} ({count})",
                "completion": " ".join(rng.choices(pool, k=answered)),
            }
            written += file.write(json.dumps(row) + "\n")
            count += 1
    return count


def plain(data: Path, model: Path, scratch: Path) -> None:
    """What one would write by hand, and what TRL's SFTTrainer does to its data set: read, render, tokenize whole row
    and prompt, mask the prompt. It checks nothing, finds no copy, and keeps no text."""
    from datasets import load_dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)

    def render(row: dict[str, str]) -> dict[str, str]:
        asked = [{"role": "user", "content": row["prompt"]}]
        chat = [*asked, {"role": "assistant", "content": row["completion"]}]
        return {
            "text": tokenizer.apply_chat_template(chat, tokenize=False),
            "prompt": tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True),
        }

    def tokens(row: dict[str, str]) -> dict[str, Any]:
        ids = tokenizer(row["text"], add_special_tokens=False)["input_ids"]
        prompt = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
        return {"input_ids": ids, "labels": [-100] * len(prompt) + ids[len(prompt) :]}

    found = load_dataset("json", data_files=str(data), split="train", cache_dir=str(scratch / "cache"))
    found = found.map(render, remove_columns=["completion"])
    found.map(tokens, remove_columns=["text", "prompt"])


def stages(data: Path, model: Path, scratch: Path) -> None:
    """Prints the CPU time of each stage. The stages run one after another on all rows, which are kept in memory."""
    from finetune_trainer.base.base_model import inspect_model
    from finetune_trainer.copies.deduplicate import NearCopies, SeenKeys, drop_copies, prompt_key, question, said
    from finetune_trainer.copies.leaks import leaks
    from finetune_trainer.rows.cleaning import Cleaner
    from finetune_trainer.rows.reading import read_rows
    from finetune_trainer.rows.readings import Readings
    from finetune_trainer.rows.suspicions import Suspicions
    from finetune_trainer.sources.findings import Findings
    from finetune_trainer.sources.json_rows import json_lines
    from finetune_trainer.storage.job_storage import open_storage
    from finetune_trainer.tokens.render import prompt_format
    from finetune_trainer.tokens.row_store import RowStore, StoreWriter
    from finetune_trainer.tokens.tokenization import tokenize

    bundle = bundle_of(data, model, scratch)
    storage, findings = open_storage(bundle), Findings()
    tokenizer = inspect_model(storage, str(model), scratch / "model").tokenizer
    format, suspicions = prompt_format(tokenizer), Suspicions(tokenizer)

    def timed(name: str, work: Callable[[], list[Any]], done_before: float = 0.0) -> tuple[list[Any], float]:
        """What `work` gives, and its seconds of processor time, of which `done_before` are another stage's."""
        start = time.process_time()
        found = work()
        seconds = time.process_time() - start
        a_row = (seconds - done_before) / count
        speed = f"{a_row * 1e6:,.1f} | {1 / a_row:,.0f} | {data.stat().st_size / 1e6 / (seconds - done_before):,.2f}"
        print(f"STAGE | {name} | {speed} |", flush=True)
        return found, seconds

    def store() -> list[Any]:
        with StoreWriter(scratch / "store") as writer:
            for row, example in tokens:
                writer.append(example, prompt_key(row))
        return []

    def sketch() -> list[Any]:
        for row in rows:
            copies.add(row.messages)
        return []

    copies = NearCopies(bundle.spec.dataset.deduplicate, storage, scratch)
    with data.open("rb") as stream:
        count = sum(1 for _ in stream)
        stream.seek(0)
        _, parsing = timed("read and parse", lambda: list(json_lines(stream, str(data))))
    rows, _ = timed(
        "validate",
        lambda: list(read_rows(storage, bundle.spec.dataset.train, "dataset.train", findings, Readings())),
        parsing,
    )
    rows, _ = timed("clean", lambda: list(Cleaner(bundle.spec.dataset.clean).clean(rows)))
    rows, _ = timed("find exact copies", lambda: list(drop_copies(rows, SeenKeys(), findings)))
    rows, _ = timed("look for suspicions", lambda: list(suspicions.note(rows, findings)))
    _, rendering = timed("render", lambda: [format.render(row) for row in rows])
    tokens, _ = timed("tokenize", lambda: list(tokenize(rows, format, tokenizer, findings)), rendering)
    timed("store", store)
    timed("sketch for near copies", sketch)
    tested = [question(row.messages) for row in rows[:1000]]
    told = RowStore(scratch / "store")
    timed("compare near copies", lambda: [copies.find(told.column("key"), told.messages)])
    timed("look for test rows", lambda: list(leaks(tested, len(told), lambda row: said(told.messages(row)))))


def whole_words(data: Path, model: Path, scratch: Path) -> None:
    """Makes `data` a copy of the model with a tokenizer of whole words: the commonest of `sentences`, no more than the
    model's embedding has rows."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

    shutil.copytree(model, data)
    before = AutoTokenizer.from_pretrained(model)
    words = Counter(word.strip(".?!") for text in sentences(random.Random(SEED)) for word in text.split())
    known = dict.fromkeys(["<unk>", *before.all_special_tokens, *".?!()", *(word for word, _ in words.most_common())])
    rows = AutoConfig.from_pretrained(model).vocab_size
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(list(known)[:rows])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        eos_token=before.eos_token,
        pad_token=before.pad_token,
        additional_special_tokens=before.all_special_tokens,
        chat_template=before.chat_template,
    ).save_pretrained(data)


def bundle_of(data: Path, model: Path, scratch: Path) -> Any:
    """Returns a bundle with local paths."""
    from finetune_api.bundle import Bundle

    spec = {
        "model": {"uri": str(model)},
        "dataset": {"train": [{"uri": str(data)}]},
        "output": {"uri": str(scratch / "output")},
    }
    return Bundle.model_validate({"spec": spec})


WORK = {work.__name__: work for work in (plain, stages, whole_words)}


def measure(work: str, data: Path, model: Path, scratch: Path) -> tuple[float, float, float, list[str]]:
    """Seconds, those of all cores together, peak resident memory in GB, and what was printed of stages, of `work` in a
    process of its own: `ours` as a pod runs it."""
    command = [sys.executable, "-m", "benchmarks.preflight", "--work", work, "--data", str(data), "--model", str(model)]
    if work == "ours":
        bundle = scratch / "bundle.json"
        bundle.write_text(bundle_of(data, model, scratch).model_dump_json(by_alias=True, exclude_none=True))
        command = [sys.executable, "-m", "finetune_trainer", "preflight", str(bundle)]
    environment = os.environ | {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "1", "TMPDIR": str(scratch)}
    log = scratch / "log"
    start = time.perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text()[-2000:]}")
    staged = [line for line in log.read_text().splitlines() if line.startswith("STAGE")]
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e6, staged


def main() -> None:
    """Runs the measurement, or one of the measured processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of the model")
    parser.add_argument(
        "--rows", type=int, nargs="*", default=[10_000, 100_000, 1_000_000], help="numbers of rows to measure"
    )
    parser.add_argument("--gigabytes", type=float, default=0, help="also measure a file of this size")
    parser.add_argument("--skip-plain", action="store_true", help="measure only our pipeline")
    parser.add_argument("--work", choices=WORK, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        with tempfile.TemporaryDirectory() as folder:
            WORK[options.work](options.data, options.model.absolute(), Path(folder))
        return
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "rows.jsonl"
        for rows in options.rows:
            write_rows(data, rows, None)
            print(f"\n| stage, of {rows:,} rows | microseconds of CPU time per row | rows/s | MB/s |")
            print("| --- | --- | --- | --- |")
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                lines = measure("stages", data, options.model.absolute(), Path(scratch))[3]
            print("\n".join(line.removeprefix("STAGE ") for line in lines), flush=True)
    print("\n| pipeline | rows | MB | seconds | rows/s | MB/s | rows/s per core's CPU time | peak memory GB |")
    print("|" + " --- |" * 8)
    pipelines = ("ours",) if options.skip_plain else ("ours", "plain")
    for rows in options.rows:
        table_rows(rows, None, options.model.absolute(), pipelines)
    if options.gigabytes:
        with tempfile.TemporaryDirectory() as folder:
            # In a process of its own as well: a measured one starts with the memory of the one that starts it.
            model = Path(folder) / "model"
            measure("whole_words", model, options.model.absolute(), Path(folder))
            table_rows(None, int(options.gigabytes * 1e9), model, ("ours",))


def table_rows(rows: int | None, size: int | None, model: Path, pipelines: Sequence[str]) -> None:
    """Creates a file, and prints the time and memory of each pipeline."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "rows.jsonl"
        count, megabytes = write_rows(data, rows, size), data.stat().st_size / 1e6
        for work in pipelines:
            with tempfile.TemporaryDirectory() as scratch:
                seconds, cores, peak, _ = measure(work, data, model, Path(scratch))
            figures = f"{seconds:,.1f} | {count / seconds:,.0f} | {megabytes / seconds:.2f} | {count / cores:,.0f}"
            print(f"| {work} | {count:,} | {megabytes:,.0f} | {figures} | {peak:.2f} |", flush=True)


if __name__ == "__main__":
    main()
