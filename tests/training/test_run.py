"""A run folder says what it is, resumes the same run, refuses another, and publishes a model that reads back."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import safetensors
import torch

from milcore import __version__
from milcore.api import train
from milcore.cli.info import describe
from milcore.cli.options import swept_poolings, train_config
from milcore.config import ImportConfig, SplitConfig, TrainConfig, TuneConfig, parse_config
from milcore.errors import InputError, StoreError
from milcore.evaluation.prediction_folder import PredictionsSpec
from milcore.ingestion.imports.import_cohort import import_source
from milcore.mil.bags.load import load_bags
from milcore.mil.model import make_model
from milcore.runtime import storage
from milcore.store.slide_record import SlideRecord
from milcore.store.store import PatchStore
from milcore.training.context import LocalContext
from milcore.training.model_file import model_bytes
from milcore.training.run import prepare_run, train_run
from milcore.training.run_files import publish
from milcore.training.run_folder import Run, claim_folder, run_damage
from milcore.training.sweep import Sweep, prepare_sweep
from tests.cohorts import relabel, rewrite_json, write_features, write_store
from tests.ingestion.imports.made import features_of, write_h5

TRAIN = TrainConfig(features="mean_rgb", hidden=8, attention_hidden=4, epochs=3, batch_size=4)
CPU = torch.device("cpu")


@pytest.fixture
def store_uri(tmp_path: Path) -> str:
    uri = str(tmp_path / "store")
    write_features(write_store(uri))
    return uri


def trained(store_uri: str, run_uri: str, config: TrainConfig = TRAIN) -> None:
    prepare_run(store_uri, run_uri, config, SplitConfig())
    train_run(run_uri, LocalContext(storage.join(run_uri, "checkpoints"), CPU))


def test_a_published_model_reads_back_and_speaks_of_every_bag(store_uri: str, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    trained(store_uri, run)
    spec, (model,) = Run(run).spec(), Run(run).models()
    bags = load_bags(spec.store_uri, spec.train, Run(run).splits())
    assert len(bags) == 12
    for batch in bags.batches([[0, 1], [2]]):
        output = model.predict_bags(batch)
        torch.testing.assert_close(output.output.exp().sum(1), torch.ones(len(batch.labels)))
        torch.testing.assert_close(output.attention.sum(), torch.tensor(float(len(batch.labels))))


CSV = Path(__file__).resolve().parents[1] / "cases" / "csv"


@pytest.mark.parametrize(
    ("labels", "line"),
    [
        # it can be ingested or imported; a patient who is one bag has one class
        ("patient2labels.csv", "bag: expected slides of one class per patient where a patient is a bag, got several"),
        ("one_class.csv", "splits: expected slides of all 2 classes in the training split, got none of class 0"),
    ],
)  # fmt: skip
def test_labels_that_a_store_may_have_but_no_training(tmp_path: Path, labels: str, line: str) -> None:
    for name in "ab":
        write_h5(tmp_path / "made" / f"{name}.h5", features_of(0))
    store = str(tmp_path / "store")
    assert import_source(str(tmp_path / "made"), store, ImportConfig(format="clam", labels=str(CSV / labels))).ok
    everything_trains = SplitConfig(val_fraction=0.0, test_fraction=0.0)
    train = TRAIN.model_copy(update={"features": "imported", "bag": "patient"})
    tune = TuneConfig(train=train, trials=1)
    with pytest.raises(InputError) as raised:
        prepare_run(store, str(tmp_path / "run"), train, everything_trains)
    assert raised.value.line.startswith(line)
    assert ("patient 'p' has 0, 1" in raised.value.line) == (labels == "patient2labels.csv")
    with pytest.raises(InputError) as raised:
        prepare_sweep(store, str(tmp_path / "sweep"), tune, everything_trains)
    assert raised.value.line.startswith(line)


def test_equal_models_have_equal_files(tmp_path: Path) -> None:
    model = make_model(TRAIN, 3, classes=2)
    contents = {model_bytes(model, 2, "classification") for _ in range(20)}
    assert len(contents) == 1
    (tmp_path / "model.safetensors").write_bytes(contents.pop())
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as file:
        metadata = {"best_epoch": "2", "milcore_version": __version__, "target": "classification"}
        assert file.metadata() == metadata


def test_the_run_folder_holds_nothing_but_the_contract_s_files(store_uri: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    trained(store_uri, str(run))
    assert sorted(p.name for p in run.iterdir()) == [
        "config.json",
        "files.json",
        "history.parquet",
        "model.safetensors",
        "splits.parquet",
    ]


def test_of_two_claims_at_once_with_different_settings_one_is_refused(folder_uri: str) -> None:
    """However they meet, the folder's settings are those of every claim that was granted."""
    with ThreadPoolExecutor(2) as pool:
        for number in range(5):
            uri = storage.join(folder_uri, str(number))
            claims = list(pool.map(lambda models, uri=uri: _claim(uri, models), ("one", "other")))
            assert sorted(claims) == [False, True]
            models = storage.read_json(storage.join(uri, "config.json"))["models_sha256"]
            assert models == ("one", "other")[claims.index(True)]


def _claim(uri: str, models: str) -> bool:
    try:
        claim_folder(uri, PredictionsSpec(milcore_version="0", run=uri, models_sha256=models, default_mpp=None))
    except InputError:
        return False
    return True


def test_a_finished_run_is_left_as_it_is(store_uri: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    trained(store_uri, str(run))
    before = (run / "model.safetensors").stat().st_mtime_ns
    trained(store_uri, str(run))
    assert (run / "model.safetensors").stat().st_mtime_ns == before


def test_a_folder_of_another_run_is_refused_and_the_difference_named(store_uri: str, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    prepare_run(store_uri, run, TRAIN, SplitConfig())
    with pytest.raises(InputError, match=r"train\.pooling was 'gated_attention', now 'attention'"):
        prepare_run(store_uri, run, TRAIN.model_copy(update={"pooling": "attention"}), SplitConfig())


def test_memory_may_differ_where_a_run_goes_on_and_what_was_given_last_counts(store_uri: str, tmp_path: Path) -> None:
    """A run of an earlier version holds 4096; a machine with less memory takes less, or its share."""
    run = str(tmp_path / "run")
    memory = TRAIN.model_copy(update={"cache_mb": 4096.0, "activation_mb": 2048.0, "disk_cache_mb": 9.0})
    prepare_run(store_uri, run, memory, SplitConfig())
    prepare_run(store_uri, run, TRAIN, SplitConfig())
    assert Run(run).spec().train == memory
    less = TRAIN.model_copy(update={"cache_mb": 100.0, "activation_mb": 50.0, "disk_cache_mb": 0.0})
    prepare_run(store_uri, run, less, SplitConfig())
    assert Run(run).spec().train == less
    prepare_run(store_uri, run, TRAIN.model_copy(update={"cache_mb": 200.0}), SplitConfig())
    assert Run(run).spec().train == less.model_copy(update={"cache_mb": 200.0})
    assert run_damage(Run(run)) == []


def test_another_version_of_milcore_goes_on_with_a_run(store_uri: str, tmp_path: Path) -> None:
    """The version is no setting; the folder keeps the one that began it."""
    run = str(tmp_path / "run")
    prepare_run(store_uri, run, TRAIN, SplitConfig())
    rewrite_json(Run(run).config_uri, {"milcore_version": "0.0.1"})
    prepare_run(store_uri, run, TRAIN, SplitConfig())
    assert Run(run).spec().milcore_version == "0.0.1"


def test_features_of_other_patches_are_not_trained_on(store_uri: str, tmp_path: Path) -> None:
    slide = PatchStore(store_uri).slide("s01")
    attrs, values = slide.feature_attrs("mean_rgb"), slide.features("mean_rgb").read(0, len(slide))
    slide.write_features("mean_rgb", values, attrs | {"patches_digest": "0"})
    with pytest.raises(StoreError, match=r"those of others for 1 slides \(s01 …\); run milcore encode again"):
        prepare_run(store_uri, str(tmp_path / "run"), TRAIN, SplitConfig())


def test_another_split_in_the_same_folder_is_refused(store_uri: str, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    prepare_run(store_uri, run, TRAIN, SplitConfig())
    with pytest.raises(InputError, match="splits_digest"):
        prepare_run(store_uri, run, TRAIN, SplitConfig(split_seed=1))


def test_a_splits_file_is_taken_over(store_uri: str, tmp_path: Path) -> None:
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    prepare_run(store_uri, first, TRAIN, SplitConfig(split_seed=3))
    prepare_run(store_uri, second, TRAIN, SplitConfig(splits=storage.join(first, "splits.parquet")))
    assert Run(second).splits().equals(Run(first).splits())


def test_another_positive_class_is_refused_with_a_split_of_the_former(tmp_path: Path) -> None:
    """The same slides in the same classes, whose order alone is turned: a label of 1 means the other class."""
    store = write_store(str(tmp_path / "store"))
    write_features(store)
    relabel(store, {}, classes=("benign", "tumour"))
    first = str(tmp_path / "first")
    prepare_run(store.uri, first, TRAIN, SplitConfig())
    relabel(store, {f"s{k:02d}": 1 - k % 2 for k in range(12)}, classes=("tumour", "benign"))
    with pytest.raises(InputError, match="the classes were benign, tumour, are tumour, benign"):
        prepare_run(store.uri, str(tmp_path / "run"), TRAIN, SplitConfig(splits=Run(first).splits_uri))
    with pytest.raises(InputError, match="the classes were benign, tumour, are tumour, benign"):
        prepare_run(store.uri, first, TRAIN, SplitConfig())
    assert not (tmp_path / "run").exists()


def test_labels_corrected_after_a_run_began_are_named_when_it_goes_on(store_uri: str, tmp_path: Path) -> None:
    run, sweep, tune = str(tmp_path / "run"), str(tmp_path / "sweep"), TuneConfig(train=TRAIN)
    prepare_run(store_uri, run, TRAIN, SplitConfig())
    prepare_sweep(store_uri, sweep, tune, SplitConfig())
    before = storage.read_bytes(Run(run).splits_uri)
    relabel(PatchStore(store_uri), {"s03": 0})
    with pytest.raises(InputError, match=r"labels that it was made with, got others .*slide s03 was 1, is 0"):
        prepare_run(store_uri, run, TRAIN, SplitConfig())
    with pytest.raises(InputError, match=r"labels that it was made with, got others .*slide s03 was 1, is 0"):
        prepare_sweep(store_uri, sweep, tune, SplitConfig())
    assert storage.read_bytes(Run(run).splits_uri) == before


def test_settings_of_a_sweep_are_not_trained_once_its_labels_are_corrected(store_uri: str, tmp_path: Path) -> None:
    run, sweep = str(tmp_path / "run"), str(tmp_path / "sweep")
    prepare_sweep(store_uri, sweep, TuneConfig(train=TRAIN), SplitConfig())
    storage.write_json(Sweep(sweep).best_uri, TRAIN.model_dump(mode="json"))
    relabel(PatchStore(store_uri), {"s03": 0})
    with pytest.raises(InputError, match=r"splits in .*sweep/splits\.parquet: .*slide s03 was 1, is 0"):
        train(store_uri, run, sweep=sweep)
    relabel(PatchStore(store_uri), {"s03": 1})
    train(store_uri, run, sweep=sweep)
    assert Run(run).splits().equals(Sweep(sweep).splits())


def test_a_run_and_a_sweep_of_a_version_without_class_names_go_on(store_uri: str, tmp_path: Path) -> None:
    run, sweep, tune = str(tmp_path / "run"), str(tmp_path / "sweep"), TuneConfig(train=TRAIN)
    for _ in range(2):
        prepare_run(store_uri, run, TRAIN, SplitConfig())
        prepare_sweep(store_uri, sweep, tune, SplitConfig())
        for uri in (Run(run).splits_uri, Sweep(sweep).splits_uri):
            publish({uri: storage.table_bytes(storage.read_table(uri).drop_columns(["class"]))})
    train_run(run, LocalContext(None, CPU))
    assert Run(run).is_finished()


def test_a_run_and_a_sweep_of_a_version_that_kept_settings_of_other_poolings_go_on(
    store_uri: str, tmp_path: Path
) -> None:
    """They changed nothing then, and are the defaults now."""
    run, sweep, tune = (
        str(tmp_path / "run"),
        str(tmp_path / "sweep"),
        TuneConfig(poolings=("gated_attention",), train=TRAIN),
    )
    unread = {"topk_instances": 3.0, "pooling_heads": 2}
    prepare_run(store_uri, run, TRAIN, SplitConfig())
    prepare_sweep(store_uri, sweep, tune, SplitConfig())
    rewrite_json(Run(run).config_uri, {"train": TRAIN.model_dump(mode="json") | unread})
    of_sweep = tune.model_dump(mode="json")
    rewrite_json(Sweep(sweep).config_uri, {"tune": of_sweep | {"train": of_sweep["train"] | unread}})
    storage.write_json(Sweep(sweep).best_uri, TRAIN.model_dump(mode="json") | unread)
    assert Run(run).spec().train == Sweep(sweep).spec().tune.train == Sweep(sweep).best() == TRAIN
    prepare_run(store_uri, run, TRAIN, SplitConfig())
    prepare_sweep(store_uri, sweep, tune, SplitConfig())


def test_a_best_config_trains_another_pooling_without_the_settings_of_its_own(store_uri: str, tmp_path: Path) -> None:
    run, sweep = str(tmp_path / "run"), str(tmp_path / "sweep")
    prepare_sweep(store_uri, sweep, TuneConfig(train=TRAIN), SplitConfig())
    storage.write_json(Sweep(sweep).best_uri, TRAIN.model_dump(mode="json"))
    train(store_uri, run, sweep=sweep, pooling="mean")
    assert Run(run).spec().train == TrainConfig(**TRAIN.model_dump(exclude={"attention_hidden"}) | {"pooling": "mean"})


def test_settings_of_other_poolings_in_a_file_are_told_and_left_out_but_not_those_of_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "best.json")
    storage.write_json(
        file, TrainConfig(pooling="dsmil").model_dump(mode="json") | {"attention_hidden": 4, "pooling_heads": 2}
    )
    assert train_config(file, {}) == TrainConfig(pooling="dsmil", attention_hidden=4)
    assert capsys.readouterr().err == "pooling_heads 2 of --config is not used: not read by pooling dsmil\n"
    assert train_config(file, {"pooling": "multi_head_attention"}).pooling_heads == 2
    assert train_config(file, {}, ("dsmil", "multi_head_attention")).pooling_heads == 2
    with pytest.raises(InputError, match="pooling_heads: expected the default 4 with pooling dsmil"):
        train_config(file, {"pooling_heads": 8})
    assert train_config(None, {"pooling_heads": 8}, ("mean",)).pooling_heads == 8  # refused by the sweep


@pytest.mark.parametrize("given", [["topk, max"], ["topk", "max"]])
def test_poolings_of_a_sweep_are_read_as_the_sweep_reads_them(given: list[str]) -> None:
    assert swept_poolings({"poolings": given}) == ("topk", "max")
    assert swept_poolings({}) == TuneConfig().poolings


def test_features_that_are_not_there_are_named_with_the_command_that_makes_them(store_uri: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"12 of 12 slides have no features/other .*milcore encode"):
        prepare_run(store_uri, str(tmp_path / "run"), TRAIN.model_copy(update={"features": "other"}), SplitConfig())


def test_a_store_with_slides_that_never_ended_is_not_trained_on(store_uri: str, tmp_path: Path) -> None:
    """As after an ingestion that was killed: training on the rest would lose a slide without a word."""
    store = PatchStore(store_uri)
    absent, quarantined, *_ = store.slide_ids()
    storage.remove_folder(store.group_uri(absent))
    storage.remove_folder(store.group_uri(quarantined))
    store.quarantine(SlideRecord(quarantined), "blurred")
    with pytest.raises(StoreError, match=rf"1 of 12 slides .* neither ok nor quarantined \({absent} .*milcore ingest"):
        prepare_run(store_uri, str(tmp_path / "run"), TRAIN, SplitConfig())
    store.quarantine(SlideRecord(absent), "torn")
    prepare_run(store_uri, str(tmp_path / "run"), TRAIN, SplitConfig())
    assert len(Run(str(tmp_path / "run")).splits()) == 10


def test_patches_train_the_conv_encoder_end_to_end(store_uri: str, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    trained(store_uri, run, TRAIN.model_copy(update={"features": None, "encoder": "conv", "epochs": 1}))
    assert "encoder.layers.0.weight" in Run(run).models()[0].state_dict()


def test_an_unfinished_run_has_no_model(store_uri: str, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    prepare_run(store_uri, run, TRAIN, SplitConfig())
    with pytest.raises(InputError, match="not finished"):
        Run(run).models()
    with pytest.raises(InputError, match="no run at"):
        Run(str(tmp_path / "nowhere")).models()


def test_store_and_run_are_described(store_uri: str, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    trained(store_uri, run)
    assert describe(store_uri)["features"] == {"mean_rgb": 12}
    assert describe(store_uri)["patches"] == 72
    assert describe(run)["finished"]
    assert sum(describe(run)["slides"].values()) == 12
    with pytest.raises(InputError, match="neither a patch store"):
        describe(str(tmp_path))


def test_splits_that_are_not_there_or_no_table_are_bad_input(store_uri: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no table")
    for name, line in (("absent.parquet", "got nothing at"), ("notes.txt", "expected Parquet at")):
        with pytest.raises(InputError, match=f"splits: .*{line}"):
            prepare_run(store_uri, str(tmp_path / "run"), TRAIN, SplitConfig(splits=str(tmp_path / name)))


def test_a_folder_with_checkpoints_of_another_program_is_left_alone(store_uri: str, tmp_path: Path) -> None:
    (tmp_path / "project/checkpoints/0001").mkdir(parents=True)
    (tmp_path / "project/checkpoints/0001/mine.pt").write_text("x")
    with pytest.raises(InputError, match="got one with checkpoints, where files would be removed"):
        prepare_run(store_uri, str(tmp_path / "project"), TRAIN, SplitConfig())
    assert [path.name for path in (tmp_path / "project").iterdir()] == ["checkpoints"]


def test_a_name_of_features_leads_nowhere_else() -> None:
    with pytest.raises(InputError, match=r"features: expected pattern .*, got '\.\./\.\./other'"):
        parse_config(TrainConfig, {"features": "../../other"})


@pytest.mark.parametrize("encoder", ["torchscript:/no/such/program.pt,mpp=any", "conch@s3://bucket/program.pt"])
def test_a_program_that_a_run_or_a_file_names_waits_for_the_user_s_word(
    store_uri: str, tmp_path: Path, encoder: str
) -> None:
    """Refused before its file is looked for, which there is none of."""
    run = str(tmp_path / "run")
    trained(store_uri, run)
    settings = storage.read_json(f"{run}/config.json")["train"] | {"features": None, "encoder": encoder}
    rewrite_json(f"{run}/config.json", {"train": settings})
    with pytest.raises(InputError, match=r"got '(torchscript|conch).*', a TorchScript program .* --allow-program"):
        Run(run).models()
    storage.write_json(str(tmp_path / "best.json"), settings)
    with pytest.raises(InputError, match="a TorchScript program"):
        train_config(str(tmp_path / "best.json"), {"epochs": 1})
    assert train_config(str(tmp_path / "best.json"), {"encoder": encoder}).encoder == encoder
