"""Settings of a launcher reach the job by its command line."""

import pytest

from milcore.cluster.__main__ import CONFIGS, _parser
from milcore.cluster.launch import config_flags
from milcore.config import Config, EncodeConfig, IngestConfig, pick

# every field has a value other than its default: a field that is added to the config belongs here too
GIVEN: dict[str, Config] = {
    "encode": EncodeConfig(encoder="resnet50,precision=bf16", name="resnet", patches_per_batch=7),
    "ingest": IngestConfig(
        mpp=1.25, patch_size=64, stride=48, border="pad", default_mpp=0.3, mpp_from_magnification=True, reader="tiff",
        codec="zstd", jpeg_quality=80, min_tissue=0.1, max_unreadable=3, stain_normalisation="macenko",
    ),
}  # fmt: skip


def parsed(step: str, flags: list[str]) -> Config:
    return pick(CONFIGS[step], vars(_parser().parse_args([step, "s3://b/store", *flags])))


@pytest.mark.parametrize("step", CONFIGS)
def test_every_setting_reaches_the_job(step: str) -> None:
    fields = CONFIGS[step].model_fields
    assert [name for name, field in fields.items() if getattr(GIVEN[step], name) == field.default] == []
    assert parsed(step, config_flags(GIVEN[step])) == GIVEN[step]


@pytest.mark.parametrize(("step", "flag"), [("encode", "--name"), ("ingest", "--default-mpp")])
def test_a_setting_that_is_none_has_no_flag(step: str, flag: str) -> None:
    kind = CONFIGS[step]
    assert flag not in config_flags(kind())
    assert parsed(step, config_flags(kind())) == parsed(step, []) == kind()
