"""Rows as the text a model reads: through the tokenizer's chat template, or the Plain format where it has none."""

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
"""For models without a chat template: what is asked, an empty line, the answer, the end-of-sequence token."""
DATE = datetime.date(2024, 7, 26)
"""What templates that ask for today's date are told, so that the same rows give the same tokens on any day. It is the
date Llama 3's templates themselves fall back to."""
PROBE = "the-answer"
APART_CHARACTERS, AROUND = 16 * 1024 * 1024, 32
"""Longest text of all parts of one row together, which grows with the square of the number of answers, and what of it a
template writes around each message, about."""
EXACT = 8
"""Answers of a conversation for each of which all before it is rendered; what is true of these is looked for in the
others by what the template writes for one turn."""


class Template(Protocol):
    """A compiled Jinja template."""

    globals: Any

    def render(self, **variables: Any) -> str: ...


@dataclass(frozen=True)
class Rendered:
    """A row's text, or a part's, up to the end of its last answer."""

    text: str
    messages: tuple[Message, ...]
    """What is said in it, the last answer last."""
    answers: tuple[tuple[int, int], ...]
    """Each answer that is learned, with its end of turn, as characters [start, end) of the text. The last ends with the
    text. None for a document."""


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
    loss_on: LossOn = LossOn.COMPLETION
    """What is learned of a row."""
    stop_token_ids: tuple[int, ...] = ()
    """The tokenizer's end-of-sequence token, and the one that ends a turn."""

    def render(self, row: Row) -> list[Rendered]:
        """The row as one text with all its answers. Where the template writes a turn in another way once more turns
        follow, as those of models that think leave out all thoughts but the last, as one text for each answer: what a
        served model sees when it comes to that answer; or, where all is learned, as the template writes the whole. A
        document is its text, without an answer. Raises InvalidRow where the template refuses the row, or an answer does
        not follow the prompt that asks for it."""
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
        """The text that asks for the next answer; `thinking`: for one that begins with a thought, where the template
        has a switch for it. Raises InvalidRow as `render` does."""
        return self._text(messages, thinking, prompt=True)

    def _found(self, messages: tuple[Message, ...], ends: list[int]) -> Rendered | None:
        """The messages with the answers that end the first `ends` of them; None where one cannot be told apart."""
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
        """Where in `whole` the answer lies that ends the first `end` messages, by the prompt that asks for it."""
        thinking = thinks(messages[end - 1].content)
        asked = self.prompt(messages[: end - 1], thinking)
        until = whole if end == len(messages) else self._text(messages[:end], thinking)
        return self._told_apart(asked, until, thinking, whole, 0)

    def _near(self, messages: tuple[Message, ...], end: int, whole: str, start: int) -> tuple[int, int] | None:
        """The same, by what the template writes for this turn after another one, of any text: in a conversation of
        thousands of turns, all before each would be rendered thousands of times. `start`: where the answer before it
        ends in `whole`."""
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
        """Where in `whole` the answer lies that `until` ends with, after the prompt `asked`; both stand at `at`."""
        answered = until.removesuffix(self.remainder)
        told_apart = until.endswith(self.end_of_turn + self.remainder)
        thought = not thinking or THOUGHT_END in answered[len(asked) :]
        if told_apart and thought and whole.startswith(asked, at) and whole.startswith(answered, at):
            return at + len(asked), at + len(answered)
        return None

    def _apart(self, messages: tuple[Message, ...]) -> Rendered:
        """The messages with the last answer alone."""
        if found := self._found(messages, [len(messages)]):
            return found
        thought, answer = parted(messages[-1].content)
        asked = self.prompt(messages[:-1], thinks(messages[-1].content))
        if asked.rstrip().endswith(THOUGHT):
            # The prompt begins the thought for the model, and the template, made for answers that were given before,
            # leaves it out: DeepSeek-R1's.
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
        """The message as templates take one: without a thought that is empty, and with one by itself where they ask for
        that and write it with the same marks; metrics look for those."""
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
    """Whether the answers, each with all that was said before, are longer than APART_CHARACTERS."""
    sizes = [0, *accumulate(len(message.content) + AROUND for message in messages)]
    return sum(sizes[end] for end in ends) > APART_CHARACTERS


def prompt_format(tokenizer: Any, loss_on: LossOn = LossOn.COMPLETION) -> PromptFormat:
    """The format a tokenizer asks for. Raises TrainerFailure ModelUnsupported where no answer could end."""
    if not tokenizer.eos_token:
        raise TrainerFailure(
            FailureReason.MODEL_UNSUPPORTED,
            "The tokenizer has no end-of-sequence token. Set eos_token in the model's tokenizer_config.json.",
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
        ) from error
    end = _end_of_turn(tokenizer, tail)
    stops = (tokenizer.eos_token_id, *tokenizer(end, add_special_tokens=False).input_ids[-1:])
    return PromptFormat(kind, source, bare.template, variables, end, tail[len(end) :] if end else tail, loss_on, stops)


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
