"""FineTuneJob: what a tenant writes."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from finetune_api.evaluation import Baseline, Baselines, Gates, Generation, MetricName, Metrics
from finetune_api.model import ApiModel, SchemaKeys, list_map, rules
from finetune_api.preparation import Clean, Deduplicate
from finetune_api.uris import BUCKET, PrefixUri, Uri

FileUri = Annotated[
    Uri,
    SchemaKeys(
        rules(
            (
                f"self.matches('^s3://{BUCKET}/.+[.]((jsonl|json|csv)([.](gz|zst))?|parquet)$')",
                "must be s3://BUCKET/KEY ending in .jsonl, .json or .csv, perhaps with .gz or .zst after it, or in "
                ".parquet; the key may hold the wildcards *, ? and **, for example s3://acme-data/tickets/*.jsonl",
            ),
        )
    ),
]
ColumnName = Annotated[str, Field(min_length=1, max_length=128)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Cpu = Annotated[
    str,
    Field(max_length=32),
    SchemaKeys(
        rules(
            (
                "isQuantity(self) && quantity(self).compareTo(quantity('1m')) >= 0 && "
                "quantity(self).compareTo(quantity('1024')) <= 0",
                "must be a Kubernetes quantity above 0 and of at most 1024, for example 2 or 500m",
            )
        )
    ),
]
Memory = Annotated[
    str,
    Field(max_length=32),
    SchemaKeys(
        rules(
            (
                "isQuantity(self) && quantity(self).compareTo(quantity('128Mi')) >= 0",
                "must be a Kubernetes quantity of at least 128Mi, for example 16Gi; a number alone means bytes",
            )
        )
    ),
]


class MethodType(StrEnum):
    """How the weights are tuned."""

    AUTO = "Auto"
    LORA = "LoRA"
    QLORA = "QLoRA"
    FULL = "Full"
    NONE = "None"


class LoraBias(StrEnum):
    """Which biases are trained beside the adapter."""

    NONE = "None"
    ALL = "All"
    LORA_ONLY = "LoraOnly"


class QuantizationType(StrEnum):
    """The four-bit number the base weights are held in."""

    NF4 = "NF4"
    FP4 = "FP4"


class ComputeDtype(StrEnum):
    """The number that matrices are multiplied in."""

    BFLOAT16 = "BFloat16"
    FLOAT32 = "Float32"


class Optimizer(StrEnum):
    """What turns gradients into updates."""

    ADAMW = "AdamW"
    PAGED_ADAMW_8BIT = "PagedAdamW8bit"


class Scheduler(StrEnum):
    """How the learning rate falls after the warm-up."""

    COSINE = "Cosine"
    LINEAR = "Linear"
    CONSTANT = "Constant"


class GradientCheckpointing(StrEnum):
    """Whether activations are computed again in the backward pass rather than kept."""

    AUTO = "Auto"
    ENABLED = "Enabled"
    DISABLED = "Disabled"


class EarlyStoppingMetric(StrEnum):
    """What has to go on improving."""

    VALIDATION_LOSS = "ValidationLoss"


class Publish(StrEnum):
    """Which weights become the result."""

    BEST = "Best"
    LAST = "Last"


class LossOn(StrEnum):
    """Which tokens of a row are learned."""

    COMPLETION = "Completion"
    ALL = "All"


class RowFormat(StrEnum):
    """How a row of the data says what is asked and what is to be answered."""

    AUTO = "Auto"
    PROMPT_COMPLETION = "PromptCompletion"
    INSTRUCTION = "Instruction"
    MESSAGES = "Messages"
    TEXT = "Text"


class Overlength(StrEnum):
    """What happens to a row longer than `training.maxSequenceLength`."""

    DROP = "Drop"
    FAIL = "Fail"


class Model(ApiModel):
    """The base model."""

    uri: PrefixUri
    """Where the base model lies, as s3://BUCKET/PREFIX: the folder with config.json, the tokenizer and the weights
    as .safetensors, as Transformers' save_pretrained writes it. Remote code is never run."""


class Lora(ApiModel):
    """LoRA's own settings, named as PEFT's LoraConfig names them."""

    r: Annotated[int, Field(ge=1, le=512)] = 16
    """Rank of the update matrices. More learns more and costs more memory."""
    alpha: Annotated[int, Field(ge=1, le=4096)] = 32
    """Scale of the update: it is multiplied by alpha / r. Twice the rank is the usual choice."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the adapter's inputs dropped while training. Helps small data sets, slows learning."""
    target_modules: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=256)]],
        Field(min_length=1, max_length=64),
        SchemaKeys(
            rules(
                (
                    "!self.exists(m, m == 'all-linear') || self.size() == 1",
                    "all-linear already means every linear layer: write it alone, or name the modules without it",
                )
            )
            | {"x-kubernetes-list-type": "set"}
        ),
    ] = Field(default=["all-linear"])
    """Modules that get an adapter, by the end of their name (q_proj, v_proj), or all-linear for every linear layer
    but the output head."""
    bias: LoraBias = LoraBias.NONE
    """Biases of the base model that are trained too: None, All, or LoraOnly for those of the modules with an adapter.
    Not every server can load them."""
    use_rslora: bool = False
    """Multiplies the update by alpha / sqrt(r) in place of alpha / r, which keeps high ranks learning (rsLoRA,
    Kalajdzievski 2023). With it a smaller alpha is usual."""
    use_dora: bool = False
    """Learns the size of each weight column apart from its direction (DoRA, Liu et al. 2024). Often better at low
    ranks, and slower."""
    modules_to_save: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=256)]],
            Field(min_length=1, max_length=64),
            SchemaKeys({"x-kubernetes-list-type": "set"}),
        ]
        | None
    ) = None
    """Modules trained whole and saved with the adapter, by the end of their name, for example embed_tokens and lm_head.
    Default: none."""
    from_: Annotated[PrefixUri | None, Field(alias="from")] = None
    """Adapter to continue from, as s3://BUCKET/PREFIX: the folder with adapter_config.json and
    adapter_model.safetensors, such as an earlier job's output.uri with /adapter. It has to be a LoRA adapter of this
    base model with the same r, alpha, useRslora and useDora; its modules are kept when targetModules is all-linear.
    Default: a fresh adapter."""


class Quantization(ApiModel):
    """How QLoRA holds the base weights, named as bitsandbytes names it."""

    type: QuantizationType = QuantizationType.NF4
    """NF4 is made for weights, which are spread normally (Dettmers et al. 2023). FP4 is a plain 4-bit float."""
    double_quant: bool = True
    """Whether the scales are quantized too, which saves 0.4 bits a weight."""
    compute_dtype: ComputeDtype = ComputeDtype.BFLOAT16
    """What the weights are turned back into to be multiplied. Float32 is several times slower, and for comparisons."""


class Method(ApiModel):
    """How the weights are tuned."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.quantization) || self.type == 'QLoRA'",
                "quantization belongs to type QLoRA: set type to QLoRA, or remove quantization",
            ),
            (
                "!has(self.lora) || !has(self.lora.from) || self.type != 'Full'",
                "type Full trains no adapter, so there is none to continue from: remove lora.from, or set type to LoRA",
            ),
            (
                "!has(self.type) || self.type != 'None' || (has(self.lora) && has(self.lora.from))",
                "type None only evaluates, and needs an adapter for it: set lora.from to its folder",
            ),
        )
    )

    type: MethodType = MethodType.AUTO
    """LoRA trains low-rank adapters over the base weights in bfloat16. QLoRA does the same over base weights held in
    4 bits: about a quarter of the memory, somewhat slower. Full trains every weight, in fp32 with bfloat16 compute,
    and needs 18 bytes of memory a parameter; its result is a whole model. Auto: LoRA where it fits the GPU's memory,
    or else QLoRA; what was chosen, and why, is in status.resolved. None trains nothing and evaluates the adapter in
    lora.from, whose own settings hold, over bfloat16 weights: run it again on newer test rows to watch for drift."""
    lora: Lora = Lora()
    """Settings of the adapter. Full has none."""
    quantization: Quantization | None = None
    """How the base weights are held under QLoRA. Default: NF4 with double quantization, computing in bfloat16."""


class Columns(ApiModel):
    """Names the row's columns have in your files, where they differ from the names of the format."""

    system: ColumnName | None = None
    """Column with a system prompt. PromptCompletion and Instruction; a row may lack it."""
    prompt: ColumnName | None = None
    """PromptCompletion: column with what is asked. Default: prompt."""
    completion: ColumnName | None = None
    """PromptCompletion: column with the answer to learn. Default: completion."""
    instruction: ColumnName | None = None
    """Instruction: column with the task. Default: instruction."""
    input: ColumnName | None = None
    """Instruction: column with the material the task is about; a row may lack it. Default: input."""
    output: ColumnName | None = None
    """Instruction: column with the answer to learn. Default: output."""
    messages: ColumnName | None = None
    """Messages: column with the list of {role, content}. Default: messages."""
    text: ColumnName | None = None
    """Text: column with the text to learn. Default: text."""


class Source(ApiModel):
    """Files with rows."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.columns) || self.format != 'PromptCompletion' || "
                "!(has(self.columns.instruction) || has(self.columns.input) || has(self.columns.output) || "
                "has(self.columns.messages) || has(self.columns.text))",
                "format PromptCompletion knows the columns system, prompt and completion only: "
                "remove the others, or change format",
            ),
            (
                "!has(self.columns) || self.format != 'Instruction' || "
                "!(has(self.columns.prompt) || has(self.columns.completion) || has(self.columns.messages) || "
                "has(self.columns.text))",
                "format Instruction knows the columns system, instruction, input and output only: "
                "remove the others, or change format",
            ),
            (
                "!has(self.columns) || self.format != 'Messages' || "
                "!(has(self.columns.system) || has(self.columns.prompt) || has(self.columns.completion) || "
                "has(self.columns.instruction) || has(self.columns.input) || has(self.columns.output) || "
                "has(self.columns.text))",
                "format Messages knows the column messages only: remove the others, or change format",
            ),
            (
                "!has(self.columns) || self.format != 'Text' || "
                "!(has(self.columns.system) || has(self.columns.prompt) || has(self.columns.completion) || "
                "has(self.columns.instruction) || has(self.columns.input) || has(self.columns.output) || "
                "has(self.columns.messages))",
                "format Text knows the column text only: remove the others, or change format",
            ),
        )
    )

    uri: FileUri
    """The files, as s3://BUCKET/KEY ending in .jsonl (one JSON object a line), .json (one array of objects), .csv
    (UTF-8, the first line names the columns; comma, semicolon or tab) or .parquet; all but .parquet also compressed, as
    .gz or .zst. The key may hold wildcards: * stands for any characters and ? for one, both within one folder, and **
    for any folders (data/**/*.jsonl also finds data/a.jsonl). Files are read in the order of their names, row by row,
    whatever their size."""
    name: (
        Annotated[
            str,
            Field(min_length=1, max_length=63),
            SchemaKeys(
                rules(
                    (
                        "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
                        "must be lower-case letters, digits and hyphens, for example support-tickets",
                    )
                )
            ),
        ]
        | None
    ) = None
    """What the source is called in the status and the report. Default: its place, as train-1."""
    format: RowFormat = RowFormat.AUTO
    """What the rows hold. PromptCompletion: a prompt and its completion. Instruction: an instruction, perhaps an input,
    and the output. Messages: a list of {role, content}, of which every assistant turn is learned. Text: a text, of
    which every token is learned, as in continued pre-training; one longer than training.maxSequenceLength (default: the
    model's context, at most 4096) is cut into as few pieces as fit, none of whose tokens is lost. Auto: told from the
    mapped columns, or else from the first row's column names."""
    columns: Columns | None = None
    """Maps your column names onto the format's, where they differ."""
    weight: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Share of the training rows that come from this source, in proportion to the other weights: 80 and 20, or 4 and 1,
    make four rows of five come from the first, in every epoch and nearly in every step. An epoch then takes as many
    rows as all sources have together; a source too small for its share repeats, one too large is spread over epochs,
    each of its rows once before any twice. For sources of train, all or none. Default: every row once an epoch."""


class Split(ApiModel):
    """How rows are held out of `dataset.train` where `dataset.validation` or `dataset.test` does not name any."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.test) || !has(self.validation) || self.test + self.validation <= 0.5",
                "test and validation together must hold out at most half of the rows: lower one of them",
            )
        )
    )

    test: Annotated[float, Field(gt=0, le=0.5)] | None = None
    """Share of the rows held out for the evaluation. Default: a tenth, but at least 100 and at most 1000 rows, and
    never more than a fifth of all."""
    validation: Annotated[float, Field(ge=0, le=0.5)] | None = None
    """Share of the rows held out to look at while training; 0 for none. Default: a twentieth, but at least 50 and at
    most 500 rows, and none where test and validation together would be more than a fifth of all, which is the case of
    data sets under 750 rows."""
    seed: Seed = 0
    """Seed of the draw. The same rows and seed give the same split; copies of a row always fall on one side."""


Sources = Annotated[
    list[Source],
    Field(min_length=1, max_length=32),
    SchemaKeys(
        rules(
            (
                "self.all(s, !has(s.name) || self.exists_one(other, has(other.name) && other.name == s.name))",
                "must not give two sources one name: rename one of them",
            )
        )
        | {"x-kubernetes-list-type": "atomic"}
    ),
]


class Dataset(ApiModel):
    """The rows to learn from and those to judge by."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.test) || !has(self.split.test)",
                "test already names the held-out rows: remove split.test, or remove test to hold out a share of train",
            ),
            (
                "!has(self.validation) || !has(self.split.validation)",
                "validation already names the rows: remove split.validation, or remove validation to hold out a share "
                "of train",
            ),
            (
                "self.train.all(s, has(s.weight)) || self.train.all(s, !has(s.weight))",
                "train gives some of its sources a weight and some none: all of them must have one, or none",
            ),
            (
                "(!has(self.test) || self.test.all(s, !has(s.weight))) && "
                "(!has(self.validation) || self.validation.all(s, !has(s.weight)))",
                "weight says how often a row is learned from: remove it from the sources of test and validation",
            ),
        )
    )

    train: Sources
    """Where the rows to learn from lie. Exact copies of a row are dropped: those that differ in nothing but white space
    and the way Unicode is composed."""
    test: Sources | None = None
    """Where the held-out rows lie, which the base and the tuned model are compared on. A row that also stands in
    train is dropped from train. Default: a share of train, see split."""
    validation: Sources | None = None
    """Where the rows lie that the loss is taken on while training. A row that also stands in test is dropped from here,
    one that also stands in train from train. Default: a share of train, see split."""
    split: Split = Split()
    """How rows are drawn from train when test or validation is not given."""
    clean: Clean = Clean()
    """How texts are cleaned, before copies are looked for."""
    deduplicate: Deduplicate = Deduplicate()
    """What happens to rows that are nearly the same."""
    max_invalid_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of all rows that may be invalid in their format before the job ends. Invalid rows are counted in
    status.preflight, with file and line, and left out. Default: not one."""
    overlength: Overlength = Overlength.DROP
    """What happens to a row longer than training.maxSequenceLength: Drop leaves it out and counts it in the status,
    Fail ends the job before it asks for a GPU. Answers are never cut."""

    def source_names(self, side: Literal["train", "validation", "test"]) -> list[str]:
        """What each source of a side is called."""
        return [source.name or f"{side}-{number}" for number, source in enumerate(getattr(self, side) or [], start=1)]


class EarlyStopping(ApiModel):
    """When training ends before its last step because it no longer helps."""

    metric: EarlyStoppingMetric = EarlyStoppingMetric.VALIDATION_LOSS
    """What has to go on falling: the loss on the validation rows."""
    patience: Annotated[int, Field(ge=1, le=1000)] = 3
    """Evaluations in a row without an improvement after which it stops."""
    min_delta: Annotated[float, Field(ge=0, le=100)] = 0.0
    """By how much, in nats per token, the loss has to fall below the best so far to count as an improvement."""


class Training(ApiModel):
    """The recipe. What is not set is resolved by the preflight and shown in status.resolved."""

    epochs: Annotated[int, Field(ge=1, le=100)] = 1
    """Passes over the training rows."""
    max_steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Optimizer steps to stop after, should the epochs be more."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """Peak learning rate. Default: 2e-4, and 1e-3 for models below one billion parameters; 1e-5 for method Full."""
    scheduler: Scheduler = Scheduler.COSINE
    """How the learning rate falls from its peak after the warm-up. Cosine: to a tenth at the last step. Linear: in a
    straight line that reaches 0 one step after the last. Constant: not at all."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of the steps in which the learning rate rises to its peak. Default: 3% or 10 steps, whichever is more, but
    at most a tenth."""
    optimizer: Optimizer = Optimizer.ADAMW
    """AdamW keeps 8 bytes of state for each trained parameter. PagedAdamW8bit keeps 2, and moves them to the host's
    memory where the GPU's runs short: worth it for method Full."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Decoupled weight decay. Biases and norms are left out."""
    max_grad_norm: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """Gradients are scaled down to this norm where theirs is larger; 0 leaves them as they are."""
    global_batch_size: Annotated[int, Field(ge=1, le=65536)] = 8
    """Rows per optimizer step. How they are spread over memory never changes a step."""
    micro_batch_tokens: Annotated[int, Field(ge=16, le=1_048_576)] | None = None
    """Tokens put through the model at a time, at most; what does not fit into the GPU's memory is halved before the
    first step. It changes speed and memory, not the result. Default: on a GPU the most that fits, up to 16384; on a
    CPU 2048. Never less than the longest row."""
    gradient_checkpointing: GradientCheckpointing = GradientCheckpointing.AUTO
    """Enabled computes activations again in the backward pass in place of keeping them: a third slower, for a fraction
    of the memory, and the same result. Auto: only where it does not fit otherwise."""
    max_sequence_length: Annotated[int, Field(ge=16, le=1_048_576)] | None = None
    """Longest row in tokens, prompt and answer together. Default: the longest row of the data, at most the model's
    context and at most 4096."""
    loss_on: LossOn = LossOn.COMPLETION
    """Which tokens are learned. Completion: the answers and their ends. All: prompts too. Rows of format Text are
    learned whole in either case."""
    evaluate_every: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Optimizer steps after which the loss on the validation rows is measured, beside the last, on 500 of them at
    most. Default: a fifth of the steps, and at least once an epoch."""
    early_stopping: EarlyStopping | None = None
    """Ends the training before its last step where it no longer helps. Default: it runs to the last step."""
    publish: Publish | None = None
    """Best publishes the weights with the lowest loss on the validation rows, Last those of the last step. Default:
    Best, and Last where there are no validation rows."""
    seed: Seed = 0
    """Seed of everything random: the order of rows, the adapter's first weights, dropout."""


class RegressionSet(Source):
    """Rows of something the model could do before and has to be able to do still, such as general questions."""

    name: Annotated[
        str,
        Field(min_length=1, max_length=63),
        SchemaKeys(
            rules(("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')", "must be lower-case letters, digits and hyphens"))
        ),
    ]
    """What the set is called in the status and the report."""
    metric: Annotated[
        MetricName,
        SchemaKeys(
            rules(("!self.startsWith('Macro')", "must be one that needs no set of labels: ExactMatch, for example"))
        ),
    ]
    """What is compared. All metrics are shares from 0 to 1, but Loss (nats per token) and Perplexity."""
    max_drop: Annotated[float, Field(ge=0, le=1_000_000)]
    """By how much the tuned model may be worse than the base model, in the metric's own unit."""


class Evaluation(ApiModel):
    """How the tuned model is compared on the held-out rows, and what it has to reach. A job that fails a gate or a
    regression set ends as Failed with reason EvaluationGateFailed. Its results are published all the same, to be looked
    at: the manifest's field passed is false, and the report and the model card say so first."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.gates) || self.baselines.exists(b, b == 'FewShot') || "
                "!self.gates.exists(g, has(g.minGainOver) && has(g.minGainOver.fewShot))",
                "a gate on the gain over fewShot needs FewShot in baselines: add it",
            ),
            (
                "!has(self.regression) || !self.regression.exists(r, has(r.weight))",
                "weight belongs to sources that are mixed: remove it from the regression set",
            ),
        )
    )

    metrics: Metrics | None = None
    """What is measured beside Loss and Perplexity; the first one decides the verdict. Without a metric of answers no
    answers are written. Default: what fits the training answers. JSON (nine of ten are an object or array): FieldMatch,
    ValidJSON, ExactMatch and the overlaps. Labels (2 to 50 different answers of at most 64 characters, ten rows to
    each on average): ExactMatch, MacroF1, MacroPrecision, MacroRecall. Other text: TokenF1, ExactMatch, ROUGE1, ROUGE2,
    ROUGEL, BLEU. Text to continue: Loss."""
    baselines: Baselines = Field(default=[Baseline.BASE, Baseline.FEW_SHOT])
    """What the tuned model is compared with; the verdict goes against the better one. Base: the base model, given the
    same prompts. FewShot: the base model with five examples from train before each prompt, in three fixed draws; fewer
    examples where the model's context is too short for five."""
    max_rows: Annotated[int, Field(ge=1, le=10_000)] = 200
    """Held-out rows that every model is measured on, drawn with the split's seed; of each regression set as many."""
    generation: Generation = Generation()
    """How answers are written."""
    gates: Gates | None = None
    """What the tuned model has to reach on the held-out rows."""
    regression: Annotated[list[RegressionSet], Field(min_length=1, max_length=8), list_map("name")] | None = None
    """Sets of other rows on which the tuned model must not be much worse than the base model."""


class Output(ApiModel):
    """Where the results go."""

    uri: PrefixUri
    """Where the results are written, as s3://BUCKET/PREFIX. The place belongs to this job: one that already holds
    another job's results is refused before a GPU is asked for."""
    merge: bool = False
    """Also publish the adapter merged into the base model's weights, as bfloat16 .safetensors with the tokenizer, in
    the folder merged: one model that any server loads, as large as the base model. The merged model is measured again
    on the held-out rows, and what merging changed is said in status.evaluation.merged."""


class Compute(ApiModel):
    """What the training pod asks for, beside one GPU of the profile."""

    cpu: Cpu = "1"
    """CPU request of the training pod."""
    memory: Memory = "8Gi"
    """Memory request and limit of the training pod; where it is more than 4Gi, the preflight's limit too."""
    service_account_name: (
        Annotated[
            str,
            Field(min_length=1, max_length=63),
            SchemaKeys(
                rules(
                    (
                        "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
                        "must be the name of a ServiceAccount in the job's namespace",
                    )
                )
            ),
        ]
        | None
    ) = None
    """ServiceAccount the pods run as, for example one with a cloud role for the buckets. It needs the ClusterRole
    finetune-trainer in this namespace. Default: finetune-trainer, which the operator makes and binds."""


class FineTuneJobSpec(ApiModel):
    """What to tune, on what, into what. Immutable: a changed experiment is a new FineTuneJob."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self == oldSelf",
                "spec cannot be changed: create a FineTuneJob with another name, or delete this one first",
            ),
            (
                "!(self.model.uri + '/').startsWith("
                "self.output.uri.endsWith('/') ? self.output.uri : self.output.uri + '/')",
                "output.uri must not be the model's own folder or one above it: choose another prefix",
            ),
            (
                "!self.output.merge || self.method.type != 'Full'",
                "method.type Full publishes a whole model, so there is nothing to merge: remove output.merge",
            ),
        )
    )

    profile_name: Annotated[
        str,
        Field(min_length=1, max_length=63),
        SchemaKeys(
            rules(
                (
                    "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
                    "must be the name of a FineTuneProfile, see kubectl get finetuneprofiles",
                )
            )
        ),
    ] = "default"
    """The FineTuneProfile to run under: the platform team's GPUs, storage and trainer image."""
    model: Model
    """The base model."""
    method: Method = Method()
    """How the weights are tuned."""
    dataset: Dataset
    """The rows to learn from and those to judge by."""
    training: Training = Training()
    """The recipe."""
    evaluation: Evaluation = Evaluation()
    """How base and tuned model are compared."""
    output: Output
    """Where the results go."""
    compute: Compute = Compute()
    """What the training pod asks for."""
