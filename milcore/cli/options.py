"""The options of commands: one for every field of their config classes.

Flag, type, description and default come from the config class, so a field that is added there is an option at once.
"""

import functools
import inspect
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from milcore.config import (
    Config,
    TrainConfig,
    TuneConfig,
    check_program,
    choices_text,
    default_text,
    parse_config,
    sees_patches,
    upgrade_train,
    without_unread,
)
from milcore.errors import InputError
from milcore.runtime import storage
from milcore.runtime.progress import log_line

# flags that are not the field's name
FLAGS = {"poolings": "--pooling", "attention_formats": "--attention", "with_leave_one_out": "--without-each"}

Values = dict[str, object]
AsJson = Annotated[bool, typer.Option("--json", help="end with one JSON object on the last line of stdout")]
Store = Annotated[str, typer.Argument(metavar="STORE", help="patch store: a folder or s3:// URI")]
Run = Annotated[str, typer.Argument(metavar="RUN", help="run folder: a folder or s3:// URI; the same one resumes")]
ConfigFile = Annotated[str | None, typer.Option("--config", help="JSON of training settings, such as best.json")]


def options_of(
    *, leave_out: Mapping[str, str] | None = None, descriptions: Mapping[str, str] | None = None, **kinds: type[Config]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for every field of config classes.

    Each keyword names a parameter of the command and the class whose fields stand in its place on the command line; the
    command gets a dict of the values that were given. The other fields keep the config's default.

    Args:
        leave_out: fields without an option, and the reason.
        descriptions: those that differ from the config's.
        kinds: config classes by parameter.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        fields = {parameter: _fields(kind, leave_out or {}) for parameter, kind in kinds.items()}
        parameters = list(_parameters(command, kinds, fields, descriptions or {}))

        @functools.wraps(command)
        def run(**values: object) -> None:
            sections = {
                parameter: {name: value for name in names if (value := values.pop(name)) not in (None, [])}
                for parameter, names in fields.items()
            }
            command(**values, **sections)

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def _fields(kind: type[Config], leave_out: Mapping[str, str]) -> list[str]:
    return [name for name in kind.model_fields if name not in leave_out]


def _parameters(
    command: Callable[..., None],
    kinds: Mapping[str, type[Config]],
    fields: Mapping[str, list[str]],
    descriptions: Mapping[str, str],
) -> Iterator[inspect.Parameter]:
    """The command's own parameters, those of a config in its place."""
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name not in kinds:
            yield parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            continue
        kind = kinds[parameter.name]
        for name in fields[parameter.name]:
            required = kind.model_fields[name].is_required()
            help_and_flag = option(kind, name, descriptions.get(name))
            annotation: Any = Annotated.__class_getitem__((_type_of(kind.model_fields[name]), help_and_flag))  # type: ignore[attr-defined]
            default = inspect.Parameter.empty if required else None
            yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _type_of(field: FieldInfo) -> Any:
    """The type of an option; None where it is not given.

    A text for what the config parses, a list of texts for a tuple.
    """
    inner = list(_types_in(field.annotation))
    numbers = (kind for kind in (bool, int, float) if kind in inner)
    one: Any = str if Literal in inner else next(numbers, str)
    kind: Any = list[str] if _is_tuple(field) else one
    return kind if field.is_required() else kind | None


def _is_tuple(field: FieldInfo) -> bool:
    return tuple in _types_in(field.annotation)


def _types_in(annotation: Any) -> Iterator[Any]:
    """The type, and those inside of it, without what annotates them."""
    yield get_origin(annotation) or annotation
    inner = get_args(annotation)[:1] if get_origin(annotation) is Annotated else get_args(annotation)
    for each in inner:
        yield from _types_in(each)


def option(kind: type[Config], name: str, description: str | None = None) -> Any:
    """The option of a field: flag, description, allowed values and default."""
    field = kind.model_fields[name]
    silent = field.is_required() or any(field.default is none for none in (None, False, (), ""))
    default = "" if silent else f" [default: {default_text(field)}]"
    flag = FLAGS.get(name, f"--{name.replace('_', '-')}")
    either = f"{flag}/--no-{flag.removeprefix('--')}" if field.annotation is bool else flag
    text = f"{description or field.description}{choices_text(field)}{default}"
    return typer.Option(either, help=text, show_default=False, metavar="<str>" if _is_tuple(field) else None)


def train_config(file: str | None, flags: Values, poolings: tuple[str, ...] | None = None) -> TrainConfig:
    """Training settings of a file, overridden by those of the command line.

    Args:
        file: JSON; settings that no pooling reads, which files of earlier versions have, are left out and told.
        flags: of the command line.
        poolings: of a sweep; None: of one model.
    """
    values = upgrade_train(_read_settings(file)) if file is not None else {}
    pooling = flags.get("pooling", values.get("pooling", TrainConfig.model_fields["pooling"].default))
    values = _read_by([str(pooling)] if poolings is None else poolings, values)
    if "encoder" not in flags:
        check_program(str(values.get("encoder", "")), allow_program=False)
    if "encoder" in flags and sees_patches(str(flags["encoder"])):
        flags = {"features": None, **flags}  # those that the file names go
    if flags.get("features") is not None and "encoder" in values and sees_patches(str(values["encoder"])):
        flags = {"encoder": TrainConfig().encoder, **flags}
    return parse_config(TrainConfig, {**values, **flags}, of_sweep=poolings is not None)


def swept_poolings(sweep: Values) -> tuple[str, ...]:
    """Poolings of a sweep, from the options that were given."""
    default: tuple[str, ...] = TuneConfig.model_fields["poolings"].default
    given = sweep.get("poolings", default)
    return tuple(name.strip() for text in given for name in text.split(",")) if isinstance(given, list) else default


def _read_by(poolings: Collection[str], values: Values) -> Values:
    """Settings of a file that one of these poolings reads.

    A line tells any other that is not the default.
    """
    read = without_unread(values, poolings)
    for name, value in values.items():
        if name not in read and value != TrainConfig.model_fields[name].default:
            log_line(f"{name} {value!r} of --config is not used: not read by pooling {', '.join(poolings)}")
    return read


def _read_settings(uri: str) -> Values:
    allowed = "a JSON object of training settings, such as best.json"
    try:
        values = json.loads(storage.read_bytes(uri))
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"--config: expected a file, got nothing at {uri}; allowed: {allowed}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"--config: expected JSON, got another text at {uri} ({error}); allowed: {allowed}") from None
    if not isinstance(values, dict):
        raise InputError(f"--config: expected an object, got a {type(values).__name__} at {uri}; allowed: {allowed}")
    return values
