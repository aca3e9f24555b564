"""What the tests of the training half are made of: rows of random tokens, tiny models, a fresh Accelerator."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from finetune_api.bundle import Bundle
from finetune_api.spec.evaluation import MetricName
from finetune_api.spec.method import MethodType
from finetune_api.status.job import Training as StatusTraining
from finetune_api.status.preflight import Preflight, Resolved, Splits
from finetune_trainer.evaluation.recipe import Assessment, Baselines
from finetune_trainer.evaluation.status import evaluation_status
from finetune_trainer.evaluation.verdict import Cost, verdict
from finetune_trainer.handover.prepared import Example, Prepared
from finetune_trainer.metrics.answer_kind import AnswerKind, Answers
from finetune_trainer.model.layers.attention import use_document_attention
from finetune_trainer.results.results import Results
from finetune_trainer.results.serving import QUESTION, Serving
from finetune_trainer.rows.row_format import Message
from finetune_trainer.statistics.comparison import compare
from finetune_trainer.statistics.measurements import Answer, Measured, Measurements
from finetune_trainer.training.loop import Step

VOCABULARY = 320
# Models this small only wait for a second thread.
torch.set_num_threads(1)


def example(tokens: int, answer: int, seed: int = 0, place: str = "", texts: tuple[str, str] | None = None) -> Example:
    """A row of random tokens whose last `answer` are learned."""
    supervised = np.zeros(tokens, dtype=np.bool_)
    supervised[tokens - answer :] = True
    input_ids = np.random.default_rng(seed).integers(4, VOCABULARY, tokens).astype(np.int32)
    said = turns(*(texts or ("a question", f"answer {seed}")))
    return Example(input_ids, supervised, tokens - answer, said, place or f"rows.jsonl:{seed}", cluster=seed)


def turns(question: str, answer: str) -> tuple[Message, ...]:
    """One question and its answer."""
    return Message("user", question), Message("assistant", answer)


def examples(lengths: Sequence[int]) -> list[Example]:
    """Rows of these lengths; the last third of each is learned."""
    return [example(length, max(1, length // 3), seed) for seed, length in enumerate(lengths)]


SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
"""Of every tiny model, whatever its family: two layers with grouped queries."""


def tiny_llama(dtype: torch.dtype = torch.float64, **config: Any) -> PreTrainedModel:
    """A randomly initialised Llama of 2 layers with grouped queries, run document by document."""
    torch.manual_seed(0)
    settings = LlamaConfig(**SIZES, max_position_embeddings=512, **config)
    return prepared_model(LlamaForCausalLM(settings), dtype)


def prepared_model(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """`model` as the trainer runs it. Its weights are spread wider than at initialisation, so that what leaks shows."""
    for parameter in model.parameters():
        parameter.data *= 3
    model = model.to(dtype).eval().requires_grad_(False)
    use_document_attention(model)
    return model


def fresh_accelerator(mixed_precision: str = "no") -> Accelerator:
    """An Accelerator on the CPU. Its state is one per process, so that of an earlier test is dropped."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=True, mixed_precision=mixed_precision)


def measured(losses: Sequence[float], matches: Sequence[bool], labels: int = 10) -> Measured:
    """A measurement with these mean losses and matches, row by row of `examples`."""
    return Measured(
        losses=np.array(losses, dtype=np.float64) * labels,
        labels=np.full(len(losses), labels),
        answers=[
            Answer(f"answer {i}" if match else f"miss {i}", truncated=False, matches=match)
            for i, match in enumerate(matches)
        ],
        seconds=1.0,
    )


def assessment(held_out: Sequence[Example], base: Measured, tuned: Measured) -> Assessment:
    """What the evaluation says of these measurements, by exact match."""
    metrics = (MetricName.EXACT_MATCH, MetricName.TOKEN_F1, MetricName.LOSS, MetricName.PERPLEXITY)
    found = compare(held_out, Measurements(base, tuned), metrics, Answers(AnswerKind.TEXT), seed=0)
    sentence = verdict(found, Cost(seconds=7.5, tokens=4800))
    status = evaluation_status(found, Measurements(base, tuned), gates=[], regression=[], verdict=sentence)
    return Assessment(Baselines(base, None, {}), tuned, found, status)


def resolved(**parts: Any) -> Resolved:
    """What preflight would have resolved for four steps of LoRA on rows of at most 40 tokens, but for `parts`."""
    usual: dict[str, Any] = {
        "method": MethodType.LORA,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "total_steps": 4,
        "max_sequence_length": 40,
        "micro_batch_tokens": 2048,
        "max_new_tokens": 8,
        "metrics": [MetricName.EXACT_MATCH, MetricName.TOKEN_F1, MetricName.LOSS, MetricName.PERPLEXITY],
        "prompt_format": "Plain",
        "parameters": 1,
    }
    return Resolved(**usual | parts)


def results(bundle: Bundle, rows: Sequence[Example] | None = None, steps: int = 30) -> Results:
    """A finished run that gained half of its held-out rows."""
    held_out = list(rows or examples([12] * 20))
    base, tuned = (
        measured([loss] * len(held_out), [i < right for i in range(len(held_out))])
        for loss, right in ((2.0, 0), (0.5, len(held_out) // 2))
    )
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    prepared = Prepared(
        train=examples([20] * 80),
        test=held_out,
        resolved=resolved(
            method=bundle.spec.method.type,
            learning_rate=1e-3,
            warmup_steps=1,
            total_steps=steps,
            max_new_tokens=16,
            prompt_format="ChatTemplate",
            parameters=135_000_000,
        ),
        preflight=Preflight(
            rows=103,
            invalid=0,
            duplicates=3,
            overlength=0,
            tokens=1600,
            supervised_tokens=480,
            splits=Splits(train=80, test=len(held_out)),
            digest="d" * 64,
            observed_time=now,
        ),
        answers=Answers(AnswerKind.TEXT),
        stop_token_ids=(3,),
        chat_template="{{ messages }}",
    )
    history = [Step(i, 2.0 / i, 1e-3 / i, 0.5, 160, 0.25) for i in range(1, steps + 1)]
    training = StatusTraining(
        attempt=1,
        device="cpu",
        step=steps,
        total_steps=steps,
        epoch=1.0,
        loss=history[-1].loss,
        learning_rate=1e-4,
        tokens_per_second=640.0,
        observed_time=now,
    )
    return Results(
        bundle=bundle,
        prepared=prepared,
        training=training,
        steps=history,
        held_out=held_out,
        assessment=assessment(held_out, base, tuned),
        serving=serving(),
        adapter=LoraConfig(r=bundle.spec.method.lora.r),
        base_license={"license": "apache-2.0"},
    )


def serving() -> Serving:
    """How a model with a ChatML-like template is asked."""
    beginning, ending = "<|start|>user\n", "<|end|>\n<|start|>assistant\n"
    return Serving("{{ messages }}", {}, f"{beginning}{QUESTION}{ending}", beginning, ending, {3: "<|end|>"}, 16)
