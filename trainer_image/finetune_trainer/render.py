"""Rows as the text a model reads: through the tokenizer's chat template, or the Plain format where it has none."""

import datetime
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import jinja2

from finetune_api.reasons import FailureReason
from finetune_trainer.failure import TrainerFailure
from finetune_trainer.findings import InvalidRow
from finetune_trainer.row_format import Message, Row

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% else %}{{ '\\n\\n' }}{% endif %}{% endfor %}"
)
"""For models without a chat template: what is asked, an empty line, the answer, the end-of-sequence token."""
DATE = datetime.date(2024, 7, 26)
"""What templates that ask for today's date are told, so that the same rows give the same tokens on any day. It is the
date Llama 3's templates themselves fall back to."""
PROBE = "the-answer"


class Template(Protocol):
    """A compiled Jinja template."""

    globals: Any

    def render(self, **variables: Any) -> str: ...


@dataclass(frozen=True)
class Rendered:
    """A row's text, up to the end of its last answer."""

    text: str
    answers: tuple[tuple[int, int], ...]
    """Each answer with its end of turn, as characters [start, end) of the text. The last ends with the text. None for a
    document."""


@dataclass(frozen=True)
class PromptFormat:
    """How messages become text."""

    kind: Literal["ChatTemplate", "Plain"]
    source: str
    """The template's source."""
    template: Template
    variables: dict[str, Any]
    """What the template may use beside the messages: the tokenizer's special tokens."""
    end_of_turn: str = ""
    """What the template writes after an answer, up to and with the special token that ends it; "" where it ends an
    answer by no special token."""
    remainder: str = ""
    """What the template writes after that, at the end of a conversation."""
    stop_token_ids: tuple[int, ...] = ()
    """The tokenizer's end-of-sequence token, and the one that ends a turn."""

    def render(self, row: Row) -> Rendered:
        """The row's text and where its answers are. Raises InvalidRow where the template refuses the row, or renders a
        turn in another way once more turns follow, so that it is not said what a served model would see. A document is
        its text, without an answer."""
        if row.is_document:
            return Rendered(row.messages[0].content, ())
        turns = [index for index, message in enumerate(row.messages) if message.role == "assistant"]
        whole = self._text(row.messages)
        answers = []
        for index in turns:
            start = len(self._beginning(whole, self._text(row.messages[:index], prompt=True)))
            until = whole if index == turns[-1] else self._text(row.messages[: index + 1])
            if not until.endswith(self.end_of_turn + self.remainder):
                raise _unstable()
            end = len(self._beginning(whole, until.removesuffix(self.remainder)))
            answers.append((start, end))
        return self._ended(whole[: answers[-1][1]], tuple(answers))

    def prompt(self, messages: tuple[Message, ...]) -> str:
        """The text that asks for the next answer. Raises InvalidRow as `render` does."""
        return self._text(messages, prompt=True)

    def _beginning(self, whole: str, part: str) -> str:
        if not whole.startswith(part):
            raise _unstable()
        return part

    def _ended(self, text: str, answers: tuple[tuple[int, int], ...]) -> Rendered:
        if not self.end_of_turn:
            text += cast(str, self.variables["eos_token"])
        return Rendered(text, (*answers[:-1], (answers[-1][0], len(text))))

    def _text(self, messages: tuple[Message, ...], prompt: bool = False) -> str:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            # Models with a switch for it are asked for the answer alone: that is what the rows hold.
            return self.template.render(
                messages=turns, add_generation_prompt=prompt, enable_thinking=False, **self.variables
            )
        except jinja2.TemplateError as error:
            raise InvalidRow("the chat template refuses it", str(error).splitlines()[0][:200]) from error
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise InvalidRow("the chat template fails on it", type(error).__name__) from error


def _unstable() -> InvalidRow:
    return InvalidRow(
        "the model's chat template writes a turn differently once the conversation goes on, "
        "so that its answer cannot be told apart"
    )


def prompt_format(tokenizer: Any) -> PromptFormat:
    """The format a tokenizer asks for. Raises TrainerFailure ModelUnsupported where no answer could end."""
    if not tokenizer.eos_token:
        raise TrainerFailure(FailureReason.MODEL_UNSUPPORTED, "The tokenizer has no end-of-sequence token (eos_token).")
    try:
        kind: Literal["ChatTemplate", "Plain"] = "ChatTemplate" if tokenizer.chat_template else "Plain"
        source = tokenizer.get_chat_template() if tokenizer.chat_template else _plain_template(tokenizer)
        variables = dict(tokenizer.special_tokens_map)
        bare = PromptFormat(kind, source, _compiled(source), variables)
        _, tail = bare._text((Message("user", "q"), Message("assistant", PROBE))).split(PROBE)
    except (jinja2.TemplateError, InvalidRow, ValueError) as error:
        detail = error.detail if isinstance(error, InvalidRow) else str(error).splitlines()[0][:200]
        raise TrainerFailure(
            FailureReason.MODEL_UNSUPPORTED,
            f"The tokenizer's chat template cannot render a question and its answer ({detail}).",
        ) from error
    end = _end_of_turn(tokenizer, tail)
    stops = (tokenizer.eos_token_id, *tokenizer(end, add_special_tokens=False).input_ids[-1:])
    return PromptFormat(kind, source, bare.template, variables, end, tail[len(end) :] if end else tail, stops)


def _end_of_turn(tokenizer: Any, tail: str) -> str:
    """The part of `tail` up to the first special token in it, with it."""
    marks = {token for token in (*tokenizer.get_added_vocab(), tokenizer.eos_token) if not token.isspace()}
    found = [(tail.index(mark), -len(mark), mark) for mark in marks if mark in tail]
    if not found:
        return ""
    position, _, mark = min(found)
    return tail[: position + len(mark)]


def _plain_template(tokenizer: Any) -> str:
    """The Plain format as a template, which publishing gives to the tokenizer. It begins with the beginning-of-sequence
    token where the tokenizer puts it before any text."""
    adds_bos = tokenizer.bos_token_id is not None and tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    return ("{{ bos_token }}" if adds_bos else "") + PLAIN_TEMPLATE


def _compiled(source: str) -> Template:
    # Transformers' own sandbox, so that templates run as they do in every server that uses it.
    from transformers.utils.chat_template_utils import _compile_jinja_template

    template = cast(Template, _compile_jinja_template(source))
    template.globals["strftime_now"] = DATE.strftime
    return template
