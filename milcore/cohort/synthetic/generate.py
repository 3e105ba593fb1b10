"""Generator of synthetic cohorts: pyramidal slides, annotations and a manifest.

They serve to try the whole system on any machine. About half the slides are positive; those hold lesions in 1 to 8 % of
their tissue patches (256 px at 0.5 um/px). A patient's slides share a label. Stain, pen marks and folds are independent
of the label, sites are dealt evenly to both labels. The same seed gives the same bytes whatever the number of workers,
and ``manifest.csv`` is written last.

This tests software, not medicine: results on synthetic slides do not carry over to real tumours.
"""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from shapely import Polygon
from shapely.geometry import mapping

from milcore.cohort.synthetic.painting import paint_slide
from milcore.errors import InputError, MILError
from milcore.runtime import storage
from milcore.runtime.processes import map_in_processes
from milcore.slides.write_pyramid import write_pyramid

SIZE = (4096, 3072)
MPP = 0.5
LEVELS = 4
SITES = {"north": -0.06, "south": 0.0, "west": 0.06}
SLIDES_PER_PATIENT = (1, 2, 1, 1, 1, 3, 1)
LESION_SHARE = (0.012, 0.030)
COLUMNS = ("slide_id", "uri", "label", "patient_id", "site", "annotation")


@dataclass(frozen=True)
class SyntheticSlide:
    """A slide of the plan; ``index`` and cohort seed determine all its pixels."""

    index: int
    label: int
    patient_id: str
    site: str

    @property
    def slide_id(self) -> str:
        """Identifier in the manifest."""
        return f"slide-{self.index:04d}"


def plan_slides(slides: int, seed: int) -> tuple[SyntheticSlide, ...]:
    """Deal slides to patients and patients to labels and sites.

    Patients have one to three slides. Each pair of successive patients is one negative and one positive, in random
    order, of the same site and the same number of slides, so that labels are balanced and sites carry no information.

    Args:
        slides: how many, at least 2.
        seed: of the cohort.

    Raises:
        InputError: fewer than 2 slides.
    """
    if slides < 2:
        raise InputError(f"slides: expected at least 2 slides, one of each label, got {slides}; allowed: 2, 3, …")
    rng = np.random.default_rng([seed, 0])
    plan: list[SyntheticSlide] = []
    for pair in range(slides):
        each = SLIDES_PER_PATIENT[pair % len(SLIDES_PER_PATIENT)]
        site = list(SITES)[pair % len(SITES)]
        for order, label in enumerate(rng.permutation(2)):
            patient = f"patient-{2 * pair + order:04d}"
            plan += [SyntheticSlide(len(plan) + k, int(label), patient, site) for k in range(each)]
    return tuple(plan[:slides])


def synthesise(out_uri: str, slides: int, seed: int, workers: int) -> Iterator[str]:
    """Write a cohort below ``out_uri``; yield the id of each slide written.

    Args:
        out_uri: folder to write ``slides/*.tiff``, ``annotations/*.geojson`` and ``manifest.csv`` into.
        slides: how many, at least 2.
        seed: the same seed gives the same bytes.
        workers: processes; 0 or 1 works in this one. Each holds about 250 MB.

    Raises:
        InputError: fewer than 2 slides.
        MILError: a process was killed twice over the same slide.
    """
    plan = plan_slides(slides, seed)
    write = partial(write_slide, storage.absolute(out_uri), seed)
    if workers <= 1:
        yield from map(write, plan)
    else:
        yield from map_in_processes(write, plan, workers, _report_killed)
    storage.write_bytes(storage.join(storage.absolute(out_uri), "manifest.csv"), manifest_csv(plan).encode())


def write_slide(out_uri: str, seed: int, slide: SyntheticSlide) -> str:
    """Paint and write one slide, with its annotation if positive; return its id."""
    rng = np.random.default_rng([seed, 1, slide.index])
    lesion_share = slide.label * rng.uniform(*LESION_SHARE)
    painting = paint_slide(rng, SIZE, SITES[slide.site], lesion_share)
    pyramid = io.BytesIO()
    write_pyramid(pyramid, painting.pixels, MPP, LEVELS)
    storage.write_bytes(storage.join(out_uri, slide_uri(slide)), pyramid.getvalue())
    if slide.label:
        storage.write_bytes(storage.join(out_uri, annotation_uri(slide)), geojson(painting.lesions).encode())
    return slide.slide_id


def _report_killed(slide: SyntheticSlide) -> str:
    raise MILError(f"{slide.slide_id}: its process was killed twice (out of memory?); try fewer workers")


def slide_uri(slide: SyntheticSlide) -> str:
    """URI of a slide relative to the manifest."""
    return f"slides/{slide.slide_id}.tiff"


def annotation_uri(slide: SyntheticSlide) -> str:
    """URI of a slide's annotation relative to the manifest; empty if negative."""
    return f"annotations/{slide.slide_id}.geojson" if slide.label else ""


def geojson(lesions: tuple[Polygon, ...]) -> str:
    """Lesion outlines as GeoJSON for QuPath, one feature per polygon, level-0 px."""
    features = [
        {
            "type": "Feature",
            "geometry": mapping(lesion),
            "properties": {"objectType": "annotation", "classification": {"name": "lesion"}},
        }
        for lesion in lesions
    ]
    return json.dumps({"type": "FeatureCollection", "features": features}) + "\n"


def manifest_csv(plan: tuple[SyntheticSlide, ...]) -> str:
    """The cohort's manifest as CSV, with relative URIs."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for slide in plan:
        rows.writerow(
            (slide.slide_id, slide_uri(slide), slide.label, slide.patient_id, slide.site, annotation_uri(slide))
        )
    return text.getvalue()
