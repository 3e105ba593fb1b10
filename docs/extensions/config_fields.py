"""Sphinx extension: the fields of a config class, each with type, range, default and description, from `config.py`."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from sphinx.application import Sphinx

# JSON schema keyword -> words before its value
BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
    "minItems": "length at least",
    "maxLength": "length at most",
}
TYPES = {"null": "none", "string": "text", "boolean": "true or false"}


def setup(app: Sphinx) -> dict[str, bool]:
    """Let autodoc list the fields of every config class in place of its signature."""
    app.connect("autodoc-process-docstring", _add_fields)
    app.connect("autodoc-process-signature", _without_signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def field_lines(model: type[BaseModel]) -> Iterator[str]:
    """The fields of a model as reST."""
    properties = model.model_json_schema()["properties"]
    for name, field in model.model_fields.items():
        yield f".. py:attribute:: {model.__name__}.{name}"
        if not field.is_required():
            yield f"   :value: {_text(field.default)}"
        description = (field.description or "").replace("*", r"\*")
        yield from ("", f"   {description}; *allowed*: {allowed(properties[name])}", "")


def allowed(schema: dict[str, Any]) -> str:
    """Type and range of a value, from its JSON schema, such as ``integer, at least 16, at most 4096``."""
    if "anyOf" in schema:
        return " or ".join(allowed(choice) for choice in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"``{choice}``" for choice in schema["enum"])
    if "$ref" in schema:
        return f"a {schema['$ref'].rpartition('/')[2]}"
    if schema["type"] == "array":
        return ", ".join([f"several, each {allowed(schema['items'])}", *_bounds(schema)])
    return ", ".join([TYPES.get(schema["type"], schema["type"]), *_bounds(schema)])


def _bounds(schema: dict[str, Any]) -> list[str]:
    return [f"{words} {schema[key]:.12g}" for key, words in BOUNDS.items() if key in schema]


def _text(default: object) -> str:
    return f"{type(default).__name__}()" if isinstance(default, BaseModel) else repr(default)


def _is_model(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _add_fields(*event: Any) -> None:
    _, _, _, kind, _, lines = event
    if _is_model(kind):
        lines += ["", *field_lines(kind)]


def _without_signature(*event: Any) -> tuple[str, str] | None:
    return ("", "") if _is_model(event[3]) else None
