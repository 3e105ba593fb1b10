"""Every setting of the system: its name, default, unit and range, in one place.

A name here is the name everywhere: CLI flag, pipeline parameter, component argument and field of ``config.json``.
Imports pydantic and the standard library only, so that compiling the pipeline needs neither torch nor ray.
"""

import re
from typing import Annotated, Literal, Self, TypeVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from milcore.errors import InputError

PoolingName = Literal["max", "mean", "lse", "noisy_or", "noisy_and", "attention", "gated_attention"]
Level = Literal["instance", "embedding"]
AttentionHeads = Literal["shared", "per_class"]
BagUnit = Literal["slide", "patient"]
Codec = Literal["jpeg", "zstd", "none", "passthrough"]
Border = Literal["drop", "pad"]
StainNormalisation = Literal["none", "macenko"]
ReaderName = Literal["tiff", "openslide", "flat"]
ReaderChoice = Literal["auto", "tiff", "openslide", "flat"]
ImportFormat = Literal["bags-npz", "patches-npz", "clam", "trident", "pt", "parquet"]
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
AttentionFormat = Literal["parquet", "png", "geojson", "ome-tiff", "zarr"]

IMPORT_FORMATS: tuple[str, ...] = get_args(ImportFormat)
FORMATS_WITHOUT_LABELS: tuple[ImportFormat, ...] = ("clam", "trident", "pt")
POOLING_NAMES: tuple[str, ...] = get_args(PoolingName)
SPLIT_NAMES: tuple[str, ...] = get_args(SplitName)
ATTENTION_FORMATS: tuple[AttentionFormat, ...] = get_args(AttentionFormat)
FEATURE_ENCODERS: tuple[TrainableEncoderName, ...] = ("linear", "mlp")
POOLINGS_OF_PROBABILITIES: tuple[PoolingName, ...] = ("noisy_or", "noisy_and")

C = TypeVar("C", bound="Config")
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class Config(BaseModel):
    """Base of all settings: frozen, and an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def check_encoder(encoder: str) -> str:
    """A spec string whose first word is an encoder; the rest is checked when it is loaded (``encoders/spec.py``)."""
    names, kinds = get_args(EncoderName), get_args(EncoderKind)
    word = re.split(r"[@,:]", encoder, maxsplit=1)[0]
    if word in names or (word in kinds and encoder.startswith(f"{word}:")):
        return encoder
    raise ValueError(
        f"no such encoder; allowed: {', '.join(names)}, each with @URI for a copy of its weights, or "
        f"{', '.join(f'{kind}:…' for kind in kinds)}"
    )


def sees_patches(encoder: str) -> bool:
    """Whether a trained encoder takes patches; else features."""
    return encoder not in FEATURE_ENCODERS


def _check_level(pooling: PoolingName, level: Level) -> None:
    if pooling in POOLINGS_OF_PROBABILITIES and level != "instance":
        raise ValueError(
            f"pooling {pooling} at {level} level; allowed: level instance; it combines probabilities, and the columns "
            "of an embedding are none"
        )


class IngestConfig(Config):
    """How a slide becomes patches."""

    mpp: PositiveFloat = Field(0.5, description="target resolution in um/px")
    patch_size: int = Field(256, ge=16, le=4096, description="patch edge in px at the target mpp")
    stride: int = Field(0, ge=0, description="px at the target mpp from patch to patch (0: patch_size, edge to edge)")
    border: Border = Field(
        "drop", description="patches that reach over the slide's right or lower edge: left out, or white beyond it"
    )
    default_mpp: PositiveFloat | None = Field(
        None, description="um/px assumed for a slide that carries none (none: such a slide is quarantined)"
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
                f"stain_normalisation {self.stain_normalisation} with codec passthrough, which stores the slide's own "
                "bytes; allowed: codec jpeg, zstd or none"
            )
        return self


class ImportConfig(Config):
    """How instances made elsewhere become a store."""

    format: ImportFormat = Field(description="what made SOURCE")
    name: str = Field("imported", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="features/<name> to write")
    labels: str | None = Field(
        None,
        description="CSV or Parquet with slide_id, label and optionally patient_id, uri, mpp, site, split, annotation; "
        "for clam, trident and pt, whose files hold no label",
    )
    positive: str | None = Field(None, description="class name that counts as positive (none: the later by name)")
    positive_instances: tuple[str, ...] = Field(
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
                f"format {self.format} got labels={self.labels!r}; allowed: a table of labels with {apart} and none "
                "with the others, which hold their own; give or drop --labels"
            )
        return self

    @model_validator(mode="after")
    def _classes_of_instances_stand_in_patches_npz(self) -> Self:
        if self.positive_instances and self.format != "patches-npz":
            raise ValueError(
                f"format {self.format} got positive_instances={','.join(self.positive_instances)}; allowed: with "
                "patches-npz only; drop --positive-instances"
            )
        return self


class EncodeConfig(Config):
    """How patches become frozen features."""

    encoder: str = Field(
        "efficientnet_lite0",
        description=f"the frozen encoder: NAME[@URI of its weights] ({', '.join(get_args(EncoderName))}), "
        "torchscript:URI, onnx:URI, timm:NAME[@URI] or hf:NAME_OR_URI; after it options such as "
        ",precision=bf16,mpp=any (README)",
    )
    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="features/<name> to write (none: the encoder's name, with a URI and the digest of its weights)",
    )
    patches_per_batch: PositiveInt = Field(
        64, description="patches in one forward pass of the encoder on a GPU; a CPU takes at most 16 on each core"
    )

    @field_validator("encoder")
    @classmethod
    def _names_an_encoder(cls, encoder: str) -> str:
        return check_encoder(encoder)


class SplitConfig(Config):
    """How patients are divided; a function of the manifest and these values only."""

    splits: str | None = Field(
        None, description="splits.parquet to take over, of a sweep or another run (none: patients are divided anew)"
    )
    split_seed: Seed = Field(0, description="seed of the patient-level split (not the training seed)")
    val_fraction: Fraction = Field(0.15, description="share of patients for model selection")
    test_fraction: Fraction = Field(0.30, description="share of patients kept for the final metrics")
    folds: int = Field(
        0, ge=0, description="cross-validation: so many models, each leaving out other patients (0: one model)"
    )

    @model_validator(mode="after")
    def _has_no_fold_or_several(self) -> Self:
        if self.folds == 1:
            raise ValueError("folds 1 would leave every patient out; allowed: 0 (one model) or at least 2")
        return self

    @model_validator(mode="after")
    def _leaves_training_patients(self) -> Self:
        if self.val_fraction + self.test_fraction >= 1.0:
            raise ValueError(
                f"val_fraction + test_fraction = {self.val_fraction + self.test_fraction:g} leaves no patient to train "
                "on; allowed: a sum below 1"
            )
        return self


class TrainConfig(Config):
    """The MIL model and how it is trained. Launch settings (workers, devices) are not here: they change no weight."""

    features: str | None = Field(
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
    bag: BagUnit = Field("slide", description="a bag is a slide, or all slides of a patient")
    attention_heads: AttentionHeads = Field(
        "shared", description="one attention branch for all classes, or one per class (alike for two classes)"
    )
    lse_sharpness: PositiveFloat = Field(5.0, description="r of lse pooling: towards 0 the mean, upwards the maximum")
    noisy_and_slope: PositiveFloat = Field(10.0, description="a of noisy_and pooling, the slope at its threshold")
    hidden: PositiveInt = Field(512, description="width of the instance embedding")
    attention_hidden: PositiveInt = Field(256, description="width of the attention network")
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
    epochs: PositiveInt = Field(40, description="most passes over the training bags")
    patience: PositiveInt = Field(15, description="stop after this many epochs that do no better on validation")
    batch_size: PositiveInt = Field(8, description="bags in one optimizer step, over all workers together")
    activation_mb: PositiveFloat = Field(
        2048.0,
        description="memory for activations of one worker, MB: bags are packed up to it, a larger bag is recomputed in "
        "chunks",
    )
    cache_mb: PositiveFloat = Field(
        4096.0, description="instances one worker keeps in memory, MB; a bag above a quarter of it is read in chunks"
    )
    clip_norm: PositiveFloat = Field(1.0, description="largest global gradient norm")
    checkpoint_every: PositiveInt = Field(5, description="epochs between checkpoints")
    precision: Precision = Field("fp32", description="arithmetic of the forward and backward pass")
    seed: Seed = Field(0, description="seed of weights, bag order and dropout")

    @model_validator(mode="after")
    def _has_one_source_of_instances(self) -> Self:
        if (self.features is None) != sees_patches(self.encoder):
            raise ValueError(
                f"got features={self.features!r} and encoder={self.encoder!r}; allowed: linear or mlp with "
                "features, any other encoder, such as conv or lenet5, without features (it sees patches)"
            )
        if self.augment and self.encoder in (*FEATURE_ENCODERS, "lenet5"):
            raise ValueError(f"augment with encoder {self.encoder}; allowed: conv, or one with weights of its own")
        if self.feature_form != "standardised" and sees_patches(self.encoder):
            raise ValueError(f"feature_form {self.feature_form} with encoder {self.encoder}; allowed: linear or mlp")
        if self.train_blocks is not None and self.encoder in get_args(TrainableEncoderName):
            raise ValueError(f"train_blocks with encoder {self.encoder}; allowed: an encoder with weights of its own")
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
                f"warmup_epochs {self.warmup_epochs:g} of {self.epochs} epochs; allowed: fewer than all of them"
            )
        return self

    @model_validator(mode="after")
    def _pools_what_it_is_defined_on(self) -> Self:
        _check_level(self.pooling, self.level)
        return self


class TuneConfig(Config):
    """A sweep over pooling, learning rate and any other training setting around one TrainConfig."""

    poolings: tuple[PoolingName, ...] = Field(
        ("max", "mean", "attention", "gated_attention"), min_length=1, description="poolings to try"
    )
    learning_rate_min: PositiveFloat = Field(5e-5, description="lower end of the log-uniform learning-rate range")
    learning_rate_max: PositiveFloat = Field(1e-3, description="upper end of the log-uniform learning-rate range")
    trials: PositiveInt = Field(8, description="trials in all, dealt to the poolings in turn")
    tune_seed: Seed = Field(0, description="seed of what is drawn")
    search: tuple[str, ...] = Field(
        (),
        description="other training settings to draw, each NAME=A,B,C (one of) or NAME=LOW..HIGH (uniform, with :log "
        "log-uniform)",
    )
    objective_folds: int = Field(
        0,
        ge=0,
        description="score a trial by its mean over so many folds of the patients outside the test split (0: by the "
        "validation split)",
    )
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _has_no_fold_or_several(self) -> Self:
        if self.objective_folds == 1:
            raise ValueError("objective_folds 1 leaves nothing to train on; allowed: 0 or at least 2")
        return self

    @model_validator(mode="after")
    def _range_is_ordered(self) -> Self:
        if self.learning_rate_min > self.learning_rate_max:
            raise ValueError(
                f"learning_rate_min {self.learning_rate_min:g} is above learning_rate_max {self.learning_rate_max:g}"
            )
        return self

    @model_validator(mode="after")
    def _poolings_fit_the_level(self) -> Self:
        for pooling in self.poolings:
            _check_level(pooling, self.train.level)
        return self


class LaunchConfig(Config):
    """Where and on how many workers a step computes; changes no result."""

    ray_address: str = Field(
        "local",
        description="local (Ray in this process), rayjob (a cluster that KubeRay makes for the step), "
        "http(s)://host:8265 (job on a standing cluster), or host:port of one",
    )
    cluster_profile: str = Field(
        "", description="YAML file that describes the clusters of rayjob (empty: the defaults)"
    )
    workers: int = Field(0, ge=0, description="Ray workers; 0 computes in this process without Ray")
    use_gpu: bool = Field(False, description="give each worker one GPU (NCCL); otherwise CPU (gloo)")


class RunSpec(Config):
    """What a run folder is: written to its ``config.json`` before training, and compared when the folder is reused."""

    milcore_version: str
    store_uri: str
    classes: tuple[str, ...]
    instance_digest: str = Field(description="digest of the features (or patches) of every slide trained or tested on")
    splits_digest: str
    train: TrainConfig
    folds: int = Field(0, ge=0, description="models in folds/<k>; 0: one model in the run folder itself")


def parse_config(kind: type[C], values: dict[str, object]) -> C:
    """Build a config from outside values.

    Raises:
        InputError: one line naming every field that is unknown or out of range.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise InputError(_one_line(kind, error)) from None


def pick(kind: type[C], values: dict[str, object]) -> C:
    """Build a config from those of the values that are its settings; other names are left alone.

    Raises:
        InputError: one line naming every field that is out of range.
    """
    return parse_config(kind, {name: values[name] for name in kind.model_fields if name in values})


def _one_line(kind: type[Config], error: ValidationError) -> str:
    problems = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = f"unknown setting; allowed: {', '.join(kind.model_fields)}"
        got = "" if not name or problem["type"] == "extra_forbidden" else f" (got {problem['input']!r})"
        problems.append(f"{name}: {message}{got}" if name else message)
    return "; ".join(problems)
