"""Renders rows as text with the chat template of the tokenizer, or with the Plain format if there is no template."""

import datetime
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal, Protocol, cast

import jinja2

from finetune_api.reasons import FailureReason
from finetune_api.spec.training import LossOn
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.rows.row_format import REASONING, THOUGHT, THOUGHT_END, Message, Row, parted, thinks
from finetune_trainer.sources.findings import InvalidRow

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% else %}{{ '\\n\\n' }}{% endif %}{% endfor %}"
)
"""The Plain format, for models without a chat template: the prompt, an empty line, the answer, the end-of-sequence
token."""
DATE = datetime.date(2024, 7, 26)
"""The date for templates that ask for today's date. With a fixed date, the same rows give the same tokens on every day.
The templates of Llama 3 use the same date as their default."""
PROBE = "the-answer"
APART_CHARACTERS, AROUND = 16 * 1024 * 1024, 32
"""Maximum number of characters of all parts of one row together, which grows with the square of the number of answers;
and the approximate number of characters that a template adds to each message."""
EXACT = 8
"""For this many answers of a conversation, all messages before the answer are rendered. Later answers are found with a
shorter conversation, which renders one turn."""


class Template(Protocol):
    """A compiled Jinja template."""

    globals: Any

    def render(self, **variables: Any) -> str: ...


@dataclass(frozen=True)
class Rendered:
    """The text of a row, or of a part of a row, up to the end of its last answer."""

    text: str
    messages: tuple[Message, ...]
    """The messages of the text. The last message is the last answer."""
    answers: tuple[tuple[int, int], ...]
    """Each answer that is trained on, with its end of turn, as characters [start, end) of the text. The last answer
    ends with the text. Empty for a document."""


@dataclass(frozen=True)
class PromptFormat:
    """The format that turns messages into text."""

    kind: Literal["ChatTemplate", "Plain"]
    source: str
    """Source of the template."""
    template: Template
    variables: dict[str, Any]
    """Variables of the template other than the messages: the special tokens of the tokenizer."""
    end_of_turn: str = ""
    """Text that the template writes after an answer, including the special token that ends the answer. "" if no special
    token ends an answer."""
    remainder: str = ""
    """Text that the template writes after `end_of_turn` at the end of a conversation."""
    loss_on: LossOn = LossOn.COMPLETION
    """The tokens of a row that are trained on."""
    stop_token_ids: tuple[int, ...] = ()
    """The end-of-sequence token of the tokenizer, and the end-of-turn token."""

    def render(self, row: Row) -> list[Rendered]:
        """Returns the row as one text with all its answers. A document is returned as its text, without answers.

        Some templates write a turn differently when more turns follow. For example, templates of reasoning models leave
        out all reasoning except the last. Such a row is returned as one text for each answer, which is what a served
        model sees for that answer. If every token is trained on, such a row is returned as one text.

        Raises InvalidRow when the template rejects the row, or when an answer does not follow its prompt directly."""
        if row.is_document:
            return [Rendered(row.messages[0].content, row.messages, ())]
        answers = (number for number, message in enumerate(row.messages, start=1) if message.role == "assistant")
        ends = [number for number in answers if row.messages[number - 1].learned]
        if whole := self._found(row.messages, ends):
            return [whole]
        if self.loss_on is LossOn.ALL:
            return [self._apart(row.messages)]
        if _long_apart(row.messages, ends):
            kind = f"its answers, each with all messages before it, have over {APART_CHARACTERS >> 20} Mi characters"
            raise InvalidRow(kind, f"{len(ends)} answers")
        return [self._apart(row.messages[:end]) for end in ends]

    def prompt(self, messages: tuple[Message, ...], thinking: bool) -> str:
        """Returns the prompt for the next answer. `thinking`: whether the answer begins with reasoning, for templates
        with such a switch. Raises InvalidRow as `render` does."""
        return self._text(messages, thinking, prompt=True)

    def _found(self, messages: tuple[Message, ...], ends: list[int]) -> Rendered | None:
        """Returns the rendered messages with the answers at the positions `ends`, or None if an answer is not found."""
        whole = self._text(messages, thinks(messages[-1].content))
        answers: list[tuple[int, int]] = []
        for number, end in enumerate(ends):
            place = None
            if near := EXACT <= number < len(ends) - 1:
                place = self._near(messages, end, whole, answers[-1][1])
            if place is None and not (near and _long_apart(messages, ends)):
                place = self._exact(messages, end, whole)
            if place is None:
                return None
            answers.append(place)
        return self._ended(whole[: answers[-1][1]], messages, answers)

    def _exact(self, messages: tuple[Message, ...], end: int, whole: str) -> tuple[int, int] | None:
        """Returns the place in `whole` of the answer that ends the first `end` messages, found by rendering its
        prompt."""
        thinking = thinks(messages[end - 1].content)
        asked = self.prompt(messages[: end - 1], thinking)
        until = whole if end == len(messages) else self._text(messages[:end], thinking)
        return self._told_apart(asked, until, thinking, whole, 0)

    def _near(self, messages: tuple[Message, ...], end: int, whole: str, start: int) -> tuple[int, int] | None:
        """Returns the same as `_exact`, but renders this turn after one short turn only. In a conversation of thousands
        of turns, `_exact` would render all earlier turns thousands of times. `start`: the end of the previous answer in
        `whole`."""
        system = (Message("system", PROBE),) if messages[0].role == "system" else ()
        before = (*system, Message("user", PROBE), Message("assistant", PROBE))
        thinking = thinks(messages[end - 1].content)
        asked = self.prompt((*before, messages[end - 2]), thinking)
        until = self._text((*before, *messages[end - 2 : end]), thinking)
        begun = self._text(before, thinking).removesuffix(self.remainder)
        if not (asked.startswith(begun) and until.startswith(begun)):
            return None
        return self._told_apart(asked[len(begun) :], until[len(begun) :], thinking, whole, start)

    def _told_apart(self, asked: str, until: str, thinking: bool, whole: str, at: int) -> tuple[int, int] | None:
        """Returns the place in `whole` of the answer at the end of `until`, or None. `asked`: the prompt. `at`: the
        position in `whole` of both texts."""
        answered = until.removesuffix(self.remainder)
        told_apart = until.endswith(self.end_of_turn + self.remainder)
        thought = not thinking or THOUGHT_END in answered[len(asked) :]
        if told_apart and thought and whole.startswith(asked, at) and whole.startswith(answered, at):
            return at + len(asked), at + len(answered)
        return None

    def _apart(self, messages: tuple[Message, ...]) -> Rendered:
        """Returns the rendered messages with the last answer only."""
        if found := self._found(messages, [len(messages)]):
            return found
        thought, answer = parted(messages[-1].content)
        asked = self.prompt(messages[:-1], thinks(messages[-1].content))
        if asked.rstrip().endswith(THOUGHT):
            # The prompt contains the start of the reasoning, but the template leaves out the reasoning of earlier
            # answers. The template of DeepSeek-R1 does so.
            text = f"{asked}{thought}\n{THOUGHT_END}\n\n{answer.lstrip()}{self.end_of_turn}"
            return self._ended(text, messages, [(len(asked), len(text))])
        if thought:
            raise InvalidRow("the model's chat template leaves out the reasoning of an answer")
        raise InvalidRow("the model's chat template does not write an answer directly after its prompt")

    def _ended(self, text: str, messages: tuple[Message, ...], answers: list[tuple[int, int]]) -> Rendered:
        if not self.end_of_turn:
            text += cast(str, self.variables["eos_token"])
        return Rendered(text, messages, (*answers[:-1], (answers[-1][0], len(text))))

    def _text(self, messages: tuple[Message, ...], thinking: bool = False, prompt: bool = False) -> str:
        turns = [self._turn(message) for message in messages]
        try:
            return self.template.render(
                messages=turns, add_generation_prompt=prompt, enable_thinking=thinking, **self.variables
            )
        except jinja2.TemplateError as error:
            raise InvalidRow("the model's chat template rejects it", str(error).splitlines()[0][:200]) from error
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise InvalidRow("the model's chat template fails on it", type(error).__name__) from error

    def _turn(self, message: Message) -> dict[str, str]:
        """Returns the message in the form that templates expect. Empty reasoning is removed. Reasoning has its own
        field if the template reads that field and writes the same marks around it, because metrics look for these
        marks."""
        turn = {"role": message.role, "content": message.content}
        if message.role != "assistant" or THOUGHT_END not in message.content:
            return turn
        thought, answer = parted(message.content)
        if not thinks(message.content):
            return turn | {"content": answer.lstrip("\n")}
        if self._parts_thoughts:
            turn |= {REASONING: thought, "content": answer.lstrip("\n")}
        return turn

    @cached_property
    def _parts_thoughts(self) -> bool:
        return REASONING in self.source and THOUGHT_END in self.source


def _long_apart(messages: tuple[Message, ...], ends: list[int]) -> bool:
    """Returns whether the answers, each with all messages before it, are longer than APART_CHARACTERS."""
    sizes = [0, *accumulate(len(message.content) + AROUND for message in messages)]
    return sum(sizes[end] for end in ends) > APART_CHARACTERS


def prompt_format(tokenizer: Any, loss_on: LossOn = LossOn.COMPLETION) -> PromptFormat:
    """Returns the prompt format of a tokenizer. Raises TrainerFailure ModelUnsupported when the tokenizer has no
    end-of-sequence token, or when its chat template fails."""
    if not tokenizer.eos_token:
        raise TrainerFailure(
            FailureReason.MODEL_UNSUPPORTED,
            "The tokenizer has no end-of-sequence token.",
            "Set eos_token in the model's tokenizer_config.json.",
        )
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
            f"The model's chat template cannot render a question and its answer ({detail}).",
            "Correct the chat template, or choose another model.",
        ) from error
    end = _end_of_turn(tokenizer, tail)
    stops = (tokenizer.eos_token_id, *tokenizer(end, add_special_tokens=False).input_ids[-1:])
    return PromptFormat(kind, source, bare.template, variables, end, tail[len(end) :] if end else tail, loss_on, stops)


def _end_of_turn(tokenizer: Any, tail: str) -> str:
    """Returns the part of `tail` up to and including its first special token."""
    marks = {token for token in (*tokenizer.get_added_vocab(), tokenizer.eos_token) if not token.isspace()}
    found = [(tail.index(mark), -len(mark), mark) for mark in marks if mark in tail]
    if not found:
        return ""
    position, _, mark = min(found)
    return tail[: position + len(mark)]


def _plain_template(tokenizer: Any) -> str:
    """Returns the Plain format as a template, which is published with the tokenizer. The template begins with the
    beginning-of-sequence token if the tokenizer adds this token to every text."""
    adds_bos = tokenizer.bos_token_id is not None and tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    return ("{{ bos_token }}" if adds_bos else "") + PLAIN_TEMPLATE


def _compiled(source: str) -> Template:
    # The sandbox of Transformers runs templates as every server does that uses Transformers.
    from transformers.utils.chat_template_utils import _compile_jinja_template

    template = cast(Template, _compile_jinja_template(source))
    template.globals["strftime_now"] = DATE.strftime
    return template
