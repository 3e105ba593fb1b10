"""Leave-one-out by prefix and suffix merges against brute force, and their largest difference.

``python -m benchmarks.leave_one_out [--instances 10000] [--brute N]``

Gated attention on random features (n, 1024), 512 hidden, attention 256. Brute force asks the model once for each bag
without an instance. It is timed on the first ``--brute`` instances, spread evenly, and scaled to all of them.
"""

import argparse
import time

import torch

from milcore.config import TrainConfig
from milcore.mil.bags.batch import Bag, pack
from milcore.mil.leave_one_out import leave_one_out
from milcore.mil.model import make_model

WIDTH = 1024


def main() -> None:
    """Print both times, their ratio and the largest difference of log-probabilities."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--instances", type=int, default=10_000)
    parser.add_argument("--brute", type=int, default=50, help="instances that brute force is timed on")
    options = parser.parse_args()
    torch.manual_seed(0)
    rows = torch.randn(options.instances, WIDTH)
    model = make_model(TrainConfig(features="f"), WIDTH, classes=2).eval()
    began = time.perf_counter()
    log_probs = leave_one_out(model, Bag("bag", "", 0, rows))
    merged = time.perf_counter() - began
    places = torch.linspace(0, options.instances - 1, options.brute).long().tolist()
    began = time.perf_counter()
    with torch.no_grad():
        asked = [model(pack([Bag("", "", 0, torch.cat([rows[:k], rows[k + 1 :]]))], [0]), None)[0] for k in places]
    brute = (time.perf_counter() - began) / len(places) * options.instances
    apart = (torch.stack(asked) - log_probs[places]).abs().max().item()
    print(f"{options.instances} instances: merges {merged:.2f} s, brute force {brute:.0f} s, {brute / merged:.0f} x")
    print(f"largest difference of a log-probability: {apart:.1e}")


if __name__ == "__main__":
    main()
