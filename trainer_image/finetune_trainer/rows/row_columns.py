"""The columns of a source's rows: how they decide the format, and how messages show their names.

Messages show the names of columns, but never the content of a row. If the names look like content, none is shown.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from finetune_api.reasons import FailureReason
from finetune_api.spec import dataset
from finetune_api.spec.dataset import RowFiles, RowFormat
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.rows.other_shapes import is_single_message, to_flatten, way_to_write
from finetune_trainer.sources.class_names import NoClass
from finetune_trainer.sources.row_keys import ASSISTANT, CHOICES, REASONINGS, ROLES, SYSTEMS, is_thought, plain
from finetune_trainer.sources.turn_lists import is_chat, is_instruction, list_of

KEYS = {
    RowFormat.MESSAGES: ("messages",),
    RowFormat.PROMPT_COMPLETION: ("prompt", "completion"),
    RowFormat.INSTRUCTION: ("instruction", "output"),
    RowFormat.TEXT: ("text",),
}
"""Columns that decide a format, in the order in which Auto tries the formats."""
OPTIONAL: dict[RowFormat, tuple[str, ...]] = {
    RowFormat.MESSAGES: ("system",),
    RowFormat.PROMPT_COMPLETION: ("system", "reasoning"),
    RowFormat.INSTRUCTION: ("system", "input", "reasoning"),
    RowFormat.TEXT: (),
}
"""Optional columns of each format."""
SHARED = {"system", "reasoning"}
"""Optional columns of several formats. Mapping one of them does not decide the format."""
ASKED = (
    *("instruction", "question", "query", "problem", "prompt", "input", "inputs", "inputs_pretokenized", "user"),
    *("user_prompt", "human", "source", "sentence", "utterance", "review", "dialogue", "article", "document"),
    *("meaning_representation", "input_text", "text"),
)
MATERIAL = ("context", "passage", "input", "article", "document", "text")
ANSWERED = (
    *("output", "response", "answer", "completion", "solution", "reply", "assistant", "target", "outputs", "targets"),
    *("targets_pretokenized", "output_text", "answers", "expected_output", "reference", "human_reference"),
    *("canonical_solution", "code", "summary", "highlights", "label", "labels", "intent", "sentiment"),
)
"""Names of columns for which a mapping is suggested, the most likely first. Without a match there is no suggestion,
because following a wrong suggestion wastes a whole training run."""
NAMED, LONGEST_NAME, MOST_WORDS = 12, 40, 4
"""Most columns that a message names; most characters and words of a text that looks like a name."""

_SENTENCE = re.compile(r"\s.*[.?!]\s*$|[\u3002\uff01\uff1f]|,\s|\n")
_PLAIN = re.compile(r"[^\W\d][\w-]*")
_YAML_WORDS = {"true", "false", "yes", "no", "on", "off", "y", "n", "null"}


@dataclass(frozen=True)
class ColumnMap:
    """The names of the columns in the files of one source."""

    system: str
    prompt: str
    completion: str
    instruction: str
    input: str
    output: str
    messages: str
    text: str
    reasoning: str

    @classmethod
    def of(cls, source: RowFiles) -> Self:
        """Returns the mapped names of a source, and the names of the format for columns that are not mapped."""
        mapped = source.columns or dataset.Columns()
        return cls(**{name: getattr(mapped, name) or name for name in dataset.Columns.model_fields})

    def read_by(self, format: RowFormat) -> dict[str, str]:
        """Returns the columns that a format uses, by the names of the format."""
        return {name: getattr(self, name) for name in (*KEYS[format], *OPTIONAL[format])}

    def reasonings(self, format: RowFormat) -> tuple[str, ...]:
        """Returns the columns that can contain the thought before an answer: the mapped one, or the usual names."""
        if "reasoning" not in OPTIONAL[format]:
            return ()
        usual = REASONINGS if self.reasoning in REASONINGS else ()
        return tuple(dict.fromkeys((self.reasoning, *usual)))


def detect_format(row: dict[str, Any], source: RowFiles, field: str, place: str) -> RowFormat:
    """Returns the format that matches the mapped columns, or else the column names of the first row.

    Raises TrainerFailure SpecInvalid for columns of two formats. Raises DatasetInvalid if no format matches, or if the
    row has a text column and also a column that could be its answer."""
    mapped = source.columns.model_dump(exclude_none=True).keys() if source.columns else set()
    told = [format for format, keys in KEYS.items() if mapped & {*keys, *OPTIONAL[format]} - SHARED]
    if len(told) > 1:
        raise TrainerFailure(
            FailureReason.SPEC_INVALID,
            f"{field}.columns maps columns of several formats ({' and '.join(told)}).",
            "Keep the columns of one format.",
        )
    if not told:
        told = [format for format, keys in KEYS.items() if row.keys() >= set(keys)]
        if not told:
            found, remedy = _fits_none(row, field)
            raise TrainerFailure(FailureReason.DATASET_INVALID, f"{place}: {found}", remedy)
        if told == [RowFormat.TEXT] and (beside := _beside_text(row, ColumnMap.of(source).system)):
            found, remedy = _fits_two(row, beside, field)
            raise TrainerFailure(FailureReason.DATASET_INVALID, f"{place}: {found}", remedy)
    if others := sorted(mapped & SHARED - set(OPTIONAL[told[0]])):
        names = " and ".join(others)
        raise TrainerFailure(
            FailureReason.SPEC_INVALID,
            f"{field}.columns maps {names}, which the format {told[0]} does not use.",
            f"Remove {names}.",
        )
    return told[0]


def quoted(name: str) -> str:
    """Returns a name as a YAML scalar, quoted and escaped if necessary."""
    if _PLAIN.fullmatch(name) and name.lower() not in _YAML_WORDS:
        return name
    return json.dumps(name, ensure_ascii=not name.isprintable())


def column_names(names: Iterable[str]) -> str:
    """Returns the names of columns for a message: at most NAMED, and none if one of them looks like content."""
    names = list(names)
    if not all(map(is_name, names)):
        return f"{len(names)}, not shown because the names look like data"
    shown = ", ".join(map(quoted, names[:NAMED]))
    return shown + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "") or "(none)"


def is_name(name: str) -> bool:
    """Returns whether a text looks like the name of a column, and not like content."""
    return len(name) <= LONGEST_NAME and len(name.split()) <= MOST_WORDS and not _SENTENCE.search(name)


def _fits_none(row: dict[str, Any], field: str) -> tuple[str, str]:
    """Returns the finding about a row that matches no format, and the remedy."""
    if not all(map(is_name, row)):
        columns = f"{len(row)} column{'s' * (len(row) != 1)}"
        return f"the names of its {columns} look like data, so the header line seems to be missing.", (
            "Write the names of the columns into the first line of a .csv file, or as the keys of each object."
        )
    fits = f"the columns {column_names(row)} match no format."
    if row.keys() >= {"chosen", "rejected"}:
        mapping = _chosen(row)
        way = f"set {field}.columns to {yaml_of(mapping)}" if mapping else "provide rows with a prompt and its answer"
        return f"{fits} Training on pairs of a chosen and a rejected answer is not supported.", (
            f"To train on the chosen answers, {way}."
        )
    if mapping := _mapping(row):
        return fits, f"Set {field}.columns to the names of your columns, for example {yaml_of(mapping)}."
    if written := way_to_write(row, field):
        return fits, written
    return fits, (
        f"Set {field}.columns.prompt to the column with the question, and {field}.columns.completion to the "
        f"column with its answer.{to_flatten(row)}"
    )


def _fits_two(row: dict[str, Any], beside: list[str], field: str) -> tuple[str, str]:
    """Returns the finding about a row with a text and a possible answer, and the remedy."""
    mapping = _mapping(row)
    way = f", or set {field}.columns, for example {yaml_of(mapping)}, to train on an answer" if mapping else ""
    talk = f" {way_to_write(row, field)}" if is_single_message(row) else ""
    return f"the row has the column text and also {column_names(beside)}, so it is not clear which text to train on.", (
        f"Set {field}.format to Text to train on the whole column text and nothing else{way}.{talk}"
    )


def _beside_text(row: dict[str, Any], system: str) -> list[str]:
    """Returns the columns that could be the answer to the text, its system prompt, or the role of a message."""
    return [name for name in row if name == system or plain(name) in (*ANSWERED, "role")]


def _mapping(row: dict[str, Any]) -> dict[str, str] | None:
    """Returns the most likely mapping of the row's columns to a format's columns; None if none is likely."""
    chats = [name for name, value in row.items() if is_chat(value)]
    names = {plain(name): name for name, value in row.items() if isinstance(value, str) and name not in chats}
    prompts = [name for name, value in row.items() if plain(name) in SYSTEMS and is_instruction(value)]
    prompts = [name for name in prompts if name != "system"]
    system = {"system": prompts[0]} if len(prompts) == 1 else {}
    if chats:
        return {"messages": chats[0]} | system if len(chats) == 1 else None
    values = {plain(name): name for name, value in row.items() if _may_answer(value)}
    asked, answered = _first(ASKED, names), _first(ANSWERED, values)
    if not asked or not answered or not CHOICES.isdisjoint(map(plain, row)):
        return None
    thoughts = [name for key, name in names.items() if is_thought(key) and name not in REASONINGS]
    others = system | {"reasoning": thoughts[0]} if len(thoughts) == 1 else system
    material = _first((name for name in MATERIAL if names.get(name) not in (asked, answered)), names)
    if material:
        return {"instruction": asked, "input": material, "output": answered} | others
    return {"prompt": asked, "completion": answered} | others


def _may_answer(value: Any) -> bool:
    return isinstance(value, str | int | float | NoClass) or (
        isinstance(value, dict) and value.keys() >= {"text", "answer_start"}
    )


def _chosen(row: dict[str, Any]) -> dict[str, str] | None:
    """Returns the mapping that trains on the chosen answer of a preference pair; None if none is likely."""
    if is_chat(row["chosen"]):
        first = list_of(row["chosen"])[0]
        if ROLES.get(plain(str(first.get("role", first.get("from"))))) != ASSISTANT:
            return {"messages": "chosen"}
        return {"prompt": "prompt", "completion": "chosen"} if row.get("prompt") else None
    mapping = _mapping({name: value for name, value in row.items() if name in ASKED} | {"answer": row["chosen"]})
    return {name: "chosen" if column == "answer" else column for name, column in mapping.items()} if mapping else None


def _first(wanted: Iterable[str], names: Mapping[str, str]) -> str | None:
    return next((names[name] for name in wanted if name in names), None)


def yaml_of(mapping: Mapping[str, str]) -> str:
    """Returns a mapping in the YAML syntax of a manifest."""
    return "{" + ", ".join(f"{name}: {quoted(column)}" for name, column in mapping.items()) + "}"
