"""Measures the time in which a training pod gets its model from S3, into the cache, and from the cache.

    python -m benchmarks.model_cache [--rounds 5]

SmolLM2-135M-Instruct (270 MB). The S3 server and the volume of the cache are on this machine. Each figure is that of a
new process, as the container `fetch-model` runs it. It asks S3 for the identity of every file, and then copies the
model.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.model_servers import environment, model_on
from examples.model.convert import model_folder

CHILD = "--fetch"
ROWS = [{"prompt": f"What is {i} plus {i}?", "completion": f"It is {2 * i}."} for i in range(40)]


def main() -> None:
    """Runs all rounds and prints a Markdown table. With --fetch, it is the process of one round."""
    if CHILD in sys.argv:
        fetch_once(Path(sys.argv[-1]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    seconds: dict[str, list[float]] = {"S3, and into the cache": [], "the cache": []}
    with tempfile.TemporaryDirectory() as name, model_on("s3", model_folder(), Path(name)) as (uri, parts):
        folder = Path(name)
        variables = os.environ | environment(folder)
        prepare(folder, uri, parts, variables)
        for _ in range(rounds):
            shutil.rmtree(folder / "cache", ignore_errors=True)
            for source, each in seconds.items():
                fetched = _round(folder, variables)
                assert fetched["cached"] is (source == "the cache")
                each.append(fetched["seconds"])
    print("| model from | median, s | fastest, s | slowest, s |\n| --- | --: | --: | --: |")
    for source, each in seconds.items():
        print(f"| {source} | {median(each):.2f} | {min(each):.2f} | {max(each):.2f} |")


def prepare(folder: Path, uri: str, parts: dict[str, object], variables: dict[str, str]) -> None:
    """Writes a bundle, and runs its preflight."""
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    train, output = [{"uri": str(folder / "rows.jsonl")}], {"uri": str(folder / "out")}
    job = {"model": {"uri": uri}, "dataset": {"train": train}, "output": output}
    (folder / "bundle.json").write_text(json.dumps({"spec": job} | parts))
    command = [sys.executable, "-m", "finetune_trainer", "preflight", str(folder / "bundle.json")]
    subprocess.run(command, check=True, env=variables, stdout=subprocess.DEVNULL)


def _round(folder: Path, variables: dict[str, str]) -> dict[str, float]:
    """Returns what a new process leaves for the trainer."""
    command = [sys.executable, "-m", "benchmarks.model_cache", CHILD, str(folder)]
    done = subprocess.run(command, check=True, env=variables, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def fetch_once(folder: Path) -> None:
    """Fetches the model of the bundle in `folder`. Prints what it leaves for the trainer."""
    from finetune_trainer.__main__ import read_bundle
    from finetune_trainer.base.cache.model_cache import ModelCache
    from finetune_trainer.handover.fetch import FETCHED, fetch
    from finetune_trainer.storage.job_storage import open_storage

    bundle = read_bundle(folder / "bundle.json")
    with tempfile.TemporaryDirectory() as scratch:
        print(fetch(bundle, open_storage(bundle), ModelCache(folder / "cache", None), Path(scratch)))
        print((Path(scratch) / FETCHED).read_text())


if __name__ == "__main__":
    main()
