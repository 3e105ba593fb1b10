"""Who may import whom, read from the code itself."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("milcore", "components", "pipeline")

# top to bottom: a room imports rooms further down, or of its own row
FLOORS = (
    ("milcore.cli",),
    ("milcore.cluster",),
    ("milcore.predict", "milcore.evaluate"),
    ("milcore.folds",),
    ("milcore.artifacts", "milcore.baselines", "milcore.info", "milcore.report_data", "milcore.summary", "milcore.qc"),
    ("milcore.measured",),
    ("milcore.opened_run",),
    ("milcore.run", "milcore.sweep", "milcore.search_space"),
    (
        "milcore.train",
        "milcore.checkpoints",
        "milcore.leave_one_out",
        "milcore.flipping",
        "milcore.explain",
        "milcore.shares",
    ),
    ("milcore.model", "milcore.report"),
    (
        "milcore.streaming",
        "milcore.encoders",
        "milcore.attention",
        "milcore.attention_exports",
        "milcore.augment",
        "milcore.optimisation",
    ),
    (
        "milcore.bags",
        "milcore.pooling",
        "milcore.metrics",
        "milcore.curves",
        "milcore.resampled",
        "milcore.calibration",
        "milcore.delong",
        "milcore.annotations",
        "milcore.sampling",
    ),
    ("milcore.attention_score", "milcore.dropout", "milcore.balance", "milcore.validation"),
    ("milcore.segments", "milcore.rows"),
    ("milcore.import_features", "milcore.freshness"),
    ("milcore.imports", "milcore.ingest", "milcore.synth", "milcore.splits"),
    ("milcore.portions",),
    ("milcore.extract", "milcore.store"),
    ("milcore.slide_writer",),
    ("milcore.shards", "milcore.manifest", "milcore.tiling", "milcore.tissue", "milcore.slides", "milcore.stain"),
    ("milcore.sources",),
    ("milcore.event_file",),
    ("milcore.options",),
    ("milcore.processes", "milcore.storage", "milcore.progress", "milcore.allocator"),
    ("milcore.config",),
    ("milcore.errors",),
)
ONLY_IN = {
    "ray": ("milcore.cluster",),
    "zarr": ("milcore.store", "milcore.shards"),
    "openslide": ("milcore.slides",),
    "kfp": ("components", "pipeline"),
    "kubernetes": ("milcore.cluster",),
}
WITHOUT_TORCH = (
    "milcore.config", "milcore.errors", "milcore.storage", "milcore.manifest", "milcore.splits", "milcore.slides",
    "milcore.tissue", "milcore.tiling", "milcore.store", "milcore.shards", "milcore.ingest", "milcore.synth",
    "milcore.slide_writer", "milcore.extract", "milcore.stain", "milcore.portions", "milcore.allocator",
    "milcore.sources", "milcore.imports.source", "milcore.imports.places", "milcore.imports.files",
    "milcore.imports.npz", "milcore.imports.h5", "milcore.imports.parquet", "milcore.imports.picture",
    "milcore.metrics", "milcore.validation", "milcore.curves", "milcore.resampled", "milcore.calibration",
    "milcore.delong",
    "milcore.annotations", "milcore.processes", "milcore.progress", "milcore.freshness",
)  # fmt: skip


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_of(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


def imports_of(module: str) -> Iterator[str]:
    """Every module imported anywhere in the file, function bodies included."""
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def lies_in(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


def floor_of(module: str) -> int:
    return next(k for k, rooms in enumerate(FLOORS) if any(lies_in(module, room) for room in rooms))


@pytest.mark.parametrize("module", [m for m in FILES if lies_in(m, "milcore") and m != "milcore"])
def test_milcore_imports_downwards(module: str) -> None:
    for imported in imports_of(module):
        if lies_in(imported, "milcore") and not imported.startswith("milcore.__version__"):
            assert floor_of(imported) >= floor_of(module), f"{module} imports {imported}, which stands above it"


def test_pipeline_stands_on_components_and_components_on_milcore() -> None:
    for module in FILES:
        for imported in imports_of(module):
            if lies_in(module, "milcore"):
                assert not lies_in(imported, "components"), module
            if not lies_in(module, "pipeline"):
                assert not lies_in(imported, "pipeline"), module


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_is_known_in_its_rooms_only(library: str) -> None:
    for module in FILES:
        if not any(lies_in(module, room) for room in ONLY_IN[library]):
            assert not any(lies_in(imported, library) for imported in imports_of(module)), f"{module} imports {library}"


@pytest.mark.parametrize("module", [m for m in FILES if any(lies_in(m, room) for room in WITHOUT_TORCH)])
def test_rooms_below_the_model_do_not_import_torch(module: str) -> None:
    for imported in imports_of(module):
        assert not lies_in(imported, "torch")
        if lies_in(imported, "milcore"):
            assert any(lies_in(imported, room) for room in (*WITHOUT_TORCH, "milcore.__version__")), imported


def test_the_package_imports_nothing() -> None:
    assert list(imports_of("milcore")) == []


def test_config_imports_pydantic_and_the_standard_library_only() -> None:
    assert {name.split(".")[0] for name in imports_of("milcore.config")} <= {"pydantic", "re", "typing", "milcore"}
    assert {name for name in imports_of("milcore.config") if lies_in(name, "milcore")} == {"milcore.errors.InputError"}
