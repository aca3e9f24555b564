"""Reads the texts that a module defines under a name."""

import ast
from collections.abc import Iterator, Mapping


def constants_of(module: ast.Module, name: str) -> dict[str, str]:
    """Return the texts that a module defines, by their full names. `name`: of the module."""
    texts: dict[str, str] = {}
    for constant, value in _assignments(module):
        if (text := _text(value, texts)) is not None:
            texts[constant] = text
    return {f"{name}.{constant}": text for constant, text in texts.items()}


def _assignments(module: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    for node in module.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                yield name, value
            case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)) if len(names) == len(values):
                for each, value in zip(names, values, strict=True):
                    if isinstance(each, ast.Name):
                        yield each.id, value


def _text(value: ast.expr, texts: Mapping[str, str]) -> str | None:
    """Return the text of an expression that consists of texts, or None. `texts`: those above it in the module."""
    match value:
        case ast.Constant(value=str(text)):
            return text
        case ast.FormattedValue(value=ast.Name(id=name)):
            return texts.get(name)
        case ast.JoinedStr(values=values):
            parts = [part for part in (_text(each, texts) for each in values) if part is not None]
            return "".join(parts) if len(parts) == len(values) else None
    return None
