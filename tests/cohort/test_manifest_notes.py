"""Notes on a manifest: what is no error, but seldom meant."""

from pathlib import Path

import pytest

from milcore.cohort.manifest import read_manifest
from milcore.cohort.manifest_notes import lost_columns_note, manifest_notes

CASES = Path(__file__).resolve().parents[1] / "cases" / "csv"
APART = "counted apart, though they differ in case, spaces or leading zeros alone"
MIXED = "warning: label: 1 patient(s) with slides of several classes"
TWICE = "warning: uri: one file under several ids: n.tif is "


def notes_of(text: str, folder: Path) -> list[str]:
    (folder / "m.csv").write_text(text)
    return manifest_notes(read_manifest(str(folder / "m.csv")))


@pytest.mark.parametrize(
    ("name", "notes"),
    [
        ("ext.csv", []),
        ("duppath.csv", [f"{TWICE}a (0) and b (1)"]),
        (
            "caseid.csv",
            [
                f"warning: slide_id: {APART}: 'A1' and 'a1'",
                f"{TWICE}A1 (0) and a1 (1)",
            ],
        ),
        (
            "patient2labels.csv",
            [
                f"{TWICE}a (0) and b (1)",
                f"{MIXED}: p (0, 1); figures of patients take the highest, and a bag is a slide, not a patient",
            ],
        ),
        (
            "labels_pm1.csv",
            [
                "label: '1' is the positive class, '-1' the negative one; --positive takes the other",
                f"{TWICE}a (-1) and b (1)",
            ],
        ),
    ],
)
def test_cases_are_noted(name: str, notes: list[str]) -> None:
    assert manifest_notes(read_manifest(str(CASES / name))) == notes


def test_variants_of_classes_patients_and_sites_are_noted(tmp_path: Path) -> None:
    rows = ["slide_id,uri,label,patient_id,site", "a,a,Tumour,P1,Ulm", "b,b,tumour,p1,ulm", "c,c,normal,07,Bonn"]
    text = "\n".join([*rows, "d,d,normal,7,Bonn"])
    assert [note for note in notes_of(text, tmp_path) if APART in note] == [
        f"warning: label: {APART}: 'Tumour' and 'tumour'",
        f"warning: patient_id: {APART}: 'P1' and 'p1'; '07' and '7'",
        f"warning: site: {APART}: 'Ulm' and 'ulm'",
    ]


def test_a_usual_manifest_has_no_note(tmp_path: Path) -> None:
    assert notes_of("slide_id,uri,label,patient_id\na,a,0,p\nb,b,0,p\nc,c,1,q\n", tmp_path) == []


def test_columns_that_a_manifest_lacks_beside_an_earlier_one_are_named(tmp_path: Path) -> None:
    """An empty column of a slide, such as split, is none; a further column stays, whatever is in it."""
    path = tmp_path / "m.csv"
    path.write_text(
        "slide_id,uri,label,patient_id,site,split,os_days,os_event\na,a.tif,0,P,Rome,,3,1\nb,b.tif,1,Q,,,4,\n"
    )
    full = read_manifest(str(path))
    path.write_text("slide_id,uri,patient_id,os_event\na,a.tif,P,\nb,b.tif,Q,\n")
    part = read_manifest(str(path))
    assert lost_columns_note(full, part) == (
        "warning: manifest: column(s) label, site, os_days of the store's are not in this one, and are dropped; add "
        "them and ingest or import again to have them back"
    )
    assert lost_columns_note(part, full) is None
    assert lost_columns_note(full, full) is None
