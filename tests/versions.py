"""Stores, runs, sweeps and predictions that earlier versions wrote, from tests/fixtures."""

import tarfile
from pathlib import Path

import pyarrow as pa

from milcore.runtime import storage

FIXTURES = Path(__file__).parent / "fixtures"
VERSIONS = ("2026-11-22", "2026-11-27")
# where they were made
FOLDER = "/cohort"


def unpack(version: str, folder: Path) -> Path:
    """Unpack a version's files and make their paths those of the folder."""
    with tarfile.open(FIXTURES / f"{version}.tar.xz") as archive:
        archive.extraction_filter = lambda member, _: member  # ours; Python before 3.11.4 knows no filter
        archive.extractall(folder)  # noqa: S202 - see above
    for path in folder.rglob("*"):
        if path.suffix in (".json", ".csv"):
            path.write_text(path.read_text().replace(f"{FOLDER}/", f"{folder}/"))
    uri = str(folder / "store/manifest.parquet")
    table = storage.read_table(uri)
    uris = pa.array([path.replace(FOLDER, str(folder)) for path in table["uri"].to_pylist()])
    storage.write_table(uri, table.set_column(table.column_names.index("uri"), table.schema.field("uri"), uris))
    return folder
