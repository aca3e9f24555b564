"""Known names of message keys and columns, by meaning.

Names are compared in lower case, with `_` instead of white space and hyphens."""

import re
from functools import lru_cache
from typing import Any

USER, ASSISTANT, SYSTEM = "user", "assistant", "system"
ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), USER),
    **dict.fromkeys(("assistant", "gpt", "bot", "ai", "model", "chatgpt", "chatbot", "bard", "bing"), ASSISTANT),
    **dict.fromkeys(("system", "developer"), SYSTEM),
}
"""The role for each name of a role in the rows of OpenAI, ShareGPT, Gemini and other toolkits."""
TOOL_ROLES = frozenset(
    ("tool", "function", "function_call", "function_response", "observation", "ipython", "environment")
) | {f"tool_{what}" for what in ("call", "calls", "response", "responses", "result", "results", "output")}
"""Roles in conversations with tool calls, which are not supported."""
TURN_KEYS = (("role", "content"), ("from", "value"), ("role", "parts"))
"""The keys of a message's role and of its content: OpenAI, ShareGPT, Gemini."""

CALLS = frozenset(("tool_calls", "function_call"))
"""Keys of a message that contain tool calls."""
TOOLS = ("tools", "functions", "available_tools")
"""Columns that contain tool definitions."""

SPEAKERS = frozenset(("role", "from", "speaker", "sender"))
"""Keys of a message that name its speaker in any toolkit."""

LEARN = frozenset(("train", "training", "trainable", "learn", "loss", "loss_scale", "weight", "supervised"))
"""Keys of a message that say if it is trained: true or 1, false or 0."""
LEARN_UNCLEAR = frozenset(("mask", "masked", "loss_mask", "label_mask", "train_mask", "train_detail", "ignore"))
"""Similar keys whose meaning is not clear: toolkits use true with opposite meanings, or for parts of a message."""

REASONINGS = ("reasoning_content", "reasoning", "thinking")
"""Keys of a message, and columns, for a thought that is separate from its answer."""
THOUGHTS = frozenset(
    ("thought", "thoughts", "think", "cot", "chain_of_thought", "complex_cot", "rationale", "rationales", "scratchpad")
) | {f"reasoning_{what}" for what in ("trace", "traces", "chain", "steps", "text")}
"""Columns that can contain a thought. Only the author of the rows knows if it must be trained."""
_THOUGHTS_OF_MODELS = re.compile(r".*_(?:reasoning|thinking|thinking_trajectory|thought|cot|rationale)")

MEDIA = frozenset(
    ("image", "images", "img", "imgs", "picture", "pictures", "photo", "photos", "pixels", "audio", "audios")
) | {"video", "videos", "speech", "media"}
"""Words in the names of columns that contain an image, audio or video, or its path."""
MEDIA_MARK = re.compile(r"<\|?(?:image|img|video|audio)(?:[_ ]?(?:\d+|pad|placeholder|here))?\|?>", re.IGNORECASE)
"""The mark in a text that refers to an image, audio or video."""

VERDICTS = frozenset(("label", "correct", "is_correct", "accepted", "is_accepted", "valid", "is_valid"))
"""Columns that say if an answer is good, if their values are true or false."""
PREFERENCES = frozenset(("chosen", "rejected", "chosen_response", "rejected_response"))
"""Columns of a preference pair."""
SYSTEMS = frozenset(("system", "system_prompt", "system_message", "system_instruction", "systeminstruction", "persona"))
"""Columns that probably contain a system prompt."""
CHOICES = frozenset(("choices", "options", "endings", "answer_choices"))
"""Columns that a question needs, but that no mapping can add to it."""
SAYS_SOMETHING = CHOICES | {"context", "passage", "input", "history", "tools", "functions", "label"}
"""Columns that are important even if their texts are short."""
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
"""Words in the names of columns with metadata."""


@lru_cache(1024)
def plain(name: str) -> str:
    """Returns a name in the spelling of this module: lower case, with `_` instead of white space and hyphens."""
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def is_turn(value: Any) -> bool:
    """Returns whether a value is a message: an object with a role and a content."""
    return isinstance(value, dict) and any(who in value and what in value for who, what in TURN_KEYS)


def is_thought(name: str) -> bool:
    """Returns whether a column's name, as `plain` returns it, is the name of a thought."""
    return name in THOUGHTS or name in REASONINGS or bool(_THOUGHTS_OF_MODELS.fullmatch(name))


def is_media(name: str) -> bool:
    """Returns whether a column's name, as `plain` returns it, is the name of an image, audio or video."""
    return not MEDIA.isdisjoint(_words(name))


def is_metadata(name: str) -> bool:
    """Returns whether a column's name, as `plain` returns it, is the name of metadata, such as an id or a date."""
    return not _METADATA.isdisjoint(_words(name))


def _words(name: str) -> set[str]:
    return set(re.split(r"[_.:/]", name))
