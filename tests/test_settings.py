"""Every setting from one place: a field of a config is an option, and a parameter or a key of ``settings``."""

import json
from collections.abc import Mapping
from typing import Any, get_args

import pytest
import typer

from milcore.cli.main import app
from milcore.cli.options import FLAGS
from milcore.config import (
    NOT_IN_SETTINGS,
    OTHER_MEANING,
    AnnotationConfig,
    Config,
    EncodeConfig,
    EvaluateConfig,
    ImportConfig,
    IngestConfig,
    LaunchConfig,
    PipelineSettings,
    PredictConfig,
    ServeConfig,
    SplitConfig,
    TrainConfig,
    TuneConfig,
    parameter_default,
)
from milcore.errors import InputError
from pipeline import attention_mil, sweep

COMMANDS: dict[type[Config], tuple[str, ...]] = {
    IngestConfig: ("ingest",),
    AnnotationConfig: ("ingest", "evaluate"),
    ImportConfig: ("import",),
    EncodeConfig: ("encode",),
    SplitConfig: ("train", "tune"),
    TrainConfig: ("train", "tune"),
    TuneConfig: ("tune",),
    LaunchConfig: ("encode", "train", "tune"),
    EvaluateConfig: ("evaluate",),
    PredictConfig: ("predict",),
    ServeConfig: ("serve",),
}
# config -> its key in ``settings``
KEYS: dict[type[Config], str] = {
    IngestConfig: "ingest",
    AnnotationConfig: "annotations",
    EncodeConfig: "encode",
    SplitConfig: "split",
    TrainConfig: "train",
    TuneConfig: "tune",
    LaunchConfig: "launch",
}
# (command, field) without an option, and why
WITHOUT_OPTION = {
    ("tune", "train"): "its fields are options themselves",
    ("tune", "pooling"): "drawn from poolings",
    ("tune", "learning_rate"): "drawn between learning_rate_min and learning_rate_max",
    ("predict", "default_mpp"): "the option is --mpp",
    ("tune", "folds"): "objective_folds scores trials; the folds of a run are trained by milcore train",
    ("tune", "leave_one_site_out"): "as folds",
}
# fields that only some encoders allow
NEEDED_ENCODER = {"augment": "conv", "train_blocks": "uni"}
OPTIONS = [(command, kind) for kind, commands in COMMANDS.items() for command in commands]
# settings of one target
NEEDED_TARGET = {
    "hazard_intervals": {"target": "survival_hazard", "time": "t", "event": "e"},
    "huber_delta": {"target": "regression", "target_column": "t"},
}


def fields_without_option(command: str, kind: type[Config], exceptions: Mapping[tuple[str, str], str]) -> list[str]:
    """The fields that a command has no option for, nor a reason."""
    parameters = typer.main.get_command(app).commands[command].params  # type: ignore[attr-defined]
    flags = {parameter.name: parameter.opts for parameter in parameters}
    return [
        name
        for name in kind.model_fields
        if FLAGS.get(name, f"--{name.replace('_', '-')}") not in flags.get(name, [])
        and (command, name) not in exceptions
    ]


def value_other_than_the_default(kind: type[Config], name: str) -> object:
    """Some allowed value of a field that is not its default."""
    field = kind.model_fields[name]
    special: dict[str, object] = {
        "annotation_class": ["Tumor"],
        "annotation_origin": "slide",
        "encoder": "mlp" if kind is TrainConfig else "uni",
        "features": "other",
        "name": "other",
        "poolings": ["mean"],
        "search": ["dropout=0.1,0.2"],
        "stain_normalisation": "macenko",
        "splits": "splits.parquet",
        "augment": True,
        "train_blocks": 2,
    }
    if name in special:
        return special[name]
    choices = [choice for choice in get_args(field.annotation) if isinstance(choice, str) and choice != field.default]
    if choices:
        return choices[0]
    if isinstance(field.default, bool):
        return not field.default
    return field.default + 2 if isinstance(field.default, int) else (field.default or 0.2) * 0.5


def fields_out_of_reach(
    kind: type[Config], parameters: Mapping[str, Any], exceptions: Mapping[tuple[str, str], str]
) -> list[str]:
    """The fields that are neither a parameter of a pipeline nor taken by its ``settings``."""
    key, missing = KEYS[kind], []
    for name in kind.model_fields:
        if (name in parameters and (key, name) not in OTHER_MEANING) or (key, name) in exceptions:
            continue
        given = {key: {name: value_other_than_the_default(kind, name)}}
        given[key] |= {"encoder": NEEDED_ENCODER[name]} if name in NEEDED_ENCODER else NEEDED_TARGET.get(name, {})
        try:
            config = getattr(PipelineSettings({}, json.dumps(given)), key)
        except InputError:
            missing.append(name)
        else:
            missing += [] if getattr(config, name) != kind.model_fields[name].default else [name]
    return missing


@pytest.mark.parametrize(("command", "kind"), OPTIONS)
def test_every_field_is_an_option_of_its_command(command: str, kind: type[Config]) -> None:
    assert fields_without_option(command, kind, WITHOUT_OPTION) == []


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("pipeline", [attention_mil, sweep], ids=lambda each: each.name)
def test_every_field_is_a_parameter_or_a_key_of_settings(kind: type[Config], pipeline: Any) -> None:
    assert fields_out_of_reach(kind, pipeline.component_spec.inputs, NOT_IN_SETTINGS) == []


def test_every_exception_has_a_reason_and_is_needed() -> None:
    assert all(WITHOUT_OPTION.values())
    assert all(NOT_IN_SETTINGS.values())
    assert all(OTHER_MEANING.values())
    for command, name in WITHOUT_OPTION:
        kinds = [kind for kind in COMMANDS if command in COMMANDS[kind] and name in kind.model_fields]
        assert any(name in fields_without_option(command, kind, {}) for kind in kinds), (command, name)


def test_a_field_that_no_command_and_no_pipeline_knows_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wider(TrainConfig):
        added: int = 3

    assert fields_without_option("train", Wider, WITHOUT_OPTION) == ["added"]
    monkeypatch.setitem(KEYS, Wider, "train")
    assert fields_out_of_reach(Wider, attention_mil.component_spec.inputs, NOT_IN_SETTINGS) == ["added"]


@pytest.mark.parametrize(
    ("parameters", "settings"),
    [
        ({"epochs": 60}, {"train": {"warmup_epochs": 50}}),
        ({"learning_rate_max": 0.1}, {"tune": {"learning_rate_min": 0.05}}),
        ({"bag": "patient", "poolings": "noisy_or"}, {"train": {"level": "instance"}}),
    ],
)
def test_what_the_first_step_allows_every_later_step_takes(
    parameters: dict[str, object], settings: dict[str, object]
) -> None:
    """A field may be allowed only beside a parameter that some steps do not take."""
    text = json.dumps(settings)
    PipelineSettings(parameters, text).check()
    assert PipelineSettings({"mpp": 0.5, "patch_size": 256, "default_mpp": 0.0}, text).ingest == IngestConfig()
    without_training = PipelineSettings({"encoder": "uni", "workers": 3}, text)
    assert (without_training.encode.encoder, without_training.launch.workers) == ("uni", 3)


def test_settings_reach_the_configs_of_their_steps() -> None:
    configs = PipelineSettings(
        {"epochs": 7, "encoder": "uni", "default_mpp": 0.0, "poolings": "max,mean", "store_uri": "s3://b/store"},
        '{"train": {"hidden": 64}, "encode": {"patches_per_batch": 32}, "tune": {"search": ["dropout=0.1,0.2"]}}',
    )
    assert (configs.train.epochs, configs.train.hidden, configs.train.encoder) == (7, 64, "linear")
    assert (configs.encode.encoder, configs.encode.patches_per_batch) == ("uni", 32)
    assert configs.ingest.default_mpp is None
    assert configs.tune.poolings == ("max", "mean")
    assert configs.tune.search == ("dropout=0.1,0.2",)
    assert configs.tune.train == configs.train


def test_an_encoder_that_takes_patches_is_trained_without_features() -> None:
    assert PipelineSettings({"features": "efficientnet_lite0"}, '{"train": {"encoder": "conv"}}').train.features is None


def test_a_setting_beside_a_parameter_at_its_default_counts() -> None:
    assert (
        PipelineSettings({"epochs": parameter_default(TrainConfig, "epochs")}, '{"train": {"epochs": 9}}').train.epochs
        == 9
    )


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ("{", "settings: expected JSON such as"),
        ("[1]", "settings: expected an object of objects"),
        ('{"train": 3}', "settings: expected an object of objects"),
        (
            '{"evaluate": {}}',
            "settings: expected a config, got evaluate; allowed: ingest, annotations, encode, split, train, tune",
        ),
        ('{"launch": {"workers": 3}}', "settings: expected a config, got launch"),
        ('{"train": {"hiden": 1}}', "train.hiden: expected a setting, got 'hiden'; allowed: target, "),
        ('{"train": {"hidden": 0}}', "train.hidden: expected greater than 0, got 0"),
        (
            '{"train": {"epochs": 9}}',
            "settings: train.epochs: expected one value, got 9 in settings and 5 as a parameter",
        ),
        ('{"tune": {"train": {"hidden": 3}}}', "settings: tune.train cannot be set here: the key train holds them"),
        (
            '{"train": {"features": "mine"}}',
            "settings: train.features cannot be set here: they are those of the encode",
        ),
        (
            '{"train": {"hidden": 0, "dropout": 2}}',
            "train.hidden: expected greater than 0, got 0; train.dropout: expected",
        ),
        ('{"train": {"hidden": 8}, "train": {"dropout": 0.1}}', "settings: expected JSON such as"),
        ('{"tune": {"poolings": ["noisy_or"]}}', "tune.poolings: expected level instance with pooling noisy_or"),
        ('{"tune": {"poolings": []}}', "tune.poolings: expected at least 1 item"),
        ('{"train": {"weight_decay": Infinity}}', "train.weight_decay: expected a finite number, got inf"),
        ("[" * 100_000, "settings: expected JSON such as"),
    ],
)
def test_bad_settings_are_one_line(settings: str, line: str) -> None:
    with pytest.raises(InputError) as raised:
        PipelineSettings({"epochs": 5}, settings).check()
    assert str(raised.value).startswith(line)
    assert "\n" not in raised.value.line
