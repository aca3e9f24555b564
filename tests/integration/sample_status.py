"""What the trainer says of a small run: the demo's, with round numbers."""

from datetime import UTC, datetime

from finetune_api.spec.evaluation import Baseline, MetricName
from finetune_api.spec.method import MethodType
from finetune_api.status.evaluation import Decision, Evaluation, Metrics
from finetune_api.status.job import Artifacts, Training
from finetune_api.status.preflight import Preflight, Resolved, Splits

_MOMENT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
VERDICT = "Tuning was worth it: exact match rose from 0.00 to 0.94 on 50 held-out rows."

PREFLIGHT = Preflight(
    rows=250,
    invalid=0,
    duplicates=10,
    overlength=0,
    tokens=20_000,
    supervised_tokens=9_000,
    splits=Splits(train=190, test=50),
    digest="c0ffee",
    observed_time=_MOMENT,
)
RESOLVED = Resolved(
    method=MethodType.LORA,
    learning_rate=1e-3,
    warmup_steps=2,
    total_steps=24,
    max_sequence_length=128,
    micro_batch_tokens=2048,
    max_new_tokens=96,
    prompt_format="ChatTemplate",
    parameters=134_515_008,
)
TRAINING = Training(attempt=1, device="cpu", step=24, total_steps=24, epoch=1.0, loss=0.25, observed_time=_MOMENT)
EVALUATION = Evaluation(
    rows=50,
    base=Metrics(loss=3.0, perplexity=20.1, exact_match=0.0, truncated=12),
    tuned=Metrics(loss=0.1, perplexity=1.1, exact_match=0.94, truncated=0),
    decision=Decision(
        metric=MetricName.EXACT_MATCH, over=Baseline.BASE, baseline=0.0, tuned=0.94, gain=0.94, outcome="Better"
    ),
    verdict=VERDICT,
    observed_time=_MOMENT,
)
ARTIFACTS = Artifacts(
    adapter="s3://acme-models/tickets/adapter",
    report="s3://acme-models/tickets/report.html",
    manifest="s3://acme-models/tickets/manifest.json",
    digest="beef",
)
