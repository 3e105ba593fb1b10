"""Settings of a launcher reach the job by its command line."""

from milcore.cluster.__main__ import _parser
from milcore.cluster.launch import _encode_flags
from milcore.config import EncodeConfig, pick

# every field has a value other than its default: a field that is added to the config belongs here too
CONFIG = EncodeConfig(encoder="resnet50,precision=bf16", name="resnet", patches_per_batch=7)


def parsed(flags: list[str]) -> EncodeConfig:
    return pick(EncodeConfig, vars(_parser().parse_args(["encode", "s3://b/store", *flags])))


def test_every_setting_of_encode_reaches_the_job() -> None:
    fields = EncodeConfig.model_fields
    assert [name for name, field in fields.items() if getattr(CONFIG, name) == field.default] == []
    assert parsed(_encode_flags(CONFIG)) == CONFIG


def test_a_setting_that_is_none_has_no_flag() -> None:
    assert "--name" not in _encode_flags(EncodeConfig())
    assert parsed(_encode_flags(EncodeConfig())) == parsed([]) == EncodeConfig()
