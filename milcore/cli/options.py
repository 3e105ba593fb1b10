"""The options of commands, and the settings that a command line gives.

Flag, description and default of an option come from the config class that holds the setting.
"""

from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from milcore.config import (
    Config,
    LaunchConfig,
    SplitConfig,
    TrainConfig,
    TuneConfig,
    parse_config,
    sees_patches,
)
from milcore.errors import InputError
from milcore.runtime import storage


def setting(kind: type[Config], name: str, *flags: str) -> Any:
    """The option of a setting: its flag, and its description and default from the config class."""
    field: FieldInfo = kind.model_fields[name]
    choices = [str(choice) for choice in _literals(field.annotation)]
    allowed = f" ({', '.join(choices)})" if choices else ""
    silent = field.is_required() or field.default in (None, False, ())
    default = "" if silent else f" [default: {_shown(field.default)}]"
    flag = flags or (f"--{name.replace('_', '-')}",)
    return typer.Option(*flag, help=f"{field.description}{allowed}{default}", show_default=False)


def _literals(annotation: object) -> list[object]:
    """The values of every Literal inside a type, in order."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [value for inner in get_args(annotation) for value in _literals(inner)]


def _shown(value: object) -> str:
    return ",".join(value) if isinstance(value, tuple) else f"{value}"


AsJson = Annotated[bool, typer.Option("--json", help="end with one JSON object on the last line of stdout")]
Store = Annotated[str, typer.Argument(metavar="STORE", help="patch store: a folder or s3:// URI")]
Run = Annotated[str, typer.Argument(metavar="RUN", help="run folder: a folder or s3:// URI; the same one resumes")]
Profile = Annotated[str, setting(LaunchConfig, "cluster_profile")]
RayAddress = Annotated[str, setting(LaunchConfig, "ray_address")]
Workers = Annotated[int, setting(LaunchConfig, "workers")]
UseGpu = Annotated[bool, setting(LaunchConfig, "use_gpu")]
Features = Annotated[str | None, setting(TrainConfig, "features")]
TrainableEncoder = Annotated[str | None, setting(TrainConfig, "encoder")]
BagUnit = Annotated[str | None, setting(TrainConfig, "bag")]
ActivationMemory = Annotated[float | None, setting(TrainConfig, "activation_mb")]
CacheMemory = Annotated[float | None, setting(TrainConfig, "cache_mb")]
PoolingLevel = Annotated[str | None, setting(TrainConfig, "level")]
Epochs = Annotated[int | None, setting(TrainConfig, "epochs")]
BatchSize = Annotated[int | None, setting(TrainConfig, "batch_size")]
Seed = Annotated[int | None, setting(TrainConfig, "seed")]
Splits = Annotated[str | None, typer.Option(help="splits.parquet to take over, of a sweep or another run")]
SplitSeed = Annotated[int | None, setting(SplitConfig, "split_seed")]
ConfigFile = Annotated[str | None, typer.Option("--config", help="JSON of training settings, such as best.json")]


def launch_config(options: dict[str, Any]) -> LaunchConfig:
    """Where to compute, checked."""
    return parse_config(LaunchConfig, given(LaunchConfig, options))


def train_config(file: str | None, flags: dict[str, object]) -> TrainConfig:
    """Training settings: the file's where there is one, with what the command line names in their place."""
    values = _read_settings(file) if file is not None else {}
    if "encoder" in flags and sees_patches(str(flags["encoder"])):
        flags = {"features": None, **flags}
    if flags.get("features") is not None and "encoder" in values and sees_patches(str(values["encoder"])):
        flags = {"encoder": TrainConfig().encoder, **flags}
    return parse_config(TrainConfig, {**values, **flags})


def sweep_settings(file: str | None, options: dict[str, Any]) -> dict[str, object]:
    """Settings of a sweep, and inside them those of the training its trials share."""
    train = train_config(file, given(TrainConfig, options))
    sweep = given(TuneConfig, options) | {"train": train.model_dump()}
    if "poolings" in sweep:
        sweep["poolings"] = tuple(str(sweep["poolings"]).split(","))
    return sweep


def _read_settings(uri: str) -> dict[str, object]:
    try:
        values = storage.read_json(uri)
    except FileNotFoundError:
        raise InputError(f"--config: nothing at {uri}; allowed: a JSON file of training settings") from None
    except ValueError as error:
        raise InputError(f"--config: {uri} is not JSON ({error}); allowed: a JSON object of settings") from None
    if not isinstance(values, dict):
        raise InputError(f"--config: {uri} holds a {type(values).__name__}; allowed: a JSON object of settings")
    return values


def given(kind: type[Config], options: dict[str, Any]) -> dict[str, object]:
    """The settings of a kind that the command line names; the others keep the config's default."""
    return {name: options[name] for name in kind.model_fields if options.get(name) is not None}
