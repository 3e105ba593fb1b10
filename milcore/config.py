"""Every setting of the system: its name, default, unit and range, in one place.

A name here is the name everywhere: CLI flag, pipeline parameter, component argument and field of ``config.json``.
Imports pydantic and the standard library only, so that compiling the pipeline needs neither torch nor ray.
"""

import contextlib
import difflib
import functools
import inspect
import json
import os
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Self, TypeVar, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from milcore.errors import InputError

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)

PoolingName = Literal[
    "max", "mean", "lse", "noisy_or", "noisy_and", "topk", "gem", "attention", "gated_attention", "additive",
    "multi_head_attention", "dsmil", "clam_sb", "clam_mb", "transmil", "dtfd",
]  # fmt: skip
# what a model predicts of a bag; each room has a table of them
Target = Literal["classification", "survival_cox", "survival_hazard", "regression"]
Distillation = Literal["afs", "maxmins"]
AllBags = Literal["all"]
Level = Literal["instance", "embedding"]
AttentionHeads = Literal["shared", "per_class"]
BagUnit = Literal["slide", "patient"]
Codec = Literal["jpeg", "zstd", "none", "passthrough"]
Border = Literal["drop", "pad"]
StainNormalisation = Literal["none", "macenko"]
ReaderName = Literal["tiff", "openslide", "flat"]
ReaderChoice = Literal["auto", "tiff", "openslide", "flat"]
ImportFormat = Literal["bags-npz", "patches-npz", "clam", "trident", "stamp", "pt", "parquet"]
PlaceInPatch = Literal["centre", "corner"]
Precision = Literal["fp32", "fp64", "bf16"]
ClassBalance = Literal["none", "weighted", "sampled"]
Schedule = Literal["cosine", "constant"]
EncoderName = Literal[
    "efficientnet_lite0", "resnet50", "phikon", "phikon-v2", "uni", "uni2-h", "virchow", "virchow2", "h-optimus-0",
    "h-optimus-1", "h0-mini", "gigapath", "midnight", "conch",
]  # fmt: skip
EncoderKind = Literal["torchscript", "onnx", "timm", "hf"]
TrainableEncoderName = Literal["linear", "mlp", "conv", "lenet5"]
FeatureForm = Literal["standardised", "signed_root", "both"]
SplitName = Literal["train", "val", "test"]
SplitBy = Literal["patient", "site"]
AttentionFormat = Literal["parquet", "png", "geojson", "ome-tiff", "zarr"]
LabelSource = Literal["run", "manifest"]
AnnotationOrigin = Literal["slide", "bounds"]

IMPORT_FORMATS: tuple[str, ...] = get_args(ImportFormat)
FORMATS_WITHOUT_LABELS: tuple[ImportFormat, ...] = ("clam", "trident", "stamp", "pt")
POOLING_NAMES: tuple[str, ...] = get_args(PoolingName)
SPLIT_NAMES: tuple[str, ...] = get_args(SplitName)
TARGETS: tuple[Target, ...] = get_args(Target)
SURVIVAL_TARGETS: tuple[Target, ...] = ("survival_cox", "survival_hazard")
# settings that name columns of the manifest, and the targets that need them
TARGETS_OF_COLUMNS: dict[str, tuple[Target, ...]] = {
    "time": SURVIVAL_TARGETS, "event": SURVIVAL_TARGETS, "target_column": ("regression",),
}  # fmt: skip
ATTENTION_FORMATS: tuple[AttentionFormat, ...] = get_args(AttentionFormat)
LABEL_SOURCES: tuple[LabelSource, ...] = get_args(LabelSource)
# their file is TorchScript, a program of its author
PROGRAM_ENCODERS = ("torchscript", "conch")
FEATURE_ENCODERS: tuple[TrainableEncoderName, ...] = ("linear", "mlp")


class PoolingScope(NamedTuple):
    """Levels, targets and settings of a pooling.

    Args:
        levels: that it is defined on.
        targets: that it serves.
        settings: of ``SETTING_READERS`` that it reads.
        is_placed: True where it reads the places of instances.
    """

    levels: tuple[Level, ...]
    targets: tuple[Target, ...]
    settings: tuple[str, ...] = ()
    is_placed: bool = False


_BOTH_LEVELS: tuple[Level, ...] = ("instance", "embedding")
_OF_CLASSES: tuple[Target, ...] = ("classification",)
_ATTENTION = ("attention_hidden", "attention_heads")
_CLAM = ("attention_hidden", "clam_instances", "clam_loss_weight")
# poolings of probabilities pool those of classes
POOLING_SCOPES: dict[PoolingName, PoolingScope] = {
    "max": PoolingScope(_BOTH_LEVELS, TARGETS),
    "mean": PoolingScope(_BOTH_LEVELS, TARGETS),
    "lse": PoolingScope(_BOTH_LEVELS, TARGETS, ("lse_sharpness",)),
    "noisy_or": PoolingScope(("instance",), _OF_CLASSES),
    "noisy_and": PoolingScope(("instance",), _OF_CLASSES, ("noisy_and_slope",)),
    "topk": PoolingScope(("instance",), _OF_CLASSES, ("topk_instances",)),
    "gem": PoolingScope(("embedding",), TARGETS),
    "attention": PoolingScope(_BOTH_LEVELS, TARGETS, _ATTENTION),
    "gated_attention": PoolingScope(_BOTH_LEVELS, TARGETS, _ATTENTION),
    "additive": PoolingScope(("embedding",), TARGETS, _ATTENTION),
    "multi_head_attention": PoolingScope(("embedding",), TARGETS, ("pooling_heads", "pooling_queries")),
    "dsmil": PoolingScope(("embedding",), _OF_CLASSES, ("attention_hidden",)),
    "clam_sb": PoolingScope(("embedding",), _OF_CLASSES, _CLAM),
    "clam_mb": PoolingScope(("embedding",), _OF_CLASSES, _CLAM),
    "transmil": PoolingScope(("embedding",), TARGETS, ("pooling_heads", "transmil_landmarks"), is_placed=True),
    "dtfd": PoolingScope(("embedding",), _OF_CLASSES, ("attention_hidden", "dtfd_groups", "dtfd_distillation")),
}
POOLING_LEVELS = {name: scope.levels for name, scope in POOLING_SCOPES.items()}
# settings that not every pooling reads, with the poolings that do
SETTING_READERS: dict[str, tuple[PoolingName, ...]] = {
    setting: tuple(name for name, scope in POOLING_SCOPES.items() if setting in scope.settings)
    for setting in dict.fromkeys(setting for scope in POOLING_SCOPES.values() for setting in scope.settings)
}

# limits, above all that a slide scanner or a user needs: input beyond them is refused before memory is taken for it
MAX_SLIDE_EDGE_PX = 2_000_000
MAX_SLIDE_GIGAPIXELS = 500
MAX_PATCH_EDGE_PX = 65_536
MAX_INSTANCES_PER_SLIDE = 50_000_000
# that are resampled to one patch; a worker holds one patch a thread
MAX_MEGAPIXELS_PER_PATCH = 300
# beside one another in the folder of a DICOM slide, which is read and copied as a whole
MAX_DICOM_FILES = 200
MAX_CLASSES = 1_000
MAX_ANNOTATION_MB = 200
# of features, an embedding or an attention network
MAX_WIDTH = 65_536
MAX_HEADS = 1_024
MAX_HAZARD_INTERVALS = 1_000
MAX_ENCODER_INPUT_PX = 16_384
# of one forward pass: patches times px of a patch
MAX_MEGAPIXELS_PER_BATCH = 4_000
MAX_FOLDS = 1_000
MAX_TRIALS = 100_000
MAX_EPOCHS = 1_000_000
MAX_WORKERS = 4_096
# requests that a service holds for a model; each may take its largest body of memory
MAX_QUEUE = 100_000
MAX_SETTINGS_KB = 64
# characters of a line of help on a setting
HELP_WIDTH = 100
# 63,000 px square; a larger heat map is drawn at half the scale
MAX_HEAT_MAP_MEGAPIXELS = 4_000
# of one array of one slide
MAX_ARRAY_GB = 64
# of a worker, where memory leaves that much
ACTIVATION_MB = 2048.0
# of ``config.json`` in runs, sweeps and folders of predictions
FOLDER_SCHEMA_VERSION = 2

# of TrainConfig, where they are not given
SURVIVAL_DEFAULTS: dict[str, object] = {"bag": "patient"}
# settings of classes, which have one value with another target: a bag has no class, and no instance a value of its own
ALLOWED_WITHOUT_CLASSES: dict[str, object] = {
    "class_balance": "none", "label_smoothing": 0.0, "level": "embedding", "attention_heads": "shared",
}  # fmt: skip

# settings that one target alone reads
SETTINGS_OF_TARGETS: dict[str, Target] = {"hazard_intervals": "survival_hazard", "huber_delta": "regression"}

C = TypeVar("C", bound="Config")
R = TypeVar("R")
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
# names a folder of a store
FeatureName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)]
# a name on one line, for programs and persons to compare
EncoderId = Annotated[str, Field(pattern=r"^[!-~]([ -~]*[!-~])?$", max_length=200)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


def _split_at(separator: str) -> Callable[[object], object]:
    """A validator that splits texts into the parts of a tuple.

    The command line and the pipelines give texts.
    """

    def parts(value: object) -> object:
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
            return value
        return tuple(part.strip() for text in texts for part in text.split(separator) if part.strip())

    return parts


def _path_text(value: object) -> object:
    """The text of a path."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _bags_of_a_step(value: object) -> object:
    """A number of bags, or ``all``."""
    text = str(value)
    if text == "all":
        return text
    if text.isascii() and text.isdecimal() and int(text) > 0:
        return int(text)
    raise ValueError(f"expected a number of bags, got {value!r}; allowed: 1, 2, … or all")


BatchSize = Annotated[int | AllBags, BeforeValidator(_bags_of_a_step)]
Names = Annotated[tuple[str, ...], BeforeValidator(_split_at(","))]
AttentionFormats = Annotated[tuple[AttentionFormat, ...], BeforeValidator(_split_at(","))]
UriText = Annotated[str, BeforeValidator(_path_text)]
PoolingNames = Annotated[tuple[PoolingName, ...], BeforeValidator(_split_at(","))]
# commas part the values of one axis
SearchAxes = Annotated[tuple[str, ...], BeforeValidator(_split_at(";"))]


@contextlib.contextmanager
def _one_line(kind: type[BaseModel], section: str = "") -> Iterator[None]:
    """Raise pydantic's error as an InputError of one line."""
    try:
        yield
    except ValidationError as error:
        raise InputError("; ".join(_problems(kind, error, section))) from None


class _ConfigClass(ModelMetaclass):
    """Class of the configs: wrong values given to one are one line."""

    if not TYPE_CHECKING:  # the types of a config's fields are those of pydantic

        def __call__(self, *values: object, **fields: object) -> Any:
            """Make a config.

            Raises:
                InputError: one line naming every field that is unknown or out of range.
            """
            with _one_line(self):
                return super().__call__(*values, **fields)


class Config(BaseModel, metaclass=_ConfigClass):
    """Base of all settings: frozen, and an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def check_encoder(encoder: str) -> str:
    """A spec string whose first word is an encoder.

    The rest is checked when it is loaded (``encoders/spec.py``).
    """
    names, kinds = get_args(EncoderName), get_args(EncoderKind)
    word = re.split(r"[@,:]", encoder, maxsplit=1)[0]
    if word in names or (word in kinds and encoder.startswith(f"{word}:")):
        return encoder
    raise ValueError(
        f"expected an encoder, got {encoder!r}; allowed: {', '.join(names)}, each with @URI for a copy of its weights, "
        f"or {', '.join(f'{kind}:…' for kind in kinds)}"
    )


def check_program(encoder: str, *, allow_program: bool) -> None:
    """Check that an encoder out of stored data is no program.

    One that the user names in the settings of a command is the user's own word.

    Raises:
        InputError: it is one: loading it would run code of whoever wrote the store, the run or the file.
    """
    if not allow_program and re.split(r"[@,:]", encoder, maxsplit=1)[0] in PROGRAM_ENCODERS:
        raise InputError(
            f"encoder: expected weights, got {encoder!r}, a TorchScript program that runs code of its author; allowed: "
            "with --allow-program, or as --encoder of a command; check where it comes from"
        )


def sees_patches(encoder: str) -> bool:
    """True where a trained encoder takes patches, false where it takes features."""
    return encoder not in FEATURE_ENCODERS


def label_source(text: str | None) -> LabelSource | None:
    """Parse the source of an evaluation's labels; None where none is named.

    Raises:
        InputError: there is no such source.
    """
    if text is None or text in LABEL_SOURCES:
        return text
    raise InputError(
        f"labels_from: expected where labels come from, got {text!r}; allowed: {', '.join(LABEL_SOURCES)}, or nothing"
    )


def _check_level(name: str, pooling: PoolingName, level: Level) -> None:
    levels = POOLING_LEVELS[pooling]
    if level not in levels:
        of_instances = "probabilities, and the columns of an embedding are none"
        raise ValueError(
            f"{name}: expected level {levels[0]} with pooling {pooling}, got level {level}; allowed: level "
            f"{levels[0]}; {pooling} combines {of_instances if levels == ('instance',) else 'embeddings'}"
        )


def _check_target(name: str, pooling: PoolingName, target: Target) -> None:
    """Refuse a pooling that does not serve a target.

    Before it asks for a level that the target refuses.
    """
    serving = [other for other, scope in POOLING_SCOPES.items() if target in scope.targets]
    if pooling not in serving:
        raise ValueError(
            f"{name}: expected a pooling that serves target {target}, got {pooling}; allowed: {', '.join(serving)}"
        )


def read_places(poolings: Collection[PoolingName]) -> bool:
    """True where one of the poolings reads the places of instances."""
    return any(POOLING_SCOPES[name].is_placed for name in poolings)


def without_unread(values: Mapping[str, Any], poolings: Collection[str] | None = None) -> dict[str, Any]:
    """Training settings without those that no pooling reads.

    Files of earlier versions hold such.

    Args:
        values: by name.
        poolings: of a sweep; None: that of the values.
    """
    of_model = [str(values.get("pooling", TrainConfig.model_fields["pooling"].default))]
    read_by = of_model if poolings is None else poolings
    return {name: value for name, value in values.items() if _is_read(name, read_by)}


def _is_read(setting: str, poolings: Collection[str]) -> bool:
    return setting not in SETTING_READERS or not set(poolings).isdisjoint(SETTING_READERS[setting])


def _check_read(train: "TrainConfig", poolings: Collection[str]) -> None:
    """Refuse settings with other values than their defaults that none of these poolings reads."""
    for name, readers in SETTING_READERS.items():
        value, default = getattr(train, name), TrainConfig.model_fields[name].default
        if value != default and not _is_read(name, poolings):
            raise ValueError(
                f"{name}: expected the default {default} with pooling {', '.join(poolings)}, which does not read it, "
                f"got {value}; allowed: others with pooling {', '.join(readers)}; drop it, or take one of these"
            )


def _check_heads(train: "TrainConfig") -> None:
    hidden, heads = train.hidden, train.pooling_heads
    if hidden % heads:
        divisors = [n for n in range(1, min(hidden, MAX_HEADS) + 1) if hidden % n == 0]
        raise ValueError(
            f"pooling_heads: expected a divisor of hidden {hidden}, got {heads}; allowed: "
            f"{', '.join(map(str, divisors))}"
        )


class IngestConfig(Config):
    """Settings of ingestion: from a slide to patches."""

    mpp: PositiveFloat = Field(0.5, description="target resolution in um/px")
    patch_size: int = Field(256, ge=16, le=4096, description="patch edge in px at the target mpp")
    stride: int = Field(0, ge=0, description="px at the target mpp from patch to patch (0: patch_size, edge to edge)")
    border: Border = Field(
        "drop", description="patches that reach over the slide's right or lower edge: left out, or white beyond it"
    )
    default_mpp: PositiveFloat | None = Field(
        None, description="um/px assumed for a slide that carries none (none: such a slide is quarantined)"
    )
    mpp_from_magnification: bool = Field(
        False,
        description="take 10 / magnification of the objective for the um/px of a slide that carries none (0.25 at 40x; "
        "scanners differ by up to a third)",
    )
    reader: ReaderChoice = Field("auto", description="what opens slides; auto takes the first that knows the format")
    codec: Codec = Field(
        "jpeg",
        description="how a patch is stored; zstd is lossless, passthrough keeps the slide's own JPEG tiles where they "
        "are exactly the patches and is jpeg elsewhere",
    )
    jpeg_quality: int = Field(90, ge=1, le=100, description="JPEG quality, chroma 4:4:4")
    min_tissue: Fraction = Field(0.5, description="smallest share of a tile's area that must be tissue")
    max_unreadable: int = Field(0, ge=0, description="unreadable tiles under tissue that a slide may have")
    stain_normalisation: StainNormalisation = Field(
        "none", description="macenko brings every slide's haematoxylin and eosin to one reference; for H&E only"
    )

    @model_validator(mode="after")
    def _what_is_passed_through_keeps_its_stains(self) -> Self:
        if self.stain_normalisation != "none" and self.codec == "passthrough":
            raise ValueError(
                f"codec: expected one that stores normalised pixels with stain_normalisation "
                f"{self.stain_normalisation}, got passthrough; allowed: jpeg, zstd, none"
            )
        return self


class AnnotationConfig(Config):
    """Classes of annotations that count, and the origin of their coordinates."""

    annotation_class: Names = Field(
        (), description="classes of outlines that count, commas between (none: all); Ignore* is always subtracted"
    )
    annotation_origin: AnnotationOrigin | None = Field(
        None,
        description="corner that annotations and the GeoJSON and OME-TIFF of attention begin at: the slide's, or that "
        "of its scanned bounds (none: the bounds, as QuPath shows a slide, but the slide for ASAP's XML)",
    )


class ImportConfig(Config):
    """Settings of an import: from instances made elsewhere to a store."""

    format: ImportFormat = Field(description="what made SOURCE")
    name: FeatureName = Field("imported", description="features/<name> to write")
    encoder_id: EncoderId | None = Field(
        None,
        description="what made the features, such as uni2-h at 0.5 um/px: a text that milcore predict compares (none: "
        "not recorded)",
    )
    labels: UriText | None = Field(
        None,
        description="CSV or Parquet with slide_id, label and optionally patient_id, uri, mpp, site, split, annotation; "
        f"for {', '.join(FORMATS_WITHOUT_LABELS)}, whose files hold no label",
    )
    positive: str | None = Field(None, description="class name that counts as positive (none: the later by name)")
    positive_instances: Names = Field(
        (), description="classes of patches-npz's cls that make an instance positive, commas between"
    )
    xy: PlaceInPatch = Field("centre", description="what xy of patches-npz says of a patch")
    patch_size_level0: PositiveFloat | None = Field(
        None, description="patch edge in level-0 px (none: as SOURCE says, else the step of its grid)"
    )

    @model_validator(mode="after")
    def _labels_stand_in_one_place(self) -> Self:
        if (self.format in FORMATS_WITHOUT_LABELS) != (self.labels is not None):
            apart = ", ".join(FORMATS_WITHOUT_LABELS)
            raise ValueError(
                f"labels: expected {'a table' if self.labels is None else 'none'} with format {self.format}, got "
                f"{self.labels!r}; allowed: a table with {apart}, none with the others, which hold their own; give or "
                "drop --labels"
            )
        return self

    @model_validator(mode="after")
    def _an_encoder_makes_features(self) -> Self:
        if self.encoder_id is not None and self.format == "patches-npz":
            raise ValueError(
                f"encoder_id: expected none with format patches-npz, got {self.encoder_id!r}; allowed: with formats "
                "of features; drop --encoder-id"
            )
        return self

    @model_validator(mode="after")
    def _classes_of_instances_stand_in_patches_npz(self) -> Self:
        if self.positive_instances and self.format != "patches-npz":
            raise ValueError(
                f"positive_instances: expected none with format {self.format}, got "
                f"{','.join(self.positive_instances)}; allowed: with patches-npz only; drop --positive-instances"
            )
        return self


class EncodeConfig(Config):
    """Settings of feature extraction by a frozen encoder."""

    encoder: str = Field(
        "efficientnet_lite0",
        description=f"the frozen encoder: NAME[@URI of its weights] ({', '.join(get_args(EncoderName))}), "
        "torchscript:URI, onnx:URI, timm:NAME[@URI] or hf:NAME_OR_URI; after it options such as "
        ",precision=bf16,mpp=any (docs/encoders.md)",
    )
    name: FeatureName | None = Field(
        None,
        description="features/<name> to write (none: the encoder's name, with a URI and the digest of its weights)",
    )
    patches_per_batch: PositiveInt = Field(
        64,
        le=MAX_WIDTH,
        description="patches in one forward pass of the encoder on a GPU; a CPU takes at most 16 on each core",
    )

    @field_validator("encoder")
    @classmethod
    def _names_an_encoder(cls, encoder: str) -> str:
        return check_encoder(encoder)


class SplitConfig(Config):
    """Settings of the split of patients or sites; with the manifest they determine it."""

    splits: UriText | None = Field(
        None, description="splits.parquet to take over, of a sweep or another run (none: patients are divided anew)"
    )
    split_seed: Seed = Field(0, description="seed of the patient-level split (not the training seed)")
    val_fraction: Fraction = Field(0.15, description="share of patients for model selection")
    test_fraction: Fraction = Field(0.30, description="share of patients kept for the final metrics")
    folds: int = Field(
        0,
        ge=0,
        le=MAX_FOLDS,
        description="cross-validation: so many models, each leaving out other patients (0: one model)",
    )
    split_by: SplitBy = Field(
        "patient",
        description="what no two splits or folds share: patients, or sites as well (column site of the manifest)",
    )
    leave_one_site_out: bool = Field(
        False, description="cross-validation with a fold for each site; split_by is site then"
    )

    @property
    def unit(self) -> SplitBy:
        """Unit that no two splits or folds share."""
        return "site" if self.leave_one_site_out else self.split_by

    @property
    def has_folds(self) -> bool:
        """True for a run of several models."""
        return self.folds > 0 or self.leave_one_site_out

    @model_validator(mode="after")
    def _has_a_fold_for_each_site_or_a_number(self) -> Self:
        if self.leave_one_site_out and self.folds:
            raise ValueError(
                f"leave_one_site_out: expected no number of folds beside it, got folds {self.folds}; allowed: one of "
                "them; drop the other"
            )
        return self

    @model_validator(mode="after")
    def _has_no_fold_or_several(self) -> Self:
        if self.folds == 1:
            raise ValueError(
                "folds: expected 0 or at least 2, got 1, which leaves every patient out; allowed: 0 (one model), 2 …"
            )
        return self

    @model_validator(mode="after")
    def _takes_one_split(self) -> Self:
        # folds of a split that is taken over are drawn by the seed, their validation patients by the fraction
        drawn = ("test_fraction",) if self.has_folds else ("split_seed", "val_fraction", "test_fraction")
        given = [f"{name} {getattr(self, name)}" for name in drawn if name in self.model_fields_set]
        if self.splits is not None and given:
            raise ValueError(
                f"splits: expected a split without {', '.join(given)}, got {self.splits!r}; allowed: to take a split "
                "over or to divide the patients anew; drop one of them"
            )
        return self

    @model_validator(mode="after")
    def _leaves_training_patients(self) -> Self:
        if self.val_fraction + self.test_fraction >= 1.0:
            raise ValueError(
                "val_fraction + test_fraction: expected a sum below 1, got "
                f"{self.val_fraction + self.test_fraction:g}, which leaves no patient to train on; allowed: 0 to <1"
            )
        return self


class TargetConfig(Config):
    """The target of a model: the quantity that it predicts of a bag."""

    target: Target = Field(
        "classification",
        description="predict the class of a bag, survival of a patient (a risk by Cox's proportional hazards, or "
        "hazards of intervals of time), or a number (regression)",
    )
    time: str | None = Field(
        None, description="manifest column: time to the event or to censoring, above 0, in one unit; for survival"
    )
    event: str | None = Field(
        None, description="manifest column: 1 where the event came at that time, 0 where censored; for survival"
    )
    target_column: str | None = Field(
        None, description="manifest column: the number that is predicted, in any unit; for regression"
    )

    @model_validator(mode="after")
    def _names_the_columns_of_its_target(self) -> Self:
        for name, targets in TARGETS_OF_COLUMNS.items():
            column = getattr(self, name)
            if self.target in targets and not column:
                together = "time and event together; name both" if self.target in SURVIVAL_TARGETS else "one of numbers"
                raise ValueError(
                    f"{name}: expected a column of the manifest with target {self.target}, got none; allowed: "
                    f"{together}"
                )
            if self.target not in targets and column is not None:
                raise ValueError(
                    f"{name}: expected none with target {self.target}, got {column!r}; allowed: with target "
                    f"{', '.join(targets)}"
                )
        if self.time is not None and self.time == self.event:
            raise ValueError(
                f"event: expected another column than time, got {self.event!r} for both; allowed: two columns"
            )
        return self


class TrainConfig(TargetConfig):
    """The MIL model and its training.

    Launch settings (workers, devices) are not here: they change no weight.
    """

    features: FeatureName | None = Field(
        "efficientnet_lite0", description="features/<name> of the store to train on (none: from patches)"
    )
    encoder: str = Field(
        "linear",
        description="trained with the model: linear and mlp on features; on patches conv, lenet5, or what milcore "
        "encode takes (but onnx), with its weights to begin with",
    )
    train_blocks: NonNegativeInt | None = Field(
        None, description="last blocks that learn of an encoder with weights of its own (none: all)"
    )
    feature_form: FeatureForm = Field(
        "standardised",
        description="what linear and mlp read of features: standardised by the training bags; the signed square "
        "root of that, which draws heavy tails in; or both side by side",
    )
    augment: bool = Field(
        False,
        description="flip, turn and re-stain (H&E) the patches of every training pass; for encoder conv, or one with "
        "weights of its own",
    )
    pooling: PoolingName = Field("gated_attention", description="how instances become a bag")
    level: Level = Field("embedding", description="pool instance probabilities or instance embeddings")
    bag: BagUnit = Field(
        "slide", description="a bag is a slide, or all slides of a patient (the default with a survival target)"
    )
    attention_heads: AttentionHeads = Field(
        "shared", description="one attention branch for all classes, or one per class (alike for two classes)"
    )
    lse_sharpness: PositiveFloat = Field(5.0, description="r of lse pooling: towards 0 the mean, upwards the maximum")
    noisy_and_slope: PositiveFloat = Field(10.0, description="a of noisy_and pooling, the slope at its threshold")
    topk_instances: PositiveFloat = Field(
        10.0, description="k of topk pooling, most probable instances that it averages: a count, or below 1 a share"
    )
    pooling_heads: PositiveInt = Field(
        4, le=MAX_HEADS, description="heads of multi_head_attention and transmil pooling, which divide hidden"
    )
    pooling_queries: PositiveInt = Field(
        1, le=MAX_HEADS, description="learnt queries of multi_head_attention pooling, each with all its heads"
    )
    clam_instances: PositiveInt = Field(
        8,
        le=MAX_WIDTH,
        description="k of clam_sb and clam_mb pooling: most attended, and least attended instances in their loss",
    )
    clam_loss_weight: Fraction = Field(
        0.3, description="weight of the loss of instances in that of clam_sb and clam_mb, whose rest is the bag's"
    )
    transmil_landmarks: PositiveInt = Field(
        256, le=MAX_HEADS, description="landmarks of transmil pooling's attention, means of so many runs of instances"
    )
    dtfd_groups: PositiveInt = Field(4, le=MAX_HEADS, description="pseudo-bags that dtfd pooling divides a bag into")
    dtfd_distillation: Distillation = Field(
        "afs",
        description="features that dtfd pooling distils of a pseudo-bag: its attention-weighted mean (afs), or the "
        "instances of largest and smallest class activation (maxmins)",
    )
    hazard_intervals: int = Field(
        4,
        ge=2,
        le=MAX_HAZARD_INTERVALS,
        description="intervals of time of target survival_hazard, which end at quantiles of the training patients' "
        "event times",
    )
    huber_delta: PositiveFloat = Field(
        1.0,
        description="error of target regression beyond which its Huber loss grows linearly, in standard deviations of "
        "the training bags' values",
    )
    hidden: PositiveInt = Field(512, le=MAX_WIDTH, description="width of the instance embedding")
    attention_hidden: PositiveInt = Field(256, le=MAX_WIDTH, description="width of the attention network")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.5, description="dropout on instance embeddings")
    instances_per_bag: NonNegativeInt = Field(
        0, description="most instances of a bag in a training pass, drawn anew in each (0: all)"
    )
    learning_rate: PositiveFloat = Field(2e-4, description="AdamW peak learning rate")
    weight_decay: float = Field(1e-2, ge=0.0, description="AdamW decoupled weight decay")
    schedule: Schedule = Field("cosine", description="the learning rate after warm-up: falling to nothing, or constant")
    warmup_epochs: float = Field(0.0, ge=0.0, description="epochs in which the learning rate rises to its peak")
    class_balance: ClassBalance = Field(
        "none",
        description="classes of unequal size: weigh losses by inverse class frequency (weighted), or draw every class "
        "equally often (sampled)",
    )
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0, description="share of a bag's label that the training loss spreads evenly over all classes"
    )
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0, description="decay per step of a moving average of the weights, then validated and published (0: none)"
    )
    epochs: PositiveInt = Field(40, le=MAX_EPOCHS, description="most passes over the training bags")
    patience: PositiveInt = Field(15, description="stop after this many epochs that do no better on validation")
    batch_size: BatchSize = Field(
        8,
        description="bags in one optimizer step, over all workers together, or all training bags; with target "
        "survival_cox a patient is compared with those at risk in the same step",
    )
    activation_mb: PositiveFloat | None = Field(
        None,
        description="memory for activations of one worker, MB: bags are packed up to it, a larger bag is recomputed in "
        f"chunks (none: an eighth of the worker's share of the memory limit, at most {ACTIVATION_MB:g})",
    )
    cache_mb: PositiveFloat | None = Field(
        None,
        description="instances one worker keeps in memory, MB; a bag above a quarter of it is read in chunks (none: a "
        "quarter of the worker's share of the memory limit)",
    )
    disk_cache_mb: NonNegativeFloat | None = Field(
        None,
        description="features of a remote store that the workers of a machine keep together in its folder of temporary "
        "files until they end, MB (0: none; none: none in a run, 8000 in a sweep with several trials at a time)",
    )
    clip_norm: PositiveFloat = Field(1.0, allow_inf_nan=True, description="largest global gradient norm (inf: any)")
    checkpoint_every: PositiveInt = Field(5, description="epochs between checkpoints")
    precision: Precision = Field("fp32", description="arithmetic of the forward and backward pass")
    seed: Seed = Field(0, description="seed of weights, bag order and dropout")

    @model_validator(mode="before")
    @classmethod
    def _takes_patches_where_the_encoder_does(cls, values: Any) -> Any:
        """No features where an encoder that takes patches is given without them."""
        if isinstance(values, dict) and isinstance(values.get("encoder"), str) and sees_patches(values["encoder"]):
            return {"features": None, **values}
        return values

    @model_validator(mode="before")
    @classmethod
    def _takes_the_defaults_of_its_target(cls, values: Any) -> Any:
        """Defaults of survival, where they are not given."""
        if isinstance(values, dict) and values.get("target") in SURVIVAL_TARGETS:
            return {**SURVIVAL_DEFAULTS, **values}
        return values

    @model_validator(mode="after")
    def _has_no_setting_of_another_target(self) -> Self:
        for name, target in SETTINGS_OF_TARGETS.items():
            value, default = getattr(self, name), type(self).model_fields[name].default
            if self.target != target and value != default:
                raise ValueError(
                    f"{name}: expected the default {default} with target {self.target}, which does not read it, got "
                    f"{value}; allowed: others with target {target}; drop it"
                )
        if self.target == "classification":
            return self
        _check_target("pooling", self.pooling, self.target)
        for name, allowed in ALLOWED_WITHOUT_CLASSES.items():
            value = getattr(self, name)
            if value != allowed:
                raise ValueError(
                    f"{name}: expected {allowed} with target {self.target}, got {value}; allowed: others with target "
                    "classification"
                )
        if self.target == "survival_cox" and self.batch_size == 1:
            raise ValueError(
                f"batch_size: expected bags to compare with each other with target {self.target}, got 1; allowed: 2, "
                "3, … or all"
            )
        return self

    @model_validator(mode="after")
    def _has_one_source_of_instances(self) -> Self:
        if (self.features is None) != sees_patches(self.encoder):
            raise ValueError(
                f"encoder: expected one that takes {'patches' if self.features is None else 'features'}, got "
                f"features={self.features!r} and encoder={self.encoder!r}; allowed: linear or mlp with features, any "
                "other encoder, such as conv or lenet5, without features (it takes patches)"
            )
        if self.augment and self.encoder in (*FEATURE_ENCODERS, "lenet5"):
            raise ValueError(
                f"augment: expected false with encoder {self.encoder}, got true; allowed: with conv, or an encoder "
                "with pretrained weights"
            )
        if self.feature_form != "standardised" and sees_patches(self.encoder):
            raise ValueError(
                f"feature_form: expected standardised with encoder {self.encoder}, got {self.feature_form}; allowed: "
                "others with linear or mlp"
            )
        if self.train_blocks is not None and self.encoder in get_args(TrainableEncoderName):
            raise ValueError(
                f"train_blocks: expected none with encoder {self.encoder}, got {self.train_blocks}; allowed: with an "
                "encoder that has pretrained weights"
            )
        return self

    @field_validator("encoder")
    @classmethod
    def _names_an_encoder(cls, encoder: str) -> str:
        if encoder in get_args(TrainableEncoderName):
            return encoder
        try:
            return check_encoder(encoder)
        except ValueError as error:
            raise ValueError(f"{error}; or trained from nothing: {', '.join(get_args(TrainableEncoderName))}") from None

    @model_validator(mode="after")
    def _warms_up_within_its_epochs(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs: expected fewer than the {self.epochs} epochs, got {self.warmup_epochs:g}; allowed: 0 "
                f"to below {self.epochs}"
            )
        return self

    @field_validator("topk_instances")
    @classmethod
    def _counts_whole_instances(cls, k: float) -> float:
        if k >= 1.0 and not k.is_integer():
            raise ValueError(f"expected a count or a share, got {k:g}; allowed: 1, 2, …, or above 0 and below 1")
        return k

    @model_validator(mode="after")
    def _divides_embeddings_into_heads(self) -> Self:
        if self.pooling in SETTING_READERS["pooling_heads"]:
            _check_heads(self)
        return self

    @model_validator(mode="after")
    def _pools_what_it_is_defined_on(self) -> Self:
        _check_level("level", self.pooling, self.level)
        return self

    @model_validator(mode="after")
    def _has_no_setting_of_another_pooling(self, info: ValidationInfo) -> Self:
        if not (info.context and info.context.get("of_sweep")):
            _check_read(self, (self.pooling,))
        return self


def _settings_of_sweep(value: Any, _: object) -> TrainConfig:
    """Training settings that trials share: any that one of the sweep's poolings reads."""
    return value if isinstance(value, TrainConfig) else parse_config(TrainConfig, value, "train", of_sweep=True)


class TuneConfig(Config):
    """A sweep over pooling, learning rate and any other training setting around one TrainConfig."""

    poolings: PoolingNames = Field(
        ("max", "mean", "attention", "gated_attention"), min_length=1, description="poolings to try, commas between"
    )
    learning_rate_min: PositiveFloat = Field(5e-5, description="lower end of the log-uniform learning-rate range")
    learning_rate_max: PositiveFloat = Field(1e-3, description="upper end of the log-uniform learning-rate range")
    trials: PositiveInt = Field(8, le=MAX_TRIALS, description="trials in all, dealt to the poolings in turn")
    tune_seed: Seed = Field(0, description="seed of what is drawn")
    search: SearchAxes = Field(
        (),
        description="other training settings to draw, each NAME=A,B,C (one of) or NAME=LOW..HIGH (uniform, with :log "
        "log-uniform); several are repeated, or parted by semicolons",
    )
    objective_folds: int = Field(
        0,
        ge=0,
        le=MAX_FOLDS,
        description="score a trial by its mean over so many folds of the patients outside the test split (0: by the "
        "validation split)",
    )
    train: Annotated[TrainConfig, WrapValidator(_settings_of_sweep)] = TrainConfig()

    @model_validator(mode="after")
    def _has_no_fold_or_several(self) -> Self:
        if self.objective_folds == 1:
            raise ValueError(
                "objective_folds: expected 0 or at least 2, got 1, which leaves nothing to train on; allowed: 0, 2 …"
            )
        return self

    @model_validator(mode="after")
    def _range_is_ordered(self) -> Self:
        if self.learning_rate_min > self.learning_rate_max:
            raise ValueError(
                f"learning_rate_min: expected at most learning_rate_max {self.learning_rate_max:g}, got "
                f"{self.learning_rate_min:g}; allowed: a lower end of the range below its upper end"
            )
        return self

    @model_validator(mode="after")
    def _poolings_fit_the_level(self) -> Self:
        for pooling in self.poolings:
            _check_target("poolings", pooling, self.train.target)
            _check_level("poolings", pooling, self.train.level)
        return self

    @property
    def drawn(self) -> tuple[str, ...]:
        """Names of the settings that are searched."""
        return tuple(text.partition("=")[0].strip() for text in self.search)

    @model_validator(mode="after")
    def _heads_divide_embeddings(self) -> Self:
        if _is_read("pooling_heads", self.poolings) and not {"hidden", "pooling_heads"} & set(self.drawn):
            _check_heads(self.train)
        return self

    @model_validator(mode="after")
    def _has_no_setting_of_another_pooling(self) -> Self:
        _check_read(self.train, self.poolings)
        for name in self.drawn:
            if not _is_read(name, self.poolings):
                raise ValueError(
                    f"search: expected settings that one of the poolings {', '.join(self.poolings)} reads, got {name}; "
                    f"allowed: {name} with pooling {', '.join(SETTING_READERS[name])}; drop it, or sweep one of these"
                )
        return self


class LaunchConfig(Config):
    """The machines and workers that compute a step; they change no result."""

    ray_address: str = Field(
        "local",
        description="local (Ray in this process), rayjob (a cluster that KubeRay makes for the step), "
        "http(s)://host:8265 (job on a standing cluster), or host:port of one",
    )
    cluster_profile: str = Field(
        "", description="YAML file that describes the clusters of rayjob (empty: the defaults)"
    )
    workers: int = Field(0, ge=0, le=MAX_WORKERS, description="Ray workers; 0 computes in this process without Ray")
    use_gpu: bool = Field(False, description="give each worker one GPU (NCCL); otherwise CPU (gloo)")

    @property
    def names_job(self) -> bool:
        """True where the address is that of a job.

        It runs on a cluster made for it, or a standing one.
        """
        return self.ray_address == "rayjob" or self.ray_address.startswith(("http://", "https://"))

    @property
    def is_job(self) -> bool:
        """True where a job's workers compute."""
        return self.names_job and self.workers > 0


class EvaluateConfig(Config):
    """Settings of an evaluation."""

    baselines: bool = Field(True, description="also train and show the rows the model has to beat")
    attention_formats: AttentionFormats = Field(
        ATTENTION_FORMATS, description="file formats of each test slide's attention"
    )
    with_leave_one_out: bool = Field(
        False, description="also the change of the log-odds without each instance; seconds a slide"
    )
    labels_from: LabelSource | None = Field(
        None,
        description="run or manifest: labels and patients to take where the store's manifest has others than at "
        "training (none: that is refused)",
    )
    allow_program: bool = Field(
        False,
        description="load an encoder that the run names and that is a TorchScript program: it runs its author's code",
    )
    use_gpu: bool = Field(False, description="compute on a CUDA device")


class PredictConfig(Config):
    """Settings of a prediction of new slides, or of a store."""

    default_mpp: PositiveFloat | None = Field(
        None, description="um/px of slides that carry none (none: as the run's cohort has it)"
    )
    annotation_origin: AnnotationOrigin = Field(
        "bounds", description="corner that coordinates in the GeoJSON and OME-TIFF of attention begin at"
    )
    attention_formats: AttentionFormats | None = Field(
        None, description="file formats of each slide's attention (none: all of slides, no attention of a store)"
    )
    features: FeatureName | None = Field(
        None, description="features/<name> of the store (none: those that the run was trained on); for a store"
    )
    same_encoder: bool = Field(
        False,
        description="vouch that the store's features are of the encoder that made the run's, where one of them names "
        "none; the predictions record it; for a store",
    )
    allow_program: bool = Field(
        False,
        description="load an encoder that the run names and that is a TorchScript program: it runs its author's code",
    )
    use_gpu: bool = Field(False, description="compute on a CUDA device")


class ServeConfig(Config):
    """Settings of a service of predictions."""

    host: str = Field(
        "127.0.0.1",
        description="address to listen at; one that other machines reach needs a token or --allow-anonymous",
    )
    port: int = Field(8080, ge=1, le=65535, description="TCP port to listen at")
    token_file: UriText | None = Field(
        None, description="file that holds the bearer token of requests (none: the environment's MILCORE_TOKEN)"
    )
    allow_anonymous: bool = Field(
        False, description="answer requests of other machines without a token: whoever reaches the port may ask"
    )
    replicas: int = Field(1, ge=1, le=MAX_WORKERS, description="processes with the weights, for each model")
    use_gpu: bool = Field(False, description="give each replica one GPU; otherwise an equal share of the CPUs")
    instances_per_batch: int = Field(
        8192,
        ge=1,
        le=MAX_INSTANCES_PER_SLIDE,
        description="bags that wait pass through the models together, up to so many instances; 1: each bag alone, so "
        "that no answer depends on others, to the last bit",
    )
    max_ongoing_requests: int = Field(
        8, ge=1, le=MAX_QUEUE, description="requests that a replica has at a time, in work or in its next batch"
    )
    max_queued_requests: int = Field(
        32, ge=0, le=MAX_QUEUE, description="further requests to each model that wait; beyond these the answer is 429"
    )
    timeout_s: PositiveFloat = Field(
        60.0, description="s that a request may take: 408 where it has not come whole by then, 504 without an answer"
    )
    max_request_mb: PositiveFloat = Field(256.0, description="largest body of a request, MB; a larger one gets 413")
    attention_instances: int = Field(
        10, ge=0, le=MAX_INSTANCES_PER_SLIDE,
        description="instances of highest attention in an answer, where the request names no number",
    )  # fmt: skip


class EncoderRecord(Config):
    """Frozen encoder that made features."""

    encoder: str = Field(description="its spec string")
    weights_digest: str = Field(description="sha256 of the weights' files")
    transform: str = Field("", description="all else that changes a feature: transform, tokens, precision, decoder")

    def differences(self, other: "EncoderRecord") -> list[str]:
        """Names of what makes other features; the same weights may lie elsewhere."""
        return [name for name in ("weights_digest", "transform") if getattr(self, name) != getattr(other, name)]


class InstanceOrigin(Config):
    """Settings that made the instances of a run, for new slides to follow.

    Several of a kind where slides of the cohort differ in them.
    """

    ingestion: tuple[IngestConfig, ...] = Field(description="of ingested slides")
    imports: tuple[str, ...] = Field(description="formats of imported slides")
    encoder: EncoderRecord | None = Field(description="of the features; none with patches or imported features")
    encoder_id: str | None = Field(None, description="of imported features: what made them, where the import names it")


class FolderSpec(Config):
    """The ``config.json`` of a folder that a command makes and resumes.

    Attributes:
        schema_version: of this file; absent in the first schema.
        milcore_version: that began the folder; another may go on.
        folders: names of the fields that hold the URI of another folder; in the file a local one is the path from this
            folder.
    """

    folders: ClassVar[tuple[str, ...]] = ()
    schema_version: int = FOLDER_SCHEMA_VERSION
    milcore_version: str = ""

    def with_folders(self, change: Callable[[str], str]) -> Self:
        """The same with the URIs of other folders changed."""
        return self.model_copy(update={name: change(getattr(self, name)) for name in self.folders})


class RunSpec(FolderSpec):
    """The ``config.json`` of a run folder.

    Written before training, and compared when the folder is used again.
    """

    folders: ClassVar[tuple[str, ...]] = ("store_uri",)
    store_uri: str
    classes: tuple[str, ...] = Field(max_length=MAX_CLASSES)
    instance_digest: str = Field(description="digest of the features (or patches) of every slide trained or tested on")
    splits_digest: str
    train: TrainConfig
    folds: int = Field(0, ge=0, le=MAX_FOLDS, description="models in folds/<k>; 0: one model in the run folder itself")
    origin: InstanceOrigin | None = Field(None, description="what made the instances; none in the first schema")


def upgrade_train(values: dict[str, Any]) -> dict[str, Any]:
    """Training settings that an earlier version stored, by the names of today.

    ``max_instances`` bounded memory and changed no result; an encoder of none was linear on features, conv on patches.
    """
    upgraded = {name: value for name, value in values.items() if name != "max_instances"}
    if "encoder" in upgraded and upgraded["encoder"] is None:
        upgraded["encoder"] = "conv" if upgraded.get("features", "") is None else "linear"
    return upgraded


def parse_config(kind: type[C], values: dict[str, object], section: str = "", *, of_sweep: bool = False) -> C:
    """Build a config from outside values.

    Args:
        kind: the config class.
        values: by field.
        section: key of the pipelines' ``settings`` that an error names before the field.
        of_sweep: True for training settings of a sweep, which checks that one of its poolings reads them.

    Raises:
        InputError: one line naming every field that is unknown or out of range.
    """
    with _one_line(kind, section):
        return kind.model_validate(values, context={"of_sweep": of_sweep})


def pick(kind: type[C], values: dict[str, object]) -> C:
    """Build a config from those of the values that are its settings.

    Raises:
        InputError: one line naming every field that is out of range.
    """
    return parse_config(kind, {name: values[name] for name in kind.model_fields if name in values})


def _problems(kind: type[BaseModel], error: ValidationError, section: str) -> Iterator[str]:
    """Every problem as ``NAME: expected …, got …; allowed: …``."""
    prefix = f"{section}." if section else ""
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            allowed = ", ".join(field for field in kind.model_fields if (section, field) not in NOT_IN_SETTINGS)
            message = f"expected a setting, got {name!r}; allowed: {allowed}"
        elif problem["type"] == "missing":
            message = "expected a value, got none"
        elif problem["type"] != "value_error":
            constraint = re.sub(r"^(be|have|match) ", "", message.partition(" should ")[2]) or message
            message = f"expected {constraint}, got {problem['input']!r}"
        yield f"{prefix}{name}: {message}" if name else f"{prefix}{message}"


def with_settings(
    leave_out: Mapping[str, str] | None = None, **kinds: type[Config]
) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Let a function take the fields of its configs as keyword arguments.

    Each keyword here names a parameter of the function and the class of its config. A call gives the config, or fields
    of it, or both, when the fields count; what it does not give keeps its default. A config whose class is the type of
    another's field goes into that one, and is no parameter of the function.

    Args:
        leave_out: fields that are no keyword, and the reason.
        kinds: config classes by parameter, one that goes into another before that.
    """

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        own = dict(inspect.signature(function).parameters)
        taken = own.keys() | (leave_out or {}).keys()
        owners = {name: at for at, kind in kinds.items() for name in kind.model_fields if name not in taken}
        fields = {name: kinds[at].model_fields[name] for name, at in owners.items()}

        @functools.wraps(function)
        def call(*values: Any, **keywords: Any) -> R:
            given: dict[str, dict[str, object]] = {at: {} for at in kinds}
            settings = [name for name in keywords if name not in own and name not in kinds]
            unknown = [name for name in settings if name not in owners and name not in (leave_out or {})]
            if unknown:
                raise InputError("; ".join(_unknown_keyword(name, [*own, *owners]) for name in unknown))
            for name in settings:
                if leave_out and name in leave_out:
                    raise InputError(
                        f"{name}: expected none in {function.__name__}, got {keywords[name]!r}; {leave_out[name]}"
                    )
                given[owners[name]][name] = keywords.pop(name)
            configs: dict[str, Config] = {}
            for at, kind in kinds.items():
                base = _values_of(at, kind, keywords.pop(at, None))
                for inner in configs.keys() & kind.model_fields.keys():
                    inner_base = base.get(inner, {})
                    base[inner] = inner_base | configs[inner].model_dump(exclude_unset=True)
                    configs[inner] = base[inner] = parse_config(kinds[inner], base[inner], of_sweep=True)
                of_sweep = any(at in other.model_fields for other in kinds.values())
                configs[at] = parse_config(kind, base | given[at], of_sweep=of_sweep)
            return function(*values, **keywords, **{at: config for at, config in configs.items() if at in own})

        parameters = [
            each.replace(default=None, annotation=f"{kinds[each.name].__name__} | None") if each.name in kinds else each
            for each in own.values()
        ]
        parameters += [
            inspect.Parameter(
                at, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=f"{kinds[at].__name__} | None"
            )
            for at in kinds.keys() - own.keys()
        ]
        if fields:
            parameters.append(inspect.Parameter("settings", inspect.Parameter.VAR_KEYWORD))
        call.__signature__ = inspect.signature(function).replace(parameters=parameters)  # type: ignore[attr-defined]
        call.__doc__ = _with_keywords(function.__doc__ or "", fields) if fields else function.__doc__
        call.__settings__ = fields  # type: ignore[attr-defined]
        return call

    return decorate


def _unknown_keyword(name: str, allowed: list[str]) -> str:
    nearest = difflib.get_close_matches(name, allowed, n=1)
    advice = f"; did you mean {nearest[0]}?" if nearest else ""
    return f"{name}: expected a setting, got {name!r}; allowed: {', '.join(allowed)}{advice}"


def _values_of(name: str, kind: type[Config], config: object) -> dict[str, Any]:
    """The fields that a config was given."""
    if config is None:
        return {}
    if not isinstance(config, kind):
        raise InputError(f"{name}: expected a {kind.__name__}, got {config!r}; allowed: one, or its fields as keywords")
    return config.model_dump(exclude_unset=True)


def _with_keywords(text: str, fields: Mapping[str, FieldInfo]) -> str:
    """A docstring with a section on the fields that are keywords."""
    lines = (textwrap.wrap(f"{name}: {_field_text(field)}", HELP_WIDTH) for name, field in fields.items())
    section = "\n".join(textwrap.indent("\n    ".join(each), " " * 8) for each in lines)
    ends = [place for title in ("Returns", "Raises") if (place := text.find(f"\n    {title}:\n")) >= 0]
    end = min(ends, default=len(text.rstrip()) + 1)
    return f"{text[:end]}\n    Keyword Args:\n{section}\n{text[end:]}"


def _field_text(field: FieldInfo) -> str:
    choices = choices_text(field)
    silent = field.is_required() or any(field.default is none for none in (None, False, (), ""))
    default = "" if silent else f" Default: {default_text(field)}."
    return f"{field.description}{choices}.{default}"


def choices_text(field: FieldInfo) -> str:
    """Values that a field may have, in brackets; empty where they are no list."""
    choices = ", ".join(str(choice) for choice in _literals(field.annotation))
    return f" ({choices})" if choices else ""


def default_text(field: FieldInfo) -> str:
    """The default of a field, tuples with commas."""
    return ",".join(field.default) if isinstance(field.default, tuple) else f"{field.default}"


def _literals(annotation: object) -> list[object]:
    """The values of every Literal inside a type, in order."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [value for inner in get_args(annotation) for value in _literals(inner)]


# fields that no key of the pipelines' ``settings`` may hold, and why
NOT_IN_SETTINGS = {
    ("split", "splits"): "the pipeline divides the patients of its own store",
    ("split", "folds"): "the pipeline trains one model; milcore train --folds makes several",
    ("split", "leave_one_site_out"): "the pipeline trains one model; milcore train --leave-one-site-out makes several",
    ("train", "features"): "they are those of the encode step, or the parameter of the pipeline that only sweeps",
    ("train", "pooling"): "the sweep draws it from poolings",
    ("train", "learning_rate"): "the sweep draws it between learning_rate_min and learning_rate_max",
    ("tune", "train"): "the key train holds them",
}
# fields that a sweep does not take, and why
NOT_IN_SWEEP = {
    "train": "its fields are options themselves",
    "pooling": "drawn from poolings",
    "learning_rate": "drawn from learning_rate_min to learning_rate_max",
    "folds": "objective_folds scores trials by folds; the folds of a run are trained by milcore train",
    "leave_one_site_out": "objective_folds scores trials by folds; those of sites are trained by milcore train",
}
# fields of a config that a pipeline's parameter of the same name does not mean
OTHER_MEANING = {("train", "encoder"): "a pipeline's encoder is the frozen one"}
SECTIONS: dict[str, type[Config]] = {
    "ingest": IngestConfig,
    "annotations": AnnotationConfig,
    "encode": EncodeConfig,
    "split": SplitConfig,
    "train": TrainConfig,
    "tune": TuneConfig,
}


def parameter_default(kind: type[Config], name: str) -> Any:
    """The default of a field as a pipeline's parameter.

    Tuples are one text, None is the zero of its type.
    """
    default = kind.model_fields[name].default
    if isinstance(default, tuple):
        return (";" if name == "search" else ",").join(default)
    return {"default_mpp": 0.0}.get(name, "") if default is None else default


class PipelineSettings:
    """The configs of a pipeline's steps, from its parameters and ``settings``.

    Each is checked when it is asked for: a step knows only the parameters that it takes, and a field may be allowed
    only beside another.

    Args:
        parameters: values by name; those that are fields of a config go into it, others are left alone.
        settings: empty, or JSON such as ``{"train": {"hidden": 256}, "encode": {"patches_per_batch": 32}}``.

    Raises:
        InputError: one line naming what is no JSON, unknown, out of range, or set both in settings and as a parameter.
    """

    def __init__(self, parameters: Mapping[str, object], settings: str) -> None:
        self._parameters, self._sections = parameters, _parse_sections(settings)

    @property
    def ingest(self) -> IngestConfig:
        """Settings of ingestion."""
        return parse_config(IngestConfig, self._values("ingest", IngestConfig), "ingest")

    @property
    def annotations(self) -> AnnotationConfig:
        """Settings of annotations, which ingestion checks and evaluation reads."""
        return parse_config(AnnotationConfig, self._values("annotations", AnnotationConfig), "annotations")

    @property
    def encode(self) -> EncodeConfig:
        """Settings of feature extraction."""
        return parse_config(EncodeConfig, self._values("encode", EncodeConfig), "encode")

    @property
    def split(self) -> SplitConfig:
        """Settings of the split of patients."""
        return parse_config(SplitConfig, self._values("split", SplitConfig), "split")

    @property
    def train(self) -> TrainConfig:
        """Settings of training, for the sweep.

        An encoder that takes patches is trained without features.
        """
        values = self._values("train", TrainConfig)
        if "encoder" in values and sees_patches(str(values["encoder"])):
            values["features"] = None
        default_bag = values.get("bag") == parameter_default(TrainConfig, "bag")
        if values.get("target") in SURVIVAL_TARGETS and default_bag and "bag" not in self._sections.get("train", {}):
            del values["bag"]
        return parse_config(TrainConfig, values, "train", of_sweep=True)

    @property
    def tune(self) -> TuneConfig:
        """Settings of the sweep, those of training among them."""
        return parse_config(TuneConfig, self._values("tune", TuneConfig) | {"train": self.train}, "tune")

    @property
    def launch(self) -> LaunchConfig:
        """Machines and workers; all of its fields are parameters."""
        return parse_config(LaunchConfig, self._values("launch", LaunchConfig))

    def check(self) -> None:
        """Refuse any bad setting, of whichever step."""
        for section in (*SECTIONS, "launch"):
            getattr(self, section)

    def _values(self, section: str, kind: type[Config]) -> dict[str, object]:
        """Values for a config: the settings' where they name a field, else the parameters'."""
        settings = {
            name: value for name, value in self._sections.get(section, {}).items() if name != "features" or value
        }
        for name in settings:
            if (section, name) in NOT_IN_SETTINGS:
                raise InputError(f"settings: {section}.{name} cannot be set here: {NOT_IN_SETTINGS[section, name]}")
        own = [name for name in kind.model_fields if (section, name) not in OTHER_MEANING]
        values = {name: self._parameters[name] for name in own if name in self._parameters}
        for name, value in values.items():
            if name in settings and value != parameter_default(kind, name):
                raise InputError(
                    f"settings: {section}.{name}: expected one value, got {settings[name]!r} in settings and {value!r} "
                    "as a parameter; allowed: one of them; drop the other"
                )
            if kind.model_fields[name].default is None and not value:
                values[name] = None
        return values | settings


def _parse_sections(settings: str) -> dict[str, dict[str, object]]:
    example = """'{"train": {"hidden": 256}}'"""
    if len(settings) > MAX_SETTINGS_KB * 1000:
        raise InputError(
            f"settings: expected JSON such as {example}, got {len(settings) // 1000} kB; allowed: {MAX_SETTINGS_KB} kB"
        )
    try:
        sections = json.loads(settings, object_pairs_hook=_without_repeats) if settings.strip() else {}
    except (ValueError, RecursionError) as error:
        raise InputError(f"settings: expected JSON such as {example}, got {settings[:200]!r} ({error})") from None
    if not isinstance(sections, dict) or not all(isinstance(section, dict) for section in sections.values()):
        raise InputError(f"settings: expected an object of objects such as {example}, got {settings[:200]!r}")
    unknown = ", ".join(name for name in sections if name not in SECTIONS)
    if unknown:
        raise InputError(f"settings: expected a config, got {unknown}; allowed: {', '.join(SECTIONS)}")
    return sections


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    repeated = {name for name, count in Counter(name for name, _ in pairs).items() if count > 1}
    if repeated:
        raise ValueError(f"{', '.join(sorted(repeated))} occurs more than once")
    return dict(pairs)
