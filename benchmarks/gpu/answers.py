"""Measures the generation of answers to held-out rows, as in the evaluation."""

import time
from collections.abc import Iterator
from math import ceil
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.record import Figure
from benchmarks.random_models import SETTINGS, random_shape
from finetune_trainer.evaluation.generation import write_answers
from finetune_trainer.model.parameters.loading import greedy_generation
from finetune_trainer.sizing.memory import GENERATION_FACTOR
from finetune_trainer.sizing.run_time import LAYER_DECODE


def measure(bench: Bench) -> Iterator[Figure]:
    """Yields the seconds for all answers of the tuned model, compared with the assumption of sizing."""
    sizes, name = bench.sizes, bench.sizes.main
    model, vocabulary = bench.model(name, "LoRA"), SETTINGS[name]["vocab_size"]
    prompts = [row.input_ids[: sizes.prompt] for row in bench.rows(name, sizes.answers)]
    together = GENERATION_FACTOR * sizes.micro_batches[-1]
    generation = greedy_generation(model.get_base_model(), [vocabulary - 1], sizes.answer)
    model.eval()
    bench.free()
    started = time.perf_counter()
    with torch.no_grad(), bench.accelerator.autocast():
        expected = [""] * len(prompts)
        answers = write_answers("the tuned model", model, tokenizer(), prompts, expected, together, generation)
    seconds = time.perf_counter() - started
    batches = ceil(len(prompts) / max(1, together // (sizes.prompt + sizes.answer)))
    assumed = batches * sizes.answer * random_shape(name).layers * LAYER_DECODE
    written = sum(sizes.answer for answer in answers if answer.truncated)  # a few may end by chance before
    beside = f"{written / seconds:,.0f} tokens/s; sizing assumes {assumed:.1f} s"
    what = f"{len(prompts)} answers of {sizes.answer} tokens to prompts of {sizes.prompt}"
    yield Figure(what, seconds, "s", beside, right=len(answers) == len(prompts) and np.isfinite(seconds).item())


def tokenizer() -> Any:
    """Returns a tokenizer without a real vocabulary, because the tokens are random."""
    from tokenizers import Tokenizer, models

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
