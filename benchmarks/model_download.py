"""Measures the time in which a training pod gets its model from S3 and from a hub.

    python -m benchmarks.model_download [--rounds 5]

SmolLM2-135M-Instruct (270 MB). Both servers run on this machine. Each round is a new process for each source, in turns.
It opens the storage, loads the trainer's libraries, of which the hub's client is one, lists the files, copies them and,
from a hub, compares them with the digests. All other parts of the time to the first step are the same for both
(`benchmarks.first_step`).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

from benchmarks.model_servers import SOURCES, environment, model_on
from examples.model.convert import model_folder

CHILD = "--copy"


def main() -> None:
    """Runs all rounds and prints a Markdown table. With --copy, it is the process of one round."""
    if CHILD in sys.argv:
        copy(Path(sys.argv[-1]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with (
        tempfile.TemporaryDirectory() as one,
        tempfile.TemporaryDirectory() as other,
        model_on("s3", model_folder(), Path(one)) as s3,
        model_on("hub", model_folder(), Path(other)) as hub,
    ):
        places = dict(zip(SOURCES, ((s3, Path(one)), (hub, Path(other))), strict=True))
        seconds: dict[str, list[float]] = {source: [] for source in SOURCES}
        for _ in range(rounds):
            for source, ((uri, parts), folder) in places.items():
                bundle = folder / "bundle.json"
                job = {"model": {"uri": uri}, "dataset": {"train": [{"uri": "rows.jsonl"}]}, "output": {"uri": "out"}}
                bundle.write_text(json.dumps({"spec": job} | parts))
                seconds[source].append(_round(bundle, os.environ | environment(folder)))
    print("| model from | median, s | fastest, s | slowest, s |\n| --- | --: | --: | --: |")
    for source, each in seconds.items():
        print(f"| {source} | {median(each):.2f} | {min(each):.2f} | {max(each):.2f} |")


def _round(bundle: Path, variables: dict[str, str]) -> float:
    """Returns the seconds that a new process measures."""
    command = [sys.executable, "-m", "benchmarks.model_download", CHILD, str(bundle)]
    done = subprocess.run(command, check=True, env=variables, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.splitlines()[-1])


def copy(path: Path) -> None:
    """Copies the model's files to a new folder and prints the seconds, with those to load the libraries."""
    from finetune_trainer.__main__ import read_bundle
    from finetune_trainer.base.model_files import SETTINGS, WEIGHTS
    from finetune_trainer.storage.job_storage import open_storage

    bundle = read_bundle(path)
    with tempfile.TemporaryDirectory() as folder:
        started = perf_counter()
        storage = open_storage(bundle)
        import finetune_trainer.train.recipe  # noqa: F401 # the training's libraries, as in a training pod

        storage.download_folder(bundle.spec.model.uri, Path(folder), lambda file: file in {*SETTINGS, WEIGHTS})
        print(perf_counter() - started)


if __name__ == "__main__":
    main()
