"""The catalogue agrees with the slides whatever was killed, written at once, deleted or damaged."""

import hashlib
import os
import re
import uuid
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from hypothesis import given, settings
from hypothesis import strategies as st

from milcore.cli.info import damage, describe
from milcore.cohort.manifest import make_manifest
from milcore.errors import DamageError, StoreError
from milcore.runtime import storage
from milcore.store import fragments
from milcore.store.catalogue import Catalogue
from milcore.store.row_writer import RowWriter
from milcore.store.slide_group import SlideGroup
from milcore.store.slide_record import SlideRecord
from milcore.store.slide_row import SlideRow
from milcore.store.store import PatchStore
from tests.proxy import CountingProxy, Fault

PX = 16
SLIDES = ["a", "b", "c"]


def write_slide(store: PatchStore, slide_id: str, patches: int = 3, *, features: bool = True) -> SlideRow:
    """A slide with features ``f``, and its row."""
    generator = np.random.default_rng(patches)
    with store.writer(SlideRecord(slide_id, patch_size_level0=float(PX)), PX, "zstd", 90) as writer:
        for column in range(patches):
            writer.append(generator.integers(0, 256, (PX, PX, 3), np.uint8), PX * column, 0, 1.0)
    row = writer.row
    if not features:
        return row
    values = generator.random((patches, 4)).astype(np.float32)
    written = store.slide(slide_id).write_feature_array(
        "f", values, {"patches_digest": store.slide(slide_id).patches_digest}
    )
    return row.with_array("features/f", written.metadata)


@pytest.fixture
def store(folder_uri: str) -> PatchStore:
    """A store of three slides, with a catalogue."""
    store = PatchStore(folder_uri)
    store.write_manifest(make_manifest("m", [{"slide_id": name, "label": str(k % 2)} for k, name in enumerate(SLIDES)]))
    rows = store.row_writer("ingest", SLIDES)
    for slide_id in SLIDES:
        rows.add(write_slide(store, slide_id))
    rows.close()
    return store


def by_another_program(store: PatchStore, slide_id: str) -> SlideGroup:
    """The slide as one opens it who knows no catalogue."""
    return SlideGroup(store.group_uri(slide_id), store.slide(slide_id).record)


def objects(store: PatchStore, folder: str) -> list[str]:
    return storage.names(storage.join(store.uri, "catalogue", folder))


def truth(store: PatchStore) -> dict[str, SlideRecord | None]:
    return {slide_id: store.record(slide_id) for slide_id in SLIDES}


def test_rows_say_what_the_slides_say(store: PatchStore) -> None:
    catalogue = store.catalogue()
    assert catalogue.unknown_ids == []
    assert catalogue.records == truth(store)
    for slide_id in SLIDES:
        assert catalogue.row(slide_id) == store.read_row(slide_id)
        known, own = catalogue.slide(slide_id), store.slide(slide_id)
        assert known.feature_names() == own.feature_names() == ["f"]
        np.testing.assert_array_equal(known.features("f").read(0, 3), own.features("f").read(0, 3))
        np.testing.assert_array_equal(known.patches(0, 3), own.patches(0, 3))
        np.testing.assert_array_equal(known.coords, own.coords)


def test_slides_under_a_mark_are_read_themselves(store: PatchStore) -> None:
    """A writer that was killed leaves its mark; what it wrote is seen."""
    rows = store.row_writer("ingest", ["a"])
    write_slide(store, "a", patches=5)
    catalogue = store.catalogue()
    assert catalogue.unknown_ids == ["a"]
    assert catalogue.records == truth(store)
    assert len(catalogue.slide("a")) == 5
    store.join_catalogue()  # of other steps; the writer may be alive
    assert store.catalogue().unknown_ids == ["a"]
    rows.add(write_slide(store, "a", patches=6))
    rows.close()
    assert store.catalogue().unknown_ids == []
    assert len(store.catalogue().slide("a")) == 6


def test_the_next_writer_of_its_kind_removes_the_mark_of_a_dead_one(store: PatchStore) -> None:
    store.row_writer("ingest", ["a", "b"])
    encoder = store.row_writer("encode-f", SLIDES)
    encoder.close()
    few = store.row_writer("ingest", ["a"])
    few.add(write_slide(store, "a", patches=5))
    few.close()
    assert store.catalogue().unknown_ids == ["b"], "it wrote one of the two"
    assert store.catalogue().records == truth(store)
    again = store.row_writer("ingest", SLIDES)
    again.add(write_slide(store, "b", patches=6))
    again.close()
    assert store.catalogue().unknown_ids == []
    assert objects(store, "open") == []


def test_a_mark_goes_with_the_slides_that_the_cohort_has_no_more(store: PatchStore) -> None:
    """A slide that killed its ingestion is taken out of the manifest."""
    store.row_writer("ingest", SLIDES)
    store.write_manifest(make_manifest("m", [{"slide_id": "a", "label": "0"}, {"slide_id": "b", "label": "1"}]))
    rows = store.row_writer("ingest", ["a", "b"], store.catalogue())
    for slide_id in ("a", "b"):
        rows.add(write_slide(store, slide_id))
    rows.close()
    assert objects(store, "open") == []
    assert store.catalogue().unknown_ids == []


def test_rows_of_two_writers_at_once_that_differ_are_not_relied_on(store: PatchStore) -> None:
    """Which of them wrote the slide last is unknown."""
    one, two = store.row_writer("ingest", ["a"]), store.row_writer("encode-f", ["a"])
    one.add(write_slide(store, "a", patches=4, features=False))
    two.add(write_slide(store, "a", patches=5))
    two.close()
    one.close()
    assert store.catalogue().unknown_ids == ["a"]
    assert store.catalogue().records == truth(store)
    store.join_catalogue()
    assert store.catalogue().row("a") == store.read_row("a")
    assert len(objects(store, "rows")) == 1


def test_a_later_writer_supersedes_the_rows_that_it_found(store: PatchStore) -> None:
    for patches in (4, 5):
        rows = store.row_writer("ingest", ["b"])
        rows.add(write_slide(store, "b", patches))
        rows.close()
    assert store.catalogue().unknown_ids == []
    assert len(store.catalogue().slide("b")) == 5
    before = objects(store, "rows")
    store.join_catalogue()
    assert len(before) == 3
    assert len(objects(store, "rows")) == 1
    assert store.catalogue().records == truth(store)


def test_rows_of_a_joined_catalogue_stay_behind_those_of_a_writer_that_it_did_not_see(store: PatchStore) -> None:
    """It began before the join, and ended after it: its rows are neither lost nor taken for the later ones."""
    writer = store.row_writer("encode-f", ["a"])
    other = store.row_writer("ingest", ["a"])
    other.add(write_slide(store, "a", patches=7, features=False))
    other.close()
    store.join_catalogue()
    writer.add(write_slide(store, "a", patches=8))
    writer.close()
    assert store.catalogue().records == truth(store)
    store.join_catalogue()
    assert store.catalogue().row("a") == store.read_row("a")


@pytest.mark.parametrize("damage", ["deleted", "bit flipped", "cut short", "emptied"])
def test_without_an_intact_catalogue_the_slides_are_read(store: PatchStore, damage: str) -> None:
    uri = fragments.fragment_uri(store.uri, next(iter(fragments.fragment_names(store.uri))))
    data = bytearray(storage.read_bytes(uri))
    if damage == "deleted":
        storage.remove(uri)
    else:
        place = len(data) // 3
        data[place] ^= 1
        storage.write_bytes(uri, {"bit flipped": bytes(data), "cut short": bytes(data[:place]), "emptied": b""}[damage])
    catalogue = store.catalogue()
    assert catalogue.unknown_ids == SLIDES
    assert catalogue.records == truth(store)
    assert catalogue.slide("a").feature_names() == ["f"]
    store.join_catalogue()
    assert store.catalogue().unknown_ids == []
    assert len(objects(store, "rows")) == 1


def replaced_by(store: PatchStore, table: pa.Table) -> None:
    """The catalogue as someone else writes it, named by its digest."""
    storage.remove_folder(storage.join(store.uri, "catalogue", "rows"))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    data = bytes(sink.getvalue().to_pybytes())
    storage.write_bytes(fragments.fragment_uri(store.uri, hashlib.sha256(data).hexdigest()[:32]), data)


@pytest.mark.parametrize("metadata", [{}, {b"milcore_catalogue": b"[]"}, {b"milcore_catalogue": b"{"}, None])
def test_a_catalogue_of_another_kind_is_not_read(store: PatchStore, metadata: dict[bytes, bytes] | None) -> None:
    """Whoever wrote it: the slides are the truth."""
    columns = pa.table({"slide_id": SLIDES}) if metadata is None else fragments.SCHEMA.empty_table()
    replaced_by(store, columns.replace_schema_metadata(metadata))
    assert store.catalogue().unknown_ids == SLIDES
    assert store.catalogue().records == truth(store)


@pytest.mark.parametrize("group", [b"", b"[]", b"{}", b'{"attributes": []}', b'{"attributes": {"complete": false}}'])
def test_a_row_that_is_no_record_ends_with_a_line(store: PatchStore, group: bytes) -> None:
    table = pa.Table.from_pylist(
        [{"slide_id": name, "status": "ok", "instances": 3, "group": group, "arrays": []} for name in SLIDES],
        schema=fragments.SCHEMA.with_metadata(
            {b"milcore_catalogue": b'{"schema_version": 1, "after": [], "replaces": []}'}
        ),
    )
    replaced_by(store, table)
    with pytest.raises(DamageError, match=r"slides/a\.zarr/zarr\.json|slide 'a': catalogue of .* --rebuild"):
        _ = store.catalogue().records


def test_a_damaged_mark_stands_for_every_slide(store: PatchStore) -> None:
    store.row_writer("ingest", ["a"])
    storage.write_bytes(storage.join(store.uri, "catalogue", "open", objects(store, "open")[0]), b"[")
    assert store.catalogue().unknown_ids == SLIDES


def test_features_that_another_program_wrote_are_noticed_at_the_first_read(
    store: PatchStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """The row is made anew, and told; the second run of the command reads what is there."""
    before = store.catalogue()
    by_another_program(store, "a").write_features("f", np.ones((3, 4), np.float32), {})
    with pytest.raises(
        StoreError, match=r"slide 'a': features/f was changed by another program .* run the same command"
    ):
        before.slide("a").features("f").read(0, 3)
    assert store.catalogue().slide("a").features("f").read(0, 3).sum() == 12
    assert store.catalogue().row("a") == store.read_row("a")


def test_features_written_from_python_are_in_the_catalogue(store: PatchStore) -> None:
    """Of another name, and again with other values."""
    for value in (1.0, 2.0):
        for name in ("f", "g"):
            store.slide("a").write_features(name, np.full((3, 4), value, np.float32), {"encoder": "mine"})
        assert store.catalogue().unknown_ids == []
        assert store.catalogue().row("a") == store.read_row("a")
        assert store.catalogue().slide("a").features("g").read(0, 3).sum() == 12 * value
    store.catalogue().slide("b").write_features("g", np.ones((3, 4), np.float32), {})
    assert store.catalogue().row("b") == store.read_row("b")


def test_a_slide_that_another_program_wrote_is_noticed_at_the_first_read(store: PatchStore) -> None:
    before = store.catalogue()
    write_slide(store, "b", patches=9)
    with pytest.raises(StoreError, match="slide 'b': patches was changed by another program"):
        before.slide("b").patches(0, 1)
    assert len(before.slide("b")) == len(store.catalogue().slide("b")) == 9
    write_slide(store, "a", patches=9)
    with pytest.raises(StoreError, match="slide 'a': coords was changed by another program"):
        _ = before.slide("a").coords
    storage.remove_folder(store.group_uri("c"))
    with pytest.raises(StoreError, match=r"slide 'c': expected a complete slide, .* milcore info --rebuild"):
        _ = before.slide("c").coords


def test_equal_features_in_other_chunks_are_read_on(store: PatchStore, monkeypatch: pytest.MonkeyPatch) -> None:
    before, values = store.catalogue(), store.slide("a").features("f").read(0, 3)
    storage.remove_folder(storage.join(store.group_uri("a"), "features"))
    monkeypatch.setattr("milcore.store.features.FEATURE_CHUNK_MB", 4 * 4 / 1e6)
    by_another_program(store, "a").write_features("f", values, {"patches_digest": store.slide("a").patches_digest})
    np.testing.assert_array_equal(before.slide("a").features("f").read(0, 3), values)


def test_a_bit_flipped_in_a_slide_is_no_change_of_another_program(tmp_path: Path) -> None:
    store = PatchStore(str(tmp_path))
    store.write_manifest(make_manifest("m", [{"slide_id": "a", "label": "0"}, {"slide_id": "b", "label": "1"}]))
    rows = store.row_writer("ingest", ["a"])
    rows.add(write_slide(store, "a"))
    rows.close()
    chunk = tmp_path / "slides/a.zarr/features/f/c/0/0"
    chunk.write_bytes(bytes([chunk.read_bytes()[0] ^ 1]) + chunk.read_bytes()[1:])
    with pytest.raises(StoreError, match="expected chunk 0 as it was written"):
        store.catalogue().slide("a").features("f").read(0, 3)


def test_a_store_of_an_earlier_version_gets_a_catalogue_when_it_is_asked_for(store: PatchStore) -> None:
    storage.remove_folder(storage.join(store.uri, "catalogue"))
    assert store.catalogue().records == truth(store)
    assert store.rebuild_catalogue() == 3
    assert store.catalogue().unknown_ids == []
    assert store.catalogue().records == truth(store)


def test_a_slide_out_of_the_manifest_leaves_the_catalogue_when_it_is_joined(store: PatchStore) -> None:
    store.write_manifest(make_manifest("m", [{"slide_id": "a", "label": "0"}, {"slide_id": "b", "label": "1"}]))
    rows = store.row_writer("ingest", ["a"])
    rows.add(write_slide(store, "a", patches=4))
    rows.close()
    store.join_catalogue()
    assert Catalogue.read(store.uri, SLIDES).unknown_ids == ["c"]


def test_equal_rows_written_again_do_not_stand_before_what_came_between(store: PatchStore) -> None:
    """The second writer began before the first ended; a third, which saw the rows of the first, ended between."""
    second, first = store.row_writer("encode-g", ["a"]), store.row_writer("encode-f", ["a"])
    row = write_slide(store, "a", patches=4)
    first.add(row)
    first.close()
    third = store.row_writer("ingest", ["a"])
    third.add(write_slide(store, "a", patches=5))
    third.close()
    assert write_slide(store, "a", patches=4) == row
    second.add(row)
    second.close()
    assert dict(store.catalogue().records) == truth(store)
    store.join_catalogue()
    assert store.catalogue().row("a") == store.read_row("a")


def test_a_row_that_cannot_be_written_says_who_ends_that(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a bucket that this user may only read."""
    store = PatchStore(f"{s3}/{uuid.uuid4().hex}")
    store.write_manifest(make_manifest("m", [{"slide_id": "a", "label": "0"}, {"slide_id": "b", "label": "1"}]))
    write_slide(store, "a")
    store.join_catalogue()
    by_another_program(store, "a").write_features("f", np.ones((3, 4), np.float32), {})
    proxy = CountingProxy(os.environ["AWS_ENDPOINT_URL"], lambda method: Fault(403 if method == "PUT" else None))
    with monkeypatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", proxy.url)
        s3fs.S3FileSystem.clear_instance_cache()
        for _ in range(2):
            with pytest.raises(StoreError, match="slide 'a': features/f was changed by another program") as raised:
                store.catalogue().slide("a").features("f").read(0, 3)
            line = raised.value.line
            assert re.search(r"; its new row cannot be written \(.*: PermissionError: .*\): run milcore info ", line)
            assert line.endswith("--rebuild on the store with the right to write, then the same command again")
    s3fs.S3FileSystem.clear_instance_cache()
    proxy.close()
    store.rebuild_catalogue()
    assert store.catalogue().slide("a").features("f").read(0, 3).sum() == 12


def test_a_folder_that_a_person_removed_is_told_by_a_check(store: PatchStore) -> None:
    """Once, with what to do: the catalogue has a row of it, by which info goes."""
    storage.remove_folder(store.group_uri("b"))
    assert describe(store.uri)["ok"] == 3
    (line,) = damage(store.uri)
    assert re.search(r"slide 'b': .* run milcore ingest or .*, or milcore info --rebuild to leave it out", line)
    store.rebuild_catalogue()
    assert describe(store.uri)["ok"] == 2


def test_a_slide_in_quarantine_whose_arrays_stay_is_in_quarantine_by_both_readings(store: PatchStore) -> None:
    """As an earlier version leaves one that it cannot reach."""
    storage.remove_folder(storage.join(store.uri, "catalogue"))
    store.quarantine(SlideRecord("b", retry=True), "out of reach", keep=True)
    for has_catalogue in (False, True):
        catalogue = store.catalogue()
        assert (catalogue.unknown_ids == []) == has_catalogue
        assert catalogue.slide_ids() == ["a", "c"]
        assert catalogue.quarantined() == {"b": "out of reach"}
        with pytest.raises(StoreError, match="slide 'b' is quarantined: out of reach"):
            catalogue.slide("b")
        assert describe(store.uri)["features"] == {"f": 2}
        assert damage(store.uri) == []
        store.rebuild_catalogue()


def test_a_quarantine_that_the_catalogue_does_not_know_is_told_by_a_check(store: PatchStore) -> None:
    """By an earlier version, beside arrays that stay: they are read by the row until then."""
    store.quarantine(SlideRecord("b", retry=True), "out of reach", keep=True)
    (line,) = damage(store.uri)
    assert line.startswith("slide 'b': catalogue of ")
    assert line.endswith("--rebuild")
    store.rebuild_catalogue()
    assert store.catalogue().quarantined() == {"b": "out of reach"}


STEPS = st.lists(
    st.tuples(st.sampled_from(["begin", "write", "end", "join", "die"]), st.integers(0, 2), st.sampled_from("ab"))
)


@settings(max_examples=150)
@given(steps=STEPS)
def test_no_order_of_writers_ends_and_joins_gives_a_row_that_is_out_of_date(
    steps: list[tuple[str, int, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Three writers begin, write slides, end, die, and joins happen, in any order; rows are as the slides are."""
    store = PatchStore(str(tmp_path_factory.mktemp("store")))
    store.write_manifest(make_manifest("m", [{"slide_id": name, "label": str(k)} for k, name in enumerate("ab")]))
    writers: dict[int, tuple[RowWriter, dict[str, SlideRow]]] = {}
    for count, (step, writer, slide_id) in enumerate(steps):
        if step == "begin" and writer not in writers:
            writers[writer] = (store.row_writer(f"kind{writer}", ["a", "b"]), {})
        elif step == "write" and writer in writers:
            writers[writer][1][slide_id] = write_slide(store, slide_id, 1 + count, features=False)
        elif step == "end" and writer in writers:
            rows, written = writers.pop(writer)
            kept = {name: store.read_row(name) for name in "ab" if name not in written}
            for row in [*written.values(), *(row for row in kept.values() if row is not None)]:
                rows.add(row)
            rows.close()
        elif step == "die":
            writers.pop(writer, None)
        elif step == "join":
            store.join_catalogue()
        catalogue = store.catalogue()
        assert dict(catalogue.records) == {name: store.record(name) for name in "ab"}


def test_no_order_of_two_encodings_leaves_features_out(tmp_path: Path) -> None:
    """Both read the catalogue, mark, write, and end with a join; rows are made as in encoding, in all 70 orders."""
    for number, first in enumerate(combinations(range(8), 4)):
        store = PatchStore(str(tmp_path / str(number)))
        store.write_manifest(make_manifest("m", [{"slide_id": "a", "label": "0"}, {"slide_id": "b", "label": "1"}]))
        write_slide(store, "a", features=False)
        store.join_catalogue()
        encodings = {name: _encoding(store, name) for name in "fg"}
        for step in range(8):
            next(encodings["f" if step in first else "g"])
        assert store.catalogue().slide("a").feature_names() == ["f", "g"], first
        store.join_catalogue()
        assert store.catalogue().row("a") == store.read_row("a"), first


def _encoding(store: PatchStore, name: str) -> Iterator[None]:
    """Steps of an encoding of slide a."""
    catalogue = store.catalogue()
    yield
    rows = store.row_writer(f"encode-{name}", ["a"], catalogue)
    yield
    written = store.slide("a").write_feature_array(name, np.ones((3, 2), np.float32), {})
    before = catalogue.row("a")
    yield
    row = before.with_array(f"features/{name}", written.metadata) if before else store.read_row("a")
    assert row is not None
    rows.add(row)
    rows.close()
    store.join_catalogue()
    yield
