"""The names that data sets give to what they hold, by meaning: one table for the keys of a turn and for columns.

Names are compared in lower case, with `_` for white space and hyphens."""

import re
from functools import lru_cache
from typing import Any

USER, ASSISTANT, SYSTEM = "user", "assistant", "system"
ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), USER),
    **dict.fromkeys(("assistant", "gpt", "bot", "ai", "model", "chatgpt", "chatbot", "bard", "bing"), ASSISTANT),
    **dict.fromkeys(("system", "developer"), SYSTEM),
}
"""Who speaks, by the role's name in OpenAI's, ShareGPT's, Gemini's and other toolkits' rows."""
TOOL_ROLES = frozenset(
    ("tool", "function", "function_call", "function_response", "observation", "ipython", "environment")
) | {f"tool_{what}" for what in ("call", "calls", "response", "responses", "result", "results", "output")}
"""Who speaks where tools are called."""
SPEAKER = {"role": "content", "from": "value"}
"""The key of a turn that says who speaks, with the key that has what is said."""

CALLS = frozenset(("tool_calls", "function_call"))
"""What a turn calls."""
TOOLS = ("tools", "functions", "available_tools")
"""What a conversation's row lets it call."""

LEARN = frozenset(("train", "training", "trainable", "learn", "loss", "loss_scale", "weight", "supervised"))
"""Keys of a turn that say whether it is learned: true or 1, false or 0."""
LEARN_UNCLEAR = frozenset(("mask", "masked", "loss_mask", "label_mask", "train_mask", "train_detail", "ignore"))
"""Keys that say so too, and of which toolkits differ in what true means, or that name parts of a turn."""

REASONINGS = ("reasoning_content", "reasoning", "thinking")
"""Where a thought stands apart from its answer, in a turn and beside a completion."""
THOUGHTS = frozenset(
    ("thought", "thoughts", "think", "cot", "chain_of_thought", "complex_cot", "rationale", "rationales", "scratchpad")
) | {f"reasoning_{what}" for what in ("trace", "traces", "chain", "steps", "text")}
"""Columns that may hold a thought: whether it is one to be learned only who made the rows can say."""
_THOUGHTS_OF_MODELS = re.compile(r".*_(?:reasoning|thinking|thinking_trajectory|thought|cot|rationale)")

MEDIA = frozenset(
    ("image", "images", "img", "imgs", "picture", "pictures", "photo", "photos", "pixels", "audio", "audios")
) | {"video", "videos", "speech", "media"}
"""Words in the name of a column that holds an image, audio or video, or where one lies."""
MEDIA_MARK = re.compile(r"<\|?(?:image|img|video|audio)(?:[_ ]?(?:\d+|pad|placeholder|here))?\|?>", re.IGNORECASE)
"""What stands in a text for one."""

VERDICTS = frozenset(("label", "correct", "is_correct", "accepted", "is_accepted", "valid", "is_valid"))
"""Columns that, where they hold true or false, say whether an answer is a good one."""
PREFERENCES = frozenset(("chosen", "rejected", "chosen_response", "rejected_response"))
"""Columns of a preference pair."""
SYSTEMS = frozenset(("system", "system_prompt", "system_message", "system_instruction", "persona"))
"""Columns that are likely a system prompt."""
CHOICES = frozenset(("choices", "options"))
"""What a question is nothing without and no mapping can give it."""
SAYS_SOMETHING = CHOICES | {"context", "passage", "input", "history", "tools", "functions", "label"}
"""Columns that say something to a model or about an answer, however short they are."""
_METADATA = frozenset(
    (
        *("id", "ids", "uid", "uuid", "guid", "idx", "index", "key", "hash", "sha", "md5", "unnamed", "num", "count"),
        *("url", "urls", "uri", "link", "href", "path", "file", "filename", "source", "dataset", "subset", "split"),
        *("license", "author", "authors", "creator", "annotator", "worker", "username", "email", "origin", "header"),
        *("date", "time", "timestamp", "created", "updated", "at", "lang", "language", "locale", "country", "state"),
        *("generator", "version", "score", "rating", "rank", "category", "topic", "domain", "subject", "type", "name"),
        *("tag", "tags", "difficulty", "level", "status", "meta", "metadata", "info", "stats", "model", "models"),
    )
)
"""Words in the name of a column about a row, not of it."""


@lru_cache(1024)
def plain(name: str) -> str:
    """A name as this table has it."""
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def is_turn(value: Any) -> bool:
    """Whether a value is a turn of a conversation: one that says who speaks, and what."""
    return isinstance(value, dict) and any(who in value and what in value for who, what in SPEAKER.items())


def is_thought(name: str) -> bool:
    """Whether a column's name, which is `plain`, is one of a thought."""
    return name in THOUGHTS or name in REASONINGS or bool(_THOUGHTS_OF_MODELS.fullmatch(name))


def is_media(name: str) -> bool:
    """Whether a column's name, which is `plain`, is one of an image, audio or video."""
    return not MEDIA.isdisjoint(_words(name))


def is_metadata(name: str) -> bool:
    """Whether a column's name, which is `plain`, is one of an id, a source, a date and the like."""
    return not _METADATA.isdisjoint(_words(name))


def _words(name: str) -> set[str]:
    return set(re.split(r"[_.:/]", name))
