"""A finished run with everything the report can show, made up without training: tickets turned into JSON.

`python -m tests.unit.finetune_trainer.complete_run json FILE` (or labels) writes its page, to be looked at in a
browser.
"""

import json
import sys
from dataclasses import replace
from math import exp
from pathlib import Path

import numpy as np

from finetune_api.bundle import Bundle
from finetune_api.spec.evaluation import Evaluation as EvaluationWish
from finetune_api.spec.evaluation import Gate, MetricName, MinGain, RegressionSet
from finetune_api.status.evaluation import Merged
from finetune_api.status.preflight import Advice, Cleaned, CleaningStep, Estimate, Finding, Severity, SourceRows, Splits
from finetune_trainer.evaluation.gates import gate_results, regression_result
from finetune_trainer.evaluation.quantized import base_name
from finetune_trainer.evaluation.recipe import Assessment, Baselines
from finetune_trainer.evaluation.status import evaluation_status
from finetune_trainer.evaluation.verdict import Cost, verdict
from finetune_trainer.handover.prepared import Example
from finetune_trainer.metrics.answer_kind import AnswerKind, Answers
from finetune_trainer.metrics.metric_choice import choose_metrics
from finetune_trainer.results.report import report_page
from finetune_trainer.results.results import Results
from finetune_trainer.results.serving import Serving
from finetune_trainer.sources.cleaning_record import Change
from finetune_trainer.statistics.comparison import compare
from finetune_trainer.statistics.measurements import Answer, FewShot, Measured, Measurements
from finetune_trainer.training.loop import Step
from finetune_trainer.training.validation import ValidationLoss
from tests.unit.finetune_trainer.small_runs import results, turns

STEPS, HELD_OUT = 420, 200
AREAS = ("billing", "login", "delivery", "app", "other")
MAILS = (
    "Hello, I was charged twice for order {n}. Please send one payment back, I need it before Friday.",
    "Since the update the app closes as soon as I open my basket. Phone: Pixel 8. Order {n} is still in it.",
    "My password reset link says it has expired, although I clicked it right away. Account {n}.",
    "Parcel {n} was to arrive on Monday. The tracking page has said 'in transit' for nine days.",
    "Kann ich die Rechnung {n} auch auf Englisch bekommen? Danke & freundliche Grüße",
)

ADVICE = Advice(
    reason="NearCopies",
    message="312 of 2,229 training rows (14%) are near-duplicates of an earlier row, so the model sees their content "
    "several times. Set spec.dataset.deduplicate.near to Drop to train on only the first row of each group.",
)
FINDINGS = [
    Finding(severity=Severity.ERROR, message="the answer is empty", rows=3, places=["tickets/2026-01.jsonl line 88"]),
    Finding(severity=Severity.WARNING, message="mojibake", rows=17, places=["tickets/2026-02.jsonl line 4"]),
]
SOURCES = [
    SourceRows(side="train", name="tickets", rows=1980, tokens=371_004),
    SourceRows(side="train", name="general", rows=494, tokens=91_114),
]
CLEANED = {"unicode": 9, "remove[0]": 187, "mask[Email]": 31}
CHANGES = (
    Change(
        "remove[0]", "s3://acme-data/tickets/2026-01.jsonl:7", "before Friday.\nSent from my phone", "before Friday."
    ),
    Change(
        "mask[Email]",
        "s3://acme-data/tickets/2026-02.jsonl:31",
        "write to <...> please",
        "write to <EMAIL_ADDRESS> please",
    ),
)


def bundle() -> Bundle:
    """A job as a team would write it."""
    spec = {
        "model": {"uri": "s3://acme-models/llama-3.1-8b-instruct"},
        "method": {"type": "QLoRA"},
        "dataset": {
            "train": [{"uri": "s3://acme-data/tickets/2026-*.jsonl"}, {"uri": "s3://acme-data/chat/general.jsonl"}]
        },
        "training": {"epochs": 3, "globalBatchSize": 16},
        "output": {"uri": "s3://acme-models/tickets", "merge": True},
    }
    job = {"namespace": "support", "name": "tickets-to-json", "uid": "8f14e45f-ceea-4672-9a3b-0c1f6f5d1f10"}
    return Bundle.model_validate({"spec": spec, "job": job})


def held_out() -> list[Example]:
    """Tickets and the JSON they are to become."""
    rows = []
    for n in range(HELD_OUT):
        kind = n % len(AREAS)
        wanted = {"area": AREAS[kind], "order": str(40_000 + 7 * n), "urgent": n % 3 == 0}
        prompt = MAILS[kind].format(n=40_000 + 7 * n)
        tokens, supervised = np.arange(90, dtype=np.int32), np.arange(90) >= 60
        place = f"s3://acme-data/tickets/2026-03.jsonl:{11 + 13 * n}"
        rows.append(Example(tokens, supervised, 60, turns(prompt, json.dumps(wanted)), place, n, n % 4 // 3))
    return rows


def measured(rows: list[Example], right: float, loss: float, spoilt: str, seed: int) -> Measured:
    """A model that answers a share of the rows word for word and spoils the others."""
    generator = np.random.default_rng(seed)
    labels = np.array([int(row.supervised.sum()) for row in rows])
    answers = []
    for row, hit in zip(rows, (generator.random(len(rows)) < right).tolist(), strict=True):
        text = row.answer if hit else spoilt.format(answer=row.answer)
        answers.append(Answer(text if hit else text.replace("false", "true"), not hit and len(text) > 95, hit))
    losses = generator.gamma(8, loss / 8, len(rows)) * labels
    return Measured(losses, labels, answers, 74.2)


def prompted(rows: list[Example]) -> FewShot:
    """The base model shown five tickets, in three draws."""
    spoilt = "{answer}" if "{" in rows[0].answer else "It is {answer}."
    draws = [measured(rows, 0.4, 1.0, spoilt, seed).answers for seed in (3, 4, 5)]
    return FewShot(draws, (5, 5, 5), 231.0)


def assessed(rows: list[Example], answers: Answers, base: Measured, tuned: Measured) -> Assessment:
    """All the evaluation says of these measurements, gates and a regression set among it."""
    few_shot = prompted(rows)
    metrics = choose_metrics(EvaluationWish(), answers)
    sources = bundle().spec.dataset.source_names("train")
    baselines = Baselines(base, few_shot, {}, part(base, len(rows), 1.02))
    models = Measurements(base, tuned, few_shot, baselines.quantized)
    found = compare(rows, models, metrics, answers, seed=0, sources=sources)
    gates = [Gate(metric=metrics[0], min=0.8), Gate(metric=MetricName.EXACT_MATCH, min_gain_over=MinGain(few_shot=0.2))]
    general = RegressionSet(name="general", uri="s3://acme-data/chat/probe.jsonl", metric=MetricName.LOSS, max_drop=0.1)
    regression = [regression_result(general, rows[:60], part(base, 60, 1.1), part(base, 60, 1.13), 0)]
    sentence = verdict(found, Cost(154.1, 1_386_000, 0.12, "0.09"), base_name(baselines.told))
    evaluation = evaluation_status(
        found,
        models,
        gates=gate_results(gates, found.metrics),
        regression=regression,
        verdict=sentence,
        quantized=baselines.told,
    )
    return Assessment(baselines, tuned, found, evaluation)


def part(whole: Measured, rows: int, factor: float) -> Measured:
    """The first rows of a measurement, with another loss."""
    return Measured(whole.losses[:rows] * factor, whole.labels[:rows], whole.answers[:rows], 1.0)


def steps() -> list[Step]:
    """A loss that falls, noisily, under a warmed-up cosine."""
    generator = np.random.default_rng(0)
    made = []
    for number in range(1, STEPS + 1):
        warm = min(1.0, number / 13)
        rate = 2e-4 * warm * (0.55 + 0.45 * np.cos(np.pi * number / STEPS))
        loss = (0.42 + 1.7 * exp(-number / 40)) * float(generator.normal(1, 0.07))
        tokens = int(generator.normal(3300, 500))
        seconds = tokens / float(generator.normal(9100 if number > 3 else 4000, 240))
        made.append(Step(number, loss, float(rate), 0.8, tokens, seconds, int(9.1 * 2**30 + 2**20 * tokens / 5)))
    return made


def validation() -> list[ValidationLoss]:
    """A loss on other rows that turns up again towards the end."""
    return [ValidationLoss(step, 0.5 + 1.4 * exp(-step / 45) + (step / 1500) ** 2, 6.0) for step in range(0, 421, 42)]


def lengths() -> list[Example]:
    """Rows of uneven lengths to learn from."""
    drawn = np.random.default_rng(1).lognormal(5.2, 0.5, 2229).clip(20, 1024).astype(int)
    return [Example(np.zeros(n, dtype=np.int32), np.zeros(n, np.bool_), 0, turns("", ""), "") for n in drawn]


def serving() -> Serving:
    """Llama 3's format, with the system prompt all rows share."""
    system = (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
        "Today Date: 26 Jul 2024\n\n"
    )
    user, ending = (
        "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    )
    return Serving(
        chat_template="{{ bos_token }}...",
        template_arguments={},
        rendered=f"{system}{user}What you ask{ending}",
        beginning=f"{system}You turn support tickets into JSON with the keys area, order and urgent.{user}",
        ending=ending,
        stop_tokens={128009: "<|eot_id|>", 128001: "<|end_of_text|>"},
        max_new_tokens=58,
    )


def estimates() -> list[Estimate]:
    """What preflight had predicted."""
    return [
        Estimate(gpu_type="l4", memory="11.8Gi", fits=True, seconds=412, cost="0.09"),
        Estimate(gpu_type="t4-8g", memory="11.8Gi", fits=False, alternative="No method would fit."),
    ]


def json_results() -> Results:
    """Everything at once."""
    rows = held_out()
    base = measured(rows, 0.12, 1.9, "Sure! Here is the ticket as JSON:\n{answer}", 1)
    tuned = measured(rows, 0.81, 0.31, "{answer}", 2)
    run = results(bundle(), rows, steps=STEPS)
    merged = Merged(
        loss=0.3142,
        loss_change=0.0121,
        rows=50,
        exact_match=0.8,
        exact_match_change=-0.02,
        changed=True,
        message="Merging changed the loss by +0.0121 nats per token and exact match on 50 rows by -2 points. The "
        "change exceeds the tolerance of 0.01 nats per token and 5 points. Serve the adapter over the 4-bit base "
        "model, as in the evaluation, or measure the merged weights on your own task before you use them.",
    )
    history = steps()
    training = run.training.model_copy(
        update={"device": "NVIDIA L4", "epoch": 3.0, "tokens_per_second": 9043.0, "loss": history[-1].loss}
    )
    preflight = run.prepared.preflight.model_copy(
        update={
            "estimate": estimates(),
            "advice": [ADVICE],
            "findings": FINDINGS,
            "sources": SOURCES,
            "cleaned": Cleaned(rows=212, emptied=2, steps=[CleaningStep(name=n, rows=c) for n, c in CLEANED.items()]),
            "near_duplicates": 41,
            "rows": 2_561,
            "invalid": 3,
            "duplicates": 84,
            "overlength": 3,
            "tokens": 462_118,
            "supervised_tokens": 88_004,
            "splits": Splits(train=2229, test=245),
        }
    )
    resolved = run.prepared.resolved.model_copy(
        update={
            "learning_rate": 2e-4,
            "warmup_steps": 13,
            "parameters": 8_030_261_248,
            "max_new_tokens": 58,
            "max_sequence_length": 1024,
        }
    )
    return replace(
        run,
        prepared=replace(run.prepared, train=lengths(), cleaning=CHANGES, preflight=preflight, resolved=resolved),
        training=training,
        steps=history,
        validation=validation(),
        assessment=assessed(rows, Answers(AnswerKind.JSON), base, tuned).with_merged(merged),
        serving=serving(),
        base_license={"license": "llama3.1"},
    )


def label_results() -> Results:
    """The same tickets with only their area to tell: answers that are labels."""
    rows = [replace(row, messages=turns(row.prompt, json.loads(row.answer)["area"])) for row in held_out()]
    run = json_results()
    generator = np.random.default_rng(6)
    models = []
    for right, loss in ((0.3, 1.6), (0.85, 0.4)):
        given = [row.answer if generator.random() < right else str(generator.choice([*AREAS, "?"])) for row in rows]
        answers = [Answer(text, False, text == row.answer) for text, row in zip(given, rows, strict=True)]
        models.append(Measured(generator.gamma(8, loss / 8, len(rows)) * 3, np.full(len(rows), 3), answers, 20.0))
    return replace(run, held_out=rows, assessment=assessed(rows, Answers(AnswerKind.LABEL, AREAS), *models))


if __name__ == "__main__":
    made = {"json": json_results, "labels": label_results}[sys.argv[1]]
    Path(sys.argv[2]).write_text(report_page(made()), encoding="utf-8")
