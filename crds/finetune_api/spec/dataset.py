"""The fields of a FineTuneJob about its rows: their files, their format, and which of them are held out."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from finetune_api.model import ApiModel, DnsLabel, SchemaKeys, Seed, dns_label, rules
from finetune_api.spec.row_cleaning import Clean, Deduplicate
from finetune_api.uris import FileUri

ColumnName = Annotated[str, Field(min_length=1, max_length=128)]


class RowFormat(StrEnum):
    """How a row of the data contains the prompt and the answer."""

    AUTO = "Auto"
    PROMPT_COMPLETION = "PromptCompletion"
    INSTRUCTION = "Instruction"
    MESSAGES = "Messages"
    TEXT = "Text"


class Overlength(StrEnum):
    """What happens to a row that is longer than `training.maxSequenceLength`."""

    DROP = "Drop"
    FAIL = "Fail"


class Columns(ApiModel):
    """Column names in your files, if they differ from the default names of the format."""

    system: ColumnName | None = None
    """Column with the system prompt, for every format except Text. The column is optional in a row."""
    prompt: ColumnName | None = None
    """PromptCompletion: column with the prompt. Default: prompt."""
    completion: ColumnName | None = None
    """PromptCompletion: column with the answer. Default: completion."""
    instruction: ColumnName | None = None
    """Instruction: column with the task. Default: instruction."""
    input: ColumnName | None = None
    """Instruction: column with the input for the task. The column is optional in a row. Default: input."""
    output: ColumnName | None = None
    """Instruction: column with the answer. Default: output."""
    messages: ColumnName | None = None
    """Messages: column with the list of {role, content}, or of {from, value} as in ShareGPT. Default: messages."""
    text: ColumnName | None = None
    """Text: column with the text. Default: text."""
    reasoning: ColumnName | None = None
    """PromptCompletion and Instruction: column with the reasoning before the answer. The model learns the reasoning
    with the answer, between <think> and </think>. The column is optional in a row. Default: reasoning_content,
    reasoning or thinking."""


class RowFiles(ApiModel):
    """Files with rows, all of the same format."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.columns) || self.format != 'PromptCompletion' || "
                "!(has(self.columns.instruction) || has(self.columns.input) || has(self.columns.output) || "
                "has(self.columns.messages) || has(self.columns.text))",
                "format PromptCompletion accepts only the columns system, prompt, reasoning and completion: "
                "remove the others, or change format",
            ),
            (
                "!has(self.columns) || self.format != 'Instruction' || "
                "!(has(self.columns.prompt) || has(self.columns.completion) || has(self.columns.messages) || "
                "has(self.columns.text))",
                "format Instruction accepts only the columns system, instruction, input, reasoning and output: "
                "remove the others, or change format",
            ),
            (
                "!has(self.columns) || self.format != 'Messages' || "
                "!(has(self.columns.prompt) || has(self.columns.completion) || "
                "has(self.columns.instruction) || has(self.columns.input) || has(self.columns.output) || "
                "has(self.columns.text) || has(self.columns.reasoning))",
                "format Messages accepts only the columns system and messages: remove the others, or change format",
            ),
            (
                "!has(self.columns) || self.format != 'Text' || "
                "!(has(self.columns.system) || has(self.columns.prompt) || has(self.columns.completion) || "
                "has(self.columns.instruction) || has(self.columns.input) || has(self.columns.output) || "
                "has(self.columns.messages) || has(self.columns.reasoning))",
                "format Text accepts only the column text: remove the others, or change format",
            ),
        )
    )

    uri: FileUri
    """The files, as s3://BUCKET/KEY, as hf://datasets/ORG/NAME/PATH on the hub of the profile, or as pvc://CLAIM/PATH
    in a PersistentVolumeClaim of the job's namespace. On a hub, the commit of the branch main is read that
    status.resolved.revisions names. Accepted: .jsonl and .ndjson with one JSON object per line; .json with one array of
    objects, which may be below a key; .csv and .tsv in UTF-8, with column names in the first line, separated by comma,
    semicolon, tab or |; .parquet. All except .parquet may be compressed as .gz or .zst. The key may contain wildcards:
    * matches any characters and ? matches one character, both within one folder; ** matches any folders
    (data/**/*.jsonl also matches data/a.jsonl). Files are read in the order of their names, row by row. Their size is
    not limited."""
    format: RowFormat = RowFormat.AUTO
    """Format of the rows. PromptCompletion: a prompt and its completion. Instruction: an instruction, an optional
    input, and the output. Messages: a list of {role, content}; the model learns every assistant turn. Text: one
    text, as in continued pre-training; the model learns every token. A text longer than training.maxSequenceLength
    (default: the context of the model, at most 4096) is cut into as few pieces as possible, without losing tokens.
    Auto: the format follows from the mapped columns, or else from the column names of the first row."""
    columns: Columns | None = None
    """Maps the column names of the format to the column names of your files. Needed only if they differ."""


class Source(RowFiles):
    """Files with rows."""

    name: (
        Annotated[DnsLabel, dns_label("lower-case letters, digits and hyphens, for example support-tickets")] | None
    ) = None
    """Name of the source in the status and in the report. Default: the list and the position in it, for example
    train-1."""
    weight: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Share of the training rows that come from this source, relative to the other weights. With weights 80 and 20, or
    4 and 1, four of five rows come from the first source: in every epoch, and nearly in every optimizer step. The
    number of rows of an epoch stays the sum of all sources. A source with too few rows for its share is repeated. A
    source with too many rows is spread over several epochs; each row is used once before any row is used twice. Set
    a weight on all sources of train or on none. Default: every row is used once per epoch."""


class Split(ApiModel):
    """How rows are held out from `dataset.train`, if `dataset.validation` or `dataset.test` is not set."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.test) || !has(self.validation) || self.test + self.validation <= 0.5",
                "test + validation must be at most 0.5: lower one of them",
            )
        )
    )

    test: Annotated[float, Field(gt=0, le=0.5)] | None = None
    """Share of the rows that become test rows for the evaluation. Default: 10%, but at least 100 and at most 1000 rows,
    and never more than 20% of all rows."""
    validation: Annotated[float, Field(ge=0, le=0.5)] | None = None
    """Share of the rows that become validation rows; 0 means none. Default: 5%, but at least 50 and at most 500 rows.
    The default is 0 if test and validation together would be more than 20% of all rows, which is the case below 750
    rows."""
    seed: Seed = 0
    """Seed of the random split. The same rows and the same seed give the same split. Copies of a row are always on the
    same side."""


Sources = Annotated[
    list[Source],
    Field(min_length=1, max_length=32),
    SchemaKeys(
        rules(
            (
                "self.all(s, !has(s.name) || self.exists_one(other, has(other.name) && other.name == s.name))",
                "two sources must not have the same name: rename one of them",
            )
        )
        | {"x-kubernetes-list-type": "atomic"}
    ),
]


class Dataset(ApiModel):
    """The rows for training, validation and test."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.test) || !has(self.split.test)",
                "test already names the test rows: remove split.test, or remove test to hold out a share of train",
            ),
            (
                "!has(self.validation) || !has(self.split.validation)",
                "validation already names the validation rows: remove split.validation, or remove validation to hold "
                "out a share of train",
            ),
            (
                "self.train.all(s, has(s.weight)) || self.train.all(s, !has(s.weight))",
                "some sources of train have a weight and some do not: set weight on all of them, or on none",
            ),
            (
                "(!has(self.test) || self.test.all(s, !has(s.weight))) && "
                "(!has(self.validation) || self.validation.all(s, !has(s.weight)))",
                "weight applies to training rows only: remove weight from the sources of test and validation",
            ),
        )
    )

    train: Sources
    """Files with the training rows. Exact copies of a row are dropped. Two rows are exact copies if they differ only in
    white space and in Unicode composition."""
    test: Sources | None = None
    """Files with the test rows, on which the base model and the tuned model are compared. A test row that also occurs
    in train is dropped from train. Default: a share of train, see split."""
    validation: Sources | None = None
    """Files with the validation rows, on which the loss is measured during training. A validation row that also occurs
    in test is dropped from validation. A validation row that also occurs in train is dropped from train. Default: a
    share of train, see split."""
    split: Split = Split()
    """How rows are held out from train, if test or validation is not set."""
    clean: Clean = Clean()
    """How texts are cleaned. Cleaning runs before the search for copies."""
    deduplicate: Deduplicate = Deduplicate()
    """What happens to near-duplicate rows."""
    max_invalid_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of all rows that may be invalid without failing the job. Invalid rows are not used; status.preflight counts
    them, with file and line. Default: 0, so a single invalid row fails the job."""
    overlength: Overlength = Overlength.DROP
    """What happens to a row that is longer than training.maxSequenceLength. Drop: the row is not used, and the status
    counts it. Fail: the job fails before it requests a GPU. Answers are never cut."""

    def source_names(self, side: Literal["train", "validation", "test"]) -> list[str]:
        """Return the name of each source of one side, in order."""
        return [source.name or f"{side}-{number}" for number, source in enumerate(getattr(self, side) or [], start=1)]
