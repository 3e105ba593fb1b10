"""``milcore/__init__.pyi``, made from the verbs and the config classes: ``python -m tests.stub`` writes it.

A type checker and an editor see every setting as a keyword of its verb, with type and default.
"""

import ast
import inspect
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

import milcore
from milcore import config

STUB = Path(milcore.__file__).with_suffix(".pyi")
# names of types in the signatures of verbs -> the module that has them
ALIASES = {name: "milcore.config" for name, value in vars(config).items() if get_origin(value) is Literal}
API_NAMES = ("EncodeReport", "RunLike", "StoreLike", "SweepLike", "SyntheticCohort", "Uri")


def text() -> str:
    """The stub, as ruff formats it."""
    verbs = {name: getattr(milcore, name) for name in milcore._HOME if _is_verb(getattr(milcore, name))}
    signatures = "\n".join(_signature(name, verb) for name, verb in verbs.items())
    imports = [f"from {module} import {name} as {name}" for name, module in milcore._HOME.items() if name not in verbs]
    imports += [f"from {module} import {name}" for name, module in sorted(ALIASES.items()) if name in signatures]
    api_names = [name for name in API_NAMES if name in signatures and name not in milcore._HOME]
    lines = [
        "from collections.abc import Callable, Iterable, Sequence",
        *imports,
        f"from milcore.api import {', '.join(api_names)}",
        "from milcore.cluster.doctor.finding import Finding",
        "from milcore.ingestion.report import ImportReport",
        "__version__: str",
        signatures,
    ]
    return _formatted("\n".join(lines))


def _is_verb(value: object) -> bool:
    """True for a function that takes settings or belongs to the verbs."""
    return inspect.isfunction(value) and (value.__module__ == "milcore.api" or hasattr(value, "__settings__"))


def _signature(name: str, verb: Callable[..., object]) -> str:
    """The declaration of a verb: its own parameters, then the fields of its configs."""
    function = inspect.unwrap(verb)
    tree = ast.parse(inspect.getsource(function)).body[0]
    assert isinstance(tree, ast.FunctionDef)
    settings: dict[str, FieldInfo] = getattr(verb, "__settings__", {})
    configs = {
        parameter.name: str(parameter.annotation)
        for parameter in inspect.signature(verb).parameters.values()
        if str(parameter.annotation).endswith("Config | None")
    }
    own = tree.args.args + tree.args.kwonlyargs
    defaults = dict(zip([each.arg for each in tree.args.args][::-1], tree.args.defaults[::-1], strict=False))
    defaults |= {
        each.arg: value
        for each, value in zip(tree.args.kwonlyargs, tree.args.kw_defaults, strict=True)
        if value is not None
    }
    parameters = [_own(each, defaults.get(each.arg)) for each in own if each.arg not in configs]
    if tree.args.kwonlyargs or settings:
        parameters.insert(len(tree.args.args), "*")
    parameters += [f"{each}: {kind} = None" for each, kind in configs.items()]
    parameters += [_keyword(field_name, field) for field_name, field in settings.items()]
    return f"def {name}({', '.join(parameters)}) -> {_annotation(tree.returns)}: ..."


def _own(argument: ast.arg, default: ast.expr | None) -> str:
    shown = "" if default is None else f" = {_default(default)}"
    return f"{argument.arg}: {_annotation(argument.annotation)}{shown}"


def _default(default: ast.expr) -> str:
    """A default that is written out; dots for a name."""
    return "..." if isinstance(default, ast.Name) else ast.unparse(default)


def _annotation(node: ast.expr | None) -> str:
    assert node is not None
    return str(node.value) if isinstance(node, ast.Constant) and isinstance(node.value, str) else ast.unparse(node)


def _keyword(name: str, field: FieldInfo) -> str:
    kind = type_text(field.annotation)
    if field.is_required():
        return f"{name}: {kind} = ..."
    simple = isinstance(field.default, str | int | float | bool | None)
    return f"{name}: {kind} = {field.default!r}" if simple else f"{name}: {kind} = ..."


def type_text(annotation: Any) -> str:
    """A type as a call may give it: any sequence, or one text, for a tuple of texts."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation == config.UriText:
        return "Uri"
    if origin is Annotated:
        return type_text(arguments[0])
    if origin is Literal:
        named = [name for name in ALIASES if getattr(config, name) == annotation]
        return named[0] if named else f"Literal[{', '.join(map(repr, arguments))}]"
    if origin in {Union, types.UnionType}:
        return " | ".join(type_text(each) for each in arguments)
    if origin is tuple:
        return f"str | Sequence[{type_text(arguments[0])}]"
    return "None" if annotation is type(None) else str(annotation.__name__)


def _formatted(source: str) -> str:
    """The source as ruff formats and sorts it."""
    ruff = str(Path(sys.executable).with_name("ruff"))
    for arguments in (["check", "--select", "I", "--fix", "--quiet"], ["format", "--quiet"]):
        command = [ruff, *arguments, "--stdin-filename", str(STUB), "-"]
        source = subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout
    return source


if __name__ == "__main__":
    STUB.write_text(text())
