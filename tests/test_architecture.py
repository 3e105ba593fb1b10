"""Who may import whom, read from the code itself."""

import ast
import graphlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("milcore", "components", "pipeline")

# room -> the rooms it may import; a file of milcore/ itself is a room of one file
BELOW_SLIDES = ("config", "metrics", "runtime", "errors")
BELOW_COHORT = ("slides", *BELOW_SLIDES)
BELOW_STORE = ("cohort", *BELOW_COHORT)
BELOW_MIL = ("encoders", "ingestion", "store", *BELOW_STORE)
BELOW_EVALUATION = ("training", "mil", *BELOW_MIL)
MAY_IMPORT = {
    # `milcore info` reads a store and a run
    "cli": ("api", "serving", "training", "store", "config", "runtime", "errors"),
    "api": ("cluster", "evaluation", *BELOW_EVALUATION),
    "serving": ("cluster", "evaluation", *BELOW_EVALUATION),
    "cluster": ("evaluation", *BELOW_EVALUATION),
    "evaluation": BELOW_EVALUATION,
    "training": ("mil", *BELOW_MIL),
    "mil": BELOW_MIL,
    "encoders": ("store", *BELOW_STORE),
    "ingestion": ("store", *BELOW_STORE),
    "store": BELOW_STORE,
    "cohort": BELOW_COHORT,
    "slides": BELOW_SLIDES,
    "config": ("errors",),
    "metrics": ("errors",),
    "runtime": ("errors",),
    "errors": (),
}
# what stands on milcore, and all it may know of it
ON_MILCORE = {
    "components": ("milcore.__version__", "milcore.api", "milcore.config"),
    "pipeline": ("milcore.api", "milcore.config", "milcore.errors", "milcore.runtime"),
}
ONLY_IN = {
    "ray": ("milcore.cluster", "milcore.serving"),
    "ray.serve": ("milcore.serving",),
    "fastapi": ("milcore.serving",),
    "prometheus_client": ("milcore.serving",),
    "zarr": ("milcore.store",),
    "openslide": ("milcore.slides",),
    "kfp": ("components", "pipeline"),
    "kubernetes": ("milcore.cluster",),
}
WITHOUT_TORCH = (
    "milcore.config", "milcore.errors", "milcore.cohort", "milcore.slides", "milcore.store", "milcore.metrics",
    "milcore.runtime", "milcore.ingestion", "milcore.serving",
)  # fmt: skip
WITH_TORCH = (
    "milcore.ingestion.imports.pt", "milcore.ingestion.imports.import_cohort",
    # the gateway computes nothing
    "milcore.serving.replica", "milcore.serving.served_runs", "milcore.serving.deployments", "milcore.serving.service",
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


def room_of(module: str) -> str:
    return module.split(".")[1]


def imported_files(module: str) -> set[str]:
    """The files of milcore that a file imports: ``from room.file import name`` and ``from room import file``."""
    names = {name for name in imports_of(module) if lies_in(name, "milcore")}
    return {name if name in FILES else name.rpartition(".")[0] for name in names} - {"milcore", module}


def forbidden(module: str, imported: set[str]) -> list[str]:
    """The imports of a file of milcore that its room may not make."""
    allowed = (room_of(module), *MAY_IMPORT[room_of(module)])
    return sorted(name for name in imported if room_of(name) not in allowed)


def a_circle(imports: dict[str, set[str]]) -> list[str]:
    """Files that import each other in a ring; empty where there are none."""
    try:
        list(graphlib.TopologicalSorter(imports).static_order())
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


IN_ROOMS = [module for module in FILES if lies_in(module, "milcore") and module != "milcore"]


def test_milcore_holds_the_rooms_of_the_table_and_nothing_else() -> None:
    assert {room_of(module) for module in IN_ROOMS} == set(MAY_IMPORT)


@pytest.mark.parametrize("module", IN_ROOMS)
def test_a_room_imports_only_rooms_below_it(module: str) -> None:
    assert forbidden(module, imported_files(module)) == []


def test_no_files_import_each_other_in_a_circle() -> None:
    assert a_circle({module: imported_files(module) for module in IN_ROOMS}) == []


def test_an_import_that_runs_up_and_a_circle_are_noticed() -> None:
    up = {"milcore.mil.model", "milcore.runtime.storage"}
    assert forbidden("milcore.store.store", up) == ["milcore.mil.model"]
    assert forbidden("milcore.evaluation.evaluate", {"milcore.cluster.launch"}) == ["milcore.cluster.launch"]
    assert a_circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) != []


def test_pipeline_stands_on_components_and_components_on_milcore() -> None:
    for module in FILES:
        for imported in imports_of(module):
            if lies_in(module, "milcore"):
                assert not lies_in(imported, "components"), module
            if not lies_in(module, "pipeline"):
                assert not lies_in(imported, "pipeline"), module


@pytest.mark.parametrize("package", ON_MILCORE)
def test_components_and_pipeline_reach_milcore_by_its_api(package: str) -> None:
    for module in FILES:
        if lies_in(module, package):
            names = [name for name in imports_of(module) if lies_in(name, "milcore")]
            assert [n for n in names if not any(lies_in(n, room) for room in ON_MILCORE[package])] == [], module


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_is_known_in_its_rooms_only(library: str) -> None:
    for module in FILES:
        if not any(lies_in(module, room) for room in ONLY_IN[library]):
            assert not any(lies_in(imported, library) for imported in imports_of(module)), f"{module} imports {library}"


def without_torch(module: str) -> bool:
    return any(lies_in(module, room) for room in WITHOUT_TORCH) and module not in WITH_TORCH


@pytest.mark.parametrize("module", list(filter(without_torch, FILES)))
def test_rooms_below_the_model_do_not_import_torch(module: str) -> None:
    assert not any(lies_in(imported, "torch") for imported in imports_of(module))
    assert [name for name in imported_files(module) if not without_torch(name)] == []


def test_the_package_imports_only_what_its_lazy_names_need() -> None:
    assert list(imports_of("milcore")) == ["importlib", "typing.Any"]


CPU_COUNTS = {
    f"{module}.{name}"
    for module in ("os", "multiprocessing")
    for name in ("cpu_count", "process_cpu_count", "sched_getaffinity")
}


def asks_for_cpus(text: str) -> bool:
    """True where code asks the machine for its CPUs, whose number a container's quota does not change."""
    nodes = list(ast.walk(ast.parse(text)))
    named = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    imported = {f"{node.module}.{alias.name}" for node in imports for alias in node.names}
    return bool(CPU_COUNTS & (named | imported))


def test_cpus_are_asked_for_in_one_place() -> None:
    files = [path for package in (*PACKAGES, "benchmarks") for path in sorted((ROOT / package).rglob("*.py"))]
    asking = [str(path.relative_to(ROOT)) for path in files if asks_for_cpus(path.read_text())]
    assert asking == ["milcore/runtime/limits.py"]


def test_a_file_that_asks_for_cpus_is_noticed() -> None:
    assert all(map(asks_for_cpus, ("os.cpu_count()", "from os import cpu_count", "len(os.sched_getaffinity(0))")))
    assert not asks_for_cpus("from milcore.runtime.limits import cpus")


def test_config_imports_pydantic_and_the_standard_library_only() -> None:
    assert {name.split(".")[0] for name in imports_of("milcore.config")} <= {
        "pydantic",
        "milcore",
        *sys.stdlib_module_names,
    }
    assert {name for name in imports_of("milcore.config") if lies_in(name, "milcore")} == {"milcore.errors.InputError"}
