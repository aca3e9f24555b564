"""FineTuneJob's status: what the operator, the preflight pod and the attempt's pod each write of it.

Every field and every condition type has exactly one writer, which applies it server-side under its own field manager:

- operator (`finetune-operator`): everything not named below.
- preflight pod (`preflight`): `preflight`, `resolved`, condition Validated. Where that pod ended without a word
  (killed, image missing), the operator says Validated=False in its place.
- attempt's pod (`attempt-N`): `training`, `evaluation`, `artifacts`, conditions Trained and Evaluated.
"""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PlainSerializer

from finetune_api.evaluation import Baseline, MetricName
from finetune_api.job import MethodType, Publish
from finetune_api.model import SchemaKeys, StatusModel, list_map

OPERATOR_MANAGER = "finetune-operator"
PREFLIGHT_MANAGER = "preflight"


def attempt_manager(attempt: int) -> str:
    """Field manager of attempt number `attempt`, counted from 1."""
    return f"attempt-{attempt}"


def _rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


Time = Annotated[
    datetime, PlainSerializer(_rfc3339, when_used="json"), SchemaKeys({"type": "string", "format": "date-time"})
]
Text = Annotated[str, Field(max_length=1024)]
MESSAGE_LENGTH = 4096
Message = Annotated[str, BeforeValidator(lambda text: text[:MESSAGE_LENGTH]), Field(max_length=MESSAGE_LENGTH)]
"""Cut rather than refused: the words of a kubelet or a scheduler have no bound, and a job has to be able to end."""
Reason = Annotated[str, Field(max_length=64)]
"""CamelCase word for programs; an open string, so that a new one needs no new schema."""


ATOMIC = {"x-kubernetes-list-type": "atomic"}


class State(StrEnum):
    """Where the job is, in one word for people."""

    PENDING = "Pending"
    VALIDATING = "Validating"
    QUEUED = "Queued"
    RUNNING = "Running"
    COMPLETE = "Complete"
    FAILED = "Failed"


class Stage(StrEnum):
    """The part of the work the job is in."""

    PREFLIGHT = "Preflight"
    TRAINING = "Training"
    EVALUATING = "Evaluating"
    PUBLISHING = "Publishing"


class ConditionType(StrEnum):
    """The conditions a job can carry."""

    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    COMPLETE = "Complete"
    FAILED = "Failed"
    VALIDATED = "Validated"
    TRAINED = "Trained"
    EVALUATED = "Evaluated"


class Condition(StatusModel):
    """A statement about the job, as meta/v1 Condition."""

    type: Annotated[str, Field(max_length=64)]
    """What the statement is about: Ready, Reconciling, Stalled, Complete, Failed, Validated, Trained or Evaluated."""
    status: Annotated[Literal["True", "False", "Unknown"], SchemaKeys({"type": "string"})]
    """Whether it holds."""
    reason: Reason
    """Why, in one CamelCase word for programs."""
    message: Message = ""
    """Why, in one sentence for people."""
    observed_generation: int | None = None
    """metadata.generation the statement was made for."""
    last_transition_time: Time
    """When status last changed."""


class Counts(StatusModel):
    """How often the job was tried."""

    attempts: int = 0
    """Training attempts started."""


class Attempt(StatusModel):
    """One training attempt: one Job, one Pod."""

    number: int
    """Counted from 1."""
    name: Text
    """Name of its Job."""
    start_time: Time | None = None
    """When its pod started."""
    completion_time: Time | None = None
    """When its pod ended."""
    reason: Reason | None = None
    """Why it ended: Succeeded, or a failure reason."""
    message: Message | None = None
    """Why it ended, in one sentence."""
    exit_code: int | None = None
    """Exit code of the trainer."""
    node_name: Text | None = None
    """Node it ran on."""


class Splits(StatusModel):
    """Rows after cleaning and splitting."""

    train: int
    """Rows to learn from."""
    validation: int = 0
    """Rows to look at while training."""
    test: int
    """Held-out rows that base and tuned model are compared on."""


class Estimate(StatusModel):
    """What the job should take on one GPU of a kind."""

    gpu_type: Text
    """Name of the kind of GPU in the FineTuneProfile."""
    memory: Text
    """GPU memory at the peak, for example 21.4Gi."""
    fits: bool | None = None
    """Whether it can run in the memory the profile gives that kind; absent where the profile gives none."""
    alternative: Message | None = None
    """What would fit, where it does not."""
    seconds: int | None = None
    """From the pod's start to the results; absent for a kind of GPU that is not known. It can be half or twice that."""
    cost: Text | None = None
    """Those seconds at the profile's price, as a decimal string; absent without a price."""


class CleaningStep(StatusModel):
    """What one step of the cleaning did."""

    name: Annotated[str, Field(max_length=64)]
    """Its field under dataset.clean; of a list with the index or the value, as remove[0] or mask[Email]."""
    rows: int
    """Rows it changed."""


class Cleaned(StatusModel):
    """What cleaning did."""

    rows: int
    """Rows that any step changed."""
    emptied: int
    """Rows that were dropped because nothing was left of their question or answer."""
    steps: Annotated[list[CleaningStep], Field(max_length=40), list_map("name")]
    """Every step, in the order they ran."""


ADVICE, ADVICE_LENGTH = 16, 1024


class Advice(StatusModel):
    """What a specialist would change about the job, though it can run."""

    reason: Reason
    """What it is about, in one CamelCase word for programs."""
    message: Text
    """The finding with its number, and what to do about it."""


class Severity(StrEnum):
    """What becomes of a row with a finding."""

    ERROR = "Error"
    WARNING = "Warning"


FINDINGS, FINDING_PLACES = 20, 3


class Finding(StatusModel):
    """One kind of thing that is wrong with rows."""

    severity: Severity
    """Error: such rows cannot be used. Warning: they are used, and look wrong."""
    message: Annotated[str, Field(max_length=256)]
    """What is wrong."""
    rows: int
    """Rows it was found in."""
    places: Annotated[list[Annotated[str, Field(max_length=512)]], Field(max_length=FINDING_PLACES)]
    """The first of them, as FILE line LINE."""


class SourceRows(StatusModel):
    """What one source gave."""

    side: Annotated[str, Field(max_length=16)]
    """The list it stands in: train, validation or test."""
    name: Annotated[str, Field(max_length=63)]
    """The source's name, or its place, as train-1."""
    rows: int
    """Rows that are used, on whichever side of the split."""
    tokens: int
    """Their tokens."""


class Preflight(StatusModel):
    """What the check of the data found, before any GPU was asked for."""

    rows: int | None = None
    """Rows read from all sources."""
    invalid: int | None = None
    """Rows that are not valid in their format. They are left out as long as dataset.maxInvalidFraction allows."""
    findings: Annotated[list[Finding], Field(max_length=FINDINGS), SchemaKeys({"x-kubernetes-list-type": "atomic"})] | (
        None
    ) = None
    """What is wrong with rows, by kind: errors first, the most frequent first."""
    cleaned: Cleaned | None = None
    """What dataset.clean changed."""
    duplicates: int | None = None
    """Exact copies that were dropped."""
    near_duplicates: int | None = None
    """Rows that nearly repeat an earlier one: dropped under dataset.deduplicate.near Drop, else kept beside it on one
    side of the split."""
    overlength: int | None = None
    """Rows dropped for being longer than training.maxSequenceLength."""
    tokens: int | None = None
    """Tokens of one epoch, prompts and answers."""
    supervised_tokens: int | None = None
    """Tokens of one epoch that are learned: the answers and their ends."""
    sources: Annotated[list[SourceRows], Field(max_length=96), SchemaKeys({"x-kubernetes-list-type": "atomic"})] | (
        None
    ) = None
    """Rows and tokens of each source of train, validation and test."""
    splits: Splits | None = None
    """Rows on each side of the split."""
    advice: (
        Annotated[list[Advice], Field(max_length=ADVICE), SchemaKeys({"x-kubernetes-list-type": "atomic"})] | None
    ) = None
    """What a specialist would change, the gravest first."""
    digest: Text | None = None
    """sha256 over the rows, the tokenizer, the chat template, the lengths and the split: equal digests,
    equal training data."""
    estimate: Annotated[list[Estimate], Field(max_length=16), list_map("gpuType")] | None = None
    """Memory, time and cost to expect, for each kind of GPU of the profile."""
    observed_time: Time | None = None
    """When this was written."""


class Resolved(StatusModel):
    """What the run uses where the spec left the choice open."""

    method: MethodType
    """How the weights are tuned; never Auto."""
    method_reason: Text | None = None
    """Why Auto chose that method."""
    learning_rate: float
    """Peak learning rate."""
    warmup_steps: int
    """Optimizer steps of linear warm-up."""
    total_steps: int
    """Optimizer steps of the whole run."""
    max_sequence_length: int
    """Longest row in tokens."""
    micro_batch_tokens: int
    """Tokens put through the model at a time, as planned; training.microBatchTokens says what was used."""
    evaluate_every: int | None = None
    """Optimizer steps between two measurements of the validation loss; absent where there are no validation rows."""
    publish: Publish | None = None
    """Which weights become the result: those with the best validation loss, or the last."""
    max_new_tokens: int
    """Longest answer the evaluation lets a model write."""
    prompt_format: Literal["ChatTemplate", "Plain"]
    """ChatTemplate: the tokenizer's own. Plain: the model has none, so prompt and answer follow each other as text."""
    parameters: int
    """Parameters of the base model."""


class Training(StatusModel):
    """Progress of the current attempt."""

    attempt: int
    """Attempt that writes this."""
    device: Text | None = None
    """What it trains on: the GPU's name, or cpu."""
    step: int
    """Optimizer steps done."""
    total_steps: int
    """Optimizer steps to do."""
    epoch: float | None = None
    """Passes over the data done."""
    loss: float | None = None
    """Mean cross-entropy of the last step's supervised tokens, in nats."""
    learning_rate: float | None = None
    """Learning rate of the last step."""
    validation_loss: float | None = None
    """Mean cross-entropy on the validation rows when it was last measured, in nats."""
    best_validation_loss: float | None = None
    """The lowest of them so far."""
    best_step: int | None = None
    """Optimizer steps done when it was the lowest."""
    micro_batch_tokens: int | None = None
    """Tokens put through the model at a time, as found to fit the memory."""
    gradient_checkpointing: bool | None = None
    """Whether activations are computed again in the backward pass, to save memory."""
    gpu_memory: Text | None = None
    """Most GPU memory in use so far, for example 21.4Gi; absent on a CPU."""
    tokens_per_second: float | None = None
    """All tokens of a step, prompts and answers, over its time; mean since the start."""
    estimated_completion_time: Time | None = None
    """When the last step should be done, at this speed."""
    observed_time: Time
    """When this was written."""


class Metrics(StatusModel):
    """One model on the held-out rows. What was not measured is absent; all but loss and perplexity are 0 to 1."""

    loss: float | None = None
    """Mean cross-entropy of the answers' tokens, in nats."""
    perplexity: float | None = None
    """exp(loss)."""
    exact_match: float | None = None
    """Share of rows answered word for word, after trimming white space."""
    token_f1: float | None = None
    """Mean F1 of the words of answer and expected answer, in SQuAD's normalisation."""
    rouge1: float | None = None
    """Mean ROUGE-1 F1, not stemmed."""
    rouge2: float | None = None
    """Mean ROUGE-2 F1, not stemmed."""
    rouge_l: float | None = None
    """Mean ROUGE-L F1, not stemmed."""
    bleu: float | None = None
    """Corpus BLEU as sacrebleu takes it: 13a tokenization, exponential smoothing."""
    valid_json: Annotated[float | None, Field(alias="validJSON")] = None
    """Share of the rows that expect JSON whose answer is a JSON object or array."""
    field_match: float | None = None
    """Fields with the expected value, of all fields expected or given, nested ones included."""
    macro_precision: float | None = None
    """Precision, averaged over the labels."""
    macro_recall: float | None = None
    """Recall, averaged over the labels."""
    macro_f1: float | None = None
    """F1, averaged over the labels."""
    truncated: int | None = None
    """Answers that were cut at resolved.maxNewTokens; under few-shot, in the mean of the draws."""


class Decision(StatusModel):
    """The metric the verdict goes by."""

    metric: MetricName
    """Its name."""
    over: Baseline
    """The better of the baselines, which the tuned model is held against."""
    baseline: float | None = None
    """Its value for that baseline."""
    tuned: float | None = None
    """Its value for the tuned model."""
    gain: float | None = None
    """From baseline to tuned; above zero is better, whatever the metric."""
    low: float | None = None
    """Lower end of the gain's 95% interval, by a paired bootstrap over groups of near copies."""
    high: float | None = None
    """Upper end of that interval."""
    outcome: Reason
    """Better; Prompting: better than the base model, but prompting with examples does as well; Unrelated: the answers
    fit other rows as well as their own; Likelier: only the loss fell; Worse; Noise."""


class GateResult(StatusModel):
    """One bound of a gate."""

    metric: MetricName
    """What was looked at."""
    bound: Reason
    """Min, Max, MinGainOverBase or MinGainOverFewShot."""
    limit: float
    """What was asked for."""
    value: float | None = None
    """What was measured; absent where it could not be."""
    passed: bool
    """Whether it is within the bound."""


class RegressionResult(StatusModel):
    """One regression set."""

    name: Text
    """The set."""
    metric: MetricName
    """What was compared."""
    rows: int
    """Rows it was measured on."""
    base: float | None = None
    """The base model's value."""
    tuned: float | None = None
    """The tuned model's value."""
    drop: float | None = None
    """By how much the tuned model is worse; below zero it is better."""
    max_drop: float
    """What was allowed."""
    passed: bool
    """Whether it is no worse than that."""


class SourceResult(StatusModel):
    """The deciding metric on the rows of one source."""

    name: Text
    """The source: its name, or its URI."""
    rows: int
    """Rows it was measured on."""
    base: float | None = None
    """The base model's value."""
    few_shot: float | None = None
    """The value of the base model prompted with examples."""
    tuned: float | None = None
    """The tuned model's value."""
    low: float | None = None
    """Lower end of the 95% interval of the gain over the base model."""
    high: float | None = None
    """Upper end of that interval."""


class Merged(StatusModel):
    """The merged weights on the held-out rows, read back as they were written."""

    loss: float
    """Mean cross-entropy of the answers' tokens over all held-out rows, in nats."""
    loss_change: float
    """The same minus the loss of base and adapter side by side."""
    rows: int
    """Held-out rows the merged model answered again; 0 where no metric asks for answers."""
    exact_match: float | None = None
    """Share of these answered word for word, 0 to 1."""
    exact_match_change: float | None = None
    """The same minus the share of the tuned model on these rows."""
    changed: bool
    """Whether either change is beyond its tolerance: 0.01 nats, 5 points."""
    message: Message
    """What merging changed, in one sentence."""


class Evaluation(StatusModel):
    """The models side by side."""

    rows: int
    """Held-out rows all were measured on."""
    base: Metrics | None = None
    """The base model, given the same prompts."""
    few_shot: Metrics | None = None
    """The base model with examples before each prompt, in the mean of three draws."""
    tuned: Metrics | None = None
    """The base model with the adapter."""
    merged: Merged | None = None
    """The merged weights, where output.merge asked for them."""
    decision: Decision | None = None
    """The metric the verdict goes by."""
    sources: Annotated[list[SourceResult], Field(max_length=32), SchemaKeys(ATOMIC)] | None = None
    """Source by source, where the held-out rows come from several."""
    gates: Annotated[list[GateResult], Field(max_length=64), SchemaKeys(ATOMIC)] | None = None
    """What the tuned model had to reach."""
    regression: Annotated[list[RegressionResult], Field(max_length=8), SchemaKeys(ATOMIC)] | None = None
    """Sets of rows on which it must not be much worse."""
    passed: bool | None = None
    """Whether it passed all gates and regression sets; absent where there are none."""
    verdict: Message | None = None
    """Whether tuning was worth it, in one sentence."""
    observed_time: Time
    """When this was written."""


class Artifacts(StatusModel):
    """Where the results lie."""

    adapter: Text | None = None
    """Folder of the adapter, in PEFT's layout, with the tokenizer; absent under method Full."""
    model: Text | None = None
    """Folder of the whole tuned model, in Transformers' layout, with the tokenizer; only under method Full."""
    merged: Text | None = None
    """Folder of the merged model, where output.merge asked for it."""
    report: Text
    """The report, one self-contained page."""
    manifest: Text
    """manifest.json: every file with its size and sha256, and what it was made from. Written last."""
    digest: Text
    """sha256 of manifest.json."""


class FineTuneJobStatus(StatusModel):
    """What became of the job so far."""

    observed_generation: int | None = None
    """metadata.generation the status was made for; -1 until the operator has seen the job."""
    state: State | None = None
    """Where the job is, in one word."""
    stage: Stage | None = None
    """The part of the work the job is in."""
    conditions: Annotated[list[Condition], Field(max_length=32), list_map("type")] | None = None
    """Ready, Reconciling and Stalled as kstatus reads them; Complete or Failed at the end; Validated, Trained and
    Evaluated on the way."""
    counts: Counts | None = None
    """How often the job was tried."""
    attempts: Annotated[list[Attempt], Field(max_length=10), list_map("number")] | None = None
    """The last ten attempts."""
    preflight: Preflight | None = None
    """What the check of the data found."""
    resolved: Resolved | None = None
    """What the run uses where the spec left the choice open."""
    training: Training | None = None
    """Progress of the current attempt."""
    evaluation: Evaluation | None = None
    """Base and tuned model, side by side."""
    artifacts: Artifacts | None = None
    """Where the results lie."""

    def condition(self, type: ConditionType) -> Condition | None:
        """The condition of this type, if it is there."""
        return next((c for c in self.conditions or [] if c.type == type), None)

    def is_true(self, type: ConditionType) -> bool:
        """Whether that condition is there and True."""
        condition = self.condition(type)
        return condition is not None and condition.status == "True"
