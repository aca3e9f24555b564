"""Reads the messages from the source: whole sentences, with the texts that can fill their placeholders.

A message is the finding and the remedy of a `TrainerFailure`, another finding (CLAUSES), or a string that is a whole
sentence. A part of a sentence is listed only below the messages that contain it."""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from finetune_api.reasons import FailureReason
from messages_constants import constants_of

WORDS = 3
"""A text with fewer words is a name, a key or a part of a sentence."""
DEPTH = 4
"""Most steps from a placeholder to the text that fills it: a variable, a function, its result."""
FINDINGS = {"TrainerFailure": (1, 2), "Conflict": (1, 2), "Obstacle": (0, 2)}
"""Calls with a finding and its remedy, and the positions of both."""
CLAUSES = {"Superseded": (0,), "ValueError": (0,), "InvalidRow": (0, 1), "suspicious_row": (1, 2)}
"""Calls with a finding that has no final period, and the positions of the finding and its detail."""
NO_MESSAGE = re.compile(r"\\[a-z(\[]|^[a-z_.]+=|^\s*<|^[\w.]+/[\w.]+ |%\(|^\$|^https?:|^\s*[,;:)]")
"""Patterns, markup, paths, formats, ends of sentences."""
SENTENCE_END = re.compile(r"(?<!\.\.)[.!?](\{[^{}]*\}|\[[^\]]*\])*$")
UNKNOWN = re.compile(r"^\{[^{}]*\}$")
Function = ast.FunctionDef | ast.AsyncFunctionDef
Values = Mapping[str, ast.expr]
"""The arguments of a call, by the names of the parameters."""


@dataclass(frozen=True, order=True)
class Message:
    """Template of a message, with placeholders in braces and optional text in square brackets."""

    module: str
    text: str
    remedy: str = ""
    """The message's own remedy."""
    reason: FailureReason | None = None
    parts: tuple[tuple[str, str], ...] = ()
    """Name of a placeholder, and a text that can fill it."""


@dataclass
class _Found:
    """What a text contains."""

    parts: dict[tuple[str, str], None] = field(default_factory=dict)
    nodes: set[int] = field(default_factory=set)
    """Identities of the string nodes."""


def messages_of(folders: Iterable[Path]) -> Iterator[Message]:
    """Yield the messages of all modules in the folders. Each is the root of its packages."""
    constants: dict[str, str] = {}
    modules = [
        _Module(ast.parse(path.read_text()), ".".join(path.relative_to(folder).with_suffix("").parts), constants)
        for folder in folders
        for path in sorted(folder.rglob("*.py"))
    ]
    for module in modules:
        constants |= constants_of(module.tree, module.name)
    wrappers = {f"{module.name}.{name}": made for module in modules for name, made in module.wrappers.items()}
    for module in modules:
        yield from module.messages(wrappers)


class _Module:
    def __init__(self, tree: ast.Module, name: str, constants: Mapping[str, str]) -> None:
        """`constants`: the texts that all modules define, by their full names. They need not be known yet."""
        self.tree, self.name, self._constants = tree, name, constants
        for parent in ast.walk(tree):
            for child in ast.iter_child_nodes(parent):
                child.parent = parent  # type: ignore[attr-defined]
        self._functions = {node.name: node for node in ast.walk(tree) if isinstance(node, Function)}
        self.wrappers = {name: made for name, node in self._functions.items() if (made := _only_call(node))}
        """Each function that only returns a failure, with the call that makes the failure."""
        self._imported = {
            alias.asname or alias.name: f"{node.module}.{alias.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }

    def _defined(self, node: ast.expr, here: bool = False) -> str | None:
        """Return the text of a name that another module defines, or None: of NAME or of module.NAME. `here`: or that
        this module defines."""
        match node:
            case ast.Name(id=name):
                return self._constants.get(self._imported.get(name, f"{self.name}.{name}" if here else ""))
            case ast.Attribute(value=ast.Name(id=module), attr=name):
                return self._constants.get(f"{self._imported.get(module)}.{name}")
        return None

    def messages(self, wrappers: Mapping[str, tuple[Function, ast.Call]]) -> Iterator[Message]:
        """Yield the messages of failures, and then all other sentences. `wrappers`: those of all modules, by their full
        names."""
        read = {id(node) for _, call in self.wrappers.values() for node in ast.walk(call)}
        for call in (node for node in ast.walk(self.tree) if isinstance(node, ast.Call) and id(node) not in read):
            full = self._imported.get(_called(call), f"{self.name}.{_called(call)}")
            function, made = wrappers.get(full, (None, call))
            positions = FINDINGS.get(_called(made)) or CLAUSES.get(_called(made), ())
            arguments = [made.args[position] for position in positions if position < len(made.args)]
            arguments += [keyword.value for keyword in made.keywords if keyword.arg == "remedy"]
            if arguments:
                found, values = _Found(), _arguments(function, call) if function else {}
                finding, *more = [self._only_text(each, values, found, DEPTH) for each in arguments]
                read |= found.nodes
                if _called(made) in CLAUSES and more:
                    finding, more = f"{finding} ({more[0]})", []
                if len(finding.split()) >= WORDS:
                    yield Message(self.name, finding, "".join(more), _reason_in(made), tuple(found.parts))
        yield from self._sentences(read)

    def _sentences(self, read: set[int]) -> Iterator[Message]:
        texts = []
        for node in ast.walk(self.tree):
            if _stands_alone(node):
                found = _Found()
                text = self._template(node, {}, found, DEPTH)
                texts.append((node, text, found))
                read |= found.nodes - {id(node)}
        for node, text, found in texts:
            if id(node) not in read and _is_message(node, text):
                parent = node.parent
                reason = _reason_in(parent) if isinstance(parent, ast.Tuple | ast.Call) else None
                yield Message(self.name, text.strip(), reason=reason, parts=tuple(found.parts))

    def _only_text(self, expression: ast.expr, values: Values, found: _Found, depth: int) -> str:
        """Return the text of an expression, in brackets if it can also be empty; a placeholder for several texts."""
        options = self._options(expression, values, found, depth)
        texts = [option for option in options if option]
        if len(texts) == 1:
            return texts[0] if len(options) == 1 else f"[{texts[0]}]"
        name = _name(expression)
        found.parts |= {(name, text): None for text in texts if len(text.split()) > 1}
        return f"{{{name}}}"

    def _template(self, node: ast.expr, values: Values, found: _Found, depth: int) -> str:
        """Return a string with a placeholder for each value in it, and remember its nodes."""
        found.nodes.add(id(node))
        if isinstance(node, ast.Constant):
            return " ".join(str(node.value).split(" "))
        assert isinstance(node, ast.JoinedStr)
        return "".join(
            self._only_text(part.value, values, found, depth) if isinstance(part, ast.FormattedValue) else part.value
            for part in node.values
        )

    def _options(
        self, node: ast.expr | None, values: Values, found: _Found, depth: int, at: int | None = None
    ) -> list[str]:
        """Return the texts that an expression can have: "" for no text, a placeholder for an unknown text. `at`: the
        position of the text in the expression, a tuple."""
        if node is None or (isinstance(node, ast.Constant) and not node.value):
            return [""]
        if isinstance(node, ast.Constant) and not isinstance(node.value, str):
            return [str(node.value)]
        inner: list[tuple[ast.expr | None, int | None]] = []
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
            return [self._template(node, values, found, depth)]
        if text := self._defined(node, here=depth < 2):
            return [text]
        if isinstance(node, ast.Call) and _called(node) == "join" and isinstance(node.func, ast.Name):
            return ["/".join(self._only_text(part, values, found, depth) for part in node.args)]  # of a URI
        if depth == 0:
            return [f"{{{_name(node)}}}"]
        if isinstance(node, ast.IfExp):
            inner = [(node.body, at), (node.orelse, at)]
        elif isinstance(node, ast.BoolOp):
            inner = [(value, at) for value in node.values[isinstance(node.op, ast.And) :]]
            inner += [(None, None)] * isinstance(node.op, ast.And)
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            inner = [(node.left, at), (None, None)]
        elif isinstance(node, ast.Tuple) and at is not None and at < len(node.elts):
            inner = [(node.elts[at], None)]
        elif isinstance(node, ast.Name) and node.id in values:
            return self._options(values[node.id], {}, found, depth - 1, at)
        elif isinstance(node, ast.Name):
            inner = [(value, at if place is None else place) for value, place in _assigned(node)]
            depth -= 1
        elif isinstance(node, ast.Dict):
            inner = [(value, at) for value in node.values]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            inner = [(node.func.value, at), *((default, at) for default in node.args[1:])]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "rstrip":
            inner = [(node.func.value, None)]
        elif isinstance(node, ast.Call) and (function := self._functions.get(_called(node))):
            returned = [each for each in _in_order(function) if isinstance(each, ast.Return)]
            inner, depth = [(each.value, at) for each in returned], depth - 1
        texts = [text for each, at in inner for text in self._options(each, values, found, depth, at)]
        if isinstance(node, ast.Name):  # its name says more than that of its unknown value
            texts = [UNKNOWN.sub(f"{{{_name(node)}}}", text) for text in texts]
        return list(dict.fromkeys(texts)) or [f"{{{_name(node)}}}"]


def _assigned(name: ast.Name) -> Iterator[tuple[ast.expr, int | None]]:
    """Yield each value that the function or the module assigns to a variable, with its position in a tuple."""
    scope: ast.AST = name
    while not isinstance(scope, ast.Module):
        scope = scope.parent  # type: ignore[attr-defined]
        if isinstance(scope, Function | ast.Module):
            statements = _in_order(scope) if isinstance(scope, Function) else scope.body
            for node in statements:
                targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
                for target in targets if isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr) else []:
                    names = target.elts if isinstance(target, ast.Tuple) else [target]
                    for position, each in enumerate(names):
                        if isinstance(each, ast.Name) and each.id == name.id and node.value is not None:
                            yield node.value, position if isinstance(target, ast.Tuple) else None


def _in_order(function: Function) -> list[ast.AST]:
    """Return the nodes of a function in the order of their lines."""
    return sorted(ast.walk(function), key=lambda node: getattr(node, "lineno", 0))


def _only_call(function: Function) -> tuple[Function, ast.Call] | None:
    """Return a function that only returns a failure, and the call that makes the failure; None for other functions."""
    last = function.body[-1]
    if len(function.body) > 2 or not isinstance(last, ast.Return) or not isinstance(last.value, ast.Call):
        return None
    return (function, last.value) if _called(last.value) in FINDINGS else None


def _arguments(function: Function, call: ast.Call) -> Values:
    """Return the arguments of a call, and the defaults of the others."""
    names = [each.arg for each in function.args.args]
    defaults = dict(zip(names[::-1], function.args.defaults[::-1], strict=False))
    return defaults | dict(zip(names, call.args, strict=False))


def _called(call: ast.expr) -> str:
    """Return the name of the function that a call calls, without its module or object; "" if it is no call."""
    if not isinstance(call, ast.Call):
        return ""
    return call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")


def _stands_alone(node: ast.AST) -> bool:
    """Whether a node is a string that is neither a docstring nor a part of a longer string."""
    if not isinstance(node, ast.JoinedStr) and not (isinstance(node, ast.Constant) and isinstance(node.value, str)):
        return False
    return not isinstance(node.parent, ast.Expr | ast.JoinedStr | ast.FormattedValue)  # type: ignore[union-attr]


def _is_message(node: ast.expr, text: str) -> bool:
    if len(text.split()) < WORDS or not text.isprintable() or NO_MESSAGE.search(text):
        return False
    parent = node.parent  # type: ignore[attr-defined]
    if isinstance(parent, ast.Attribute) and isinstance(getattr(parent.parent, "parent", None), ast.BinOp):
        return True  # a sentence whose period is added: "...".rstrip(".") + "."
    return isinstance(parent, ast.Yield) or bool(SENTENCE_END.search(text.rstrip()))


def _reason_in(node: ast.Call | ast.Tuple) -> FailureReason | None:
    for each in node.args if isinstance(node, ast.Call) else node.elts:
        if isinstance(each, ast.Attribute) and _name(each.value) == "FailureReason":
            return FailureReason[each.attr]
    return None


def _name(expression: ast.AST) -> str:
    """Return the last name in an expression, in words."""
    names = [each.attr if isinstance(each, ast.Attribute) else each.id for each in _named(expression)]
    return names[-1].replace("_", " ").strip() if names else "…"


def _named(node: ast.AST) -> list[ast.Attribute | ast.Name]:
    """Return the names in an expression, in their order. A method that is called is not a name."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return [name for part in (node.func.value, *node.args) for name in _named(part)]
    if isinstance(node, ast.Attribute):
        return [node]
    own: list[ast.Attribute | ast.Name] = [node] if isinstance(node, ast.Name) else []
    return own + [name for child in ast.iter_child_nodes(node) for name in _named(child)]
