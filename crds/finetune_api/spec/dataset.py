"""What a tenant writes about the rows: where they lie, what they hold, which of them are held out."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from finetune_api.model import ApiModel, DnsLabel, SchemaKeys, Seed, dns_label, rules
from finetune_api.spec.row_cleaning import Clean, Deduplicate
from finetune_api.uris import FileUri

ColumnName = Annotated[str, Field(min_length=1, max_length=128)]


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


class Columns(ApiModel):
    """Names the row's columns have in your files, where they differ from the names of the format."""

    system: ColumnName | None = None
    """Column with a system prompt, for every format but Text; a row may lack it."""
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
    """Messages: column with the list of {role, content}, or of ShareGPT's {from, value}. Default: messages."""
    text: ColumnName | None = None
    """Text: column with the text to learn. Default: text."""
    reasoning: ColumnName | None = None
    """PromptCompletion and Instruction: column with the thought before the answer, which is learned with it between
    <think> and </think>; a row may lack it. Default: reasoning_content, reasoning or thinking."""


class RowFiles(ApiModel):
    """Files with rows, all of one format."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.columns) || self.format != 'PromptCompletion' || "
                "!(has(self.columns.instruction) || has(self.columns.input) || has(self.columns.output) || "
                "has(self.columns.messages) || has(self.columns.text))",
                "format PromptCompletion knows the columns system, prompt, reasoning and completion only: "
                "remove the others, or change format",
            ),
            (
                "!has(self.columns) || self.format != 'Instruction' || "
                "!(has(self.columns.prompt) || has(self.columns.completion) || has(self.columns.messages) || "
                "has(self.columns.text))",
                "format Instruction knows the columns system, instruction, input, reasoning and output only: "
                "remove the others, or change format",
            ),
            (
                "!has(self.columns) || self.format != 'Messages' || "
                "!(has(self.columns.prompt) || has(self.columns.completion) || "
                "has(self.columns.instruction) || has(self.columns.input) || has(self.columns.output) || "
                "has(self.columns.text) || has(self.columns.reasoning))",
                "format Messages knows the columns system and messages only: remove the others, or change format",
            ),
            (
                "!has(self.columns) || self.format != 'Text' || "
                "!(has(self.columns.system) || has(self.columns.prompt) || has(self.columns.completion) || "
                "has(self.columns.instruction) || has(self.columns.input) || has(self.columns.output) || "
                "has(self.columns.messages) || has(self.columns.reasoning))",
                "format Text knows the column text only: remove the others, or change format",
            ),
        )
    )

    uri: FileUri
    """The files, as s3://BUCKET/KEY ending in .jsonl or .ndjson (one JSON object a line), .json (one array of objects,
    perhaps below a key), .csv or .tsv (UTF-8, the first line names the columns; comma, semicolon, tab or |) or
    .parquet; all but .parquet also compressed, as .gz or .zst. The key may hold wildcards: * stands for any characters
    and ? for one, both within one folder, and ** for any folders (data/**/*.jsonl also finds data/a.jsonl). Files are
    read in the order of their names, row by row, whatever their size."""
    format: RowFormat = RowFormat.AUTO
    """What the rows hold. PromptCompletion: a prompt and its completion. Instruction: an instruction, perhaps an input,
    and the output. Messages: a list of {role, content}, of which every assistant turn is learned. Text: a text, of
    which every token is learned, as in continued pre-training; one longer than training.maxSequenceLength (default: the
    model's context, at most 4096) is cut into as few pieces as fit, none of whose tokens is lost. Auto: told from the
    mapped columns, or else from the first row's column names."""
    columns: Columns | None = None
    """Maps your column names onto the format's, where they differ."""


class Source(RowFiles):
    """Files with rows."""

    name: (
        Annotated[DnsLabel, dns_label("lower-case letters, digits and hyphens, for example support-tickets")] | None
    ) = None
    """What the source is called in the status and the report. Default: its place, as train-1."""
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
