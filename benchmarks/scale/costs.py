"""What a cohort costs in a bucket: requests by the slopes that the tests hold, gigabytes, and money.

``python -m benchmarks.scale.costs [--slides N …] [--instances N]``

Requests with each slide are those of ``tests/requests``, for a slide whose features are one object. Prices are
assumptions: list prices of Amazon S3 Standard, US East, https://aws.amazon.com/s3/pricing: USD 0.005 for 1,000 PUT,
COPY, POST and LIST, 0.0004 for 1,000 GET and others, DELETE free, 0.023 a GB and month, nothing for transfer within a
region.
"""

import argparse
from collections.abc import Mapping

from benchmarks.scale.cases import WIDTH
from tests.requests.test_budgets import BUDGETS

WRITE_USD, READ_USD, GB_MONTH_USD = 0.005 / 1000, 0.0004 / 1000, 0.023
WRITES = ("PUT", "LIST")
STEPS = (
    "import", "ingest", "survey", "gather", "encode", "info", "train, 1 epoch", "train, 2 epochs, no cache",
    "evaluate on encoded", "predict",
)  # fmt: skip


def requests_of(step: str, slides: int) -> Mapping[str, float]:
    """Requests of a step by ``writes`` and ``reads``."""
    budget = BUDGETS[step]
    slides = min(slides, budget.most_slides or slides)
    kinds = [item for place in (budget.store, budget.run, budget.files) for item in place.items()]
    writes = slides * sum(count for kind, count in kinds if kind in WRITES)
    return {
        "writes": writes,
        "reads": budget.fixed + slides * sum(count for kind, count in kinds if kind not in WRITES),
    }


def main() -> None:
    """Print a table per number of slides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--instances", type=int, default=5000, help="of a slide, features of 1024 f2")
    given = parser.parse_args()
    for slides in given.slides:
        gigabytes = slides * given.instances * WIDTH * 2 / 1e9
        print(f"{slides:,} slides: {gigabytes:,.0f} GB of features, USD {gigabytes * GB_MONTH_USD:,.2f} a month\n")
        print("| step | PUT and LIST | GET and HEAD | USD |\n|---|---:|---:|---:|")
        for step in STEPS:
            requests = requests_of(step, slides)
            dollars = requests["writes"] * WRITE_USD + requests["reads"] * READ_USD
            print(f"| {step} | {requests['writes']:,.0f} | {requests['reads']:,.0f} | {dollars:,.2f} |")
        print()


if __name__ == "__main__":
    main()
