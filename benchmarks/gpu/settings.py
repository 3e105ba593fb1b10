"""Settings of the GPU benchmark: sizes, bounds and goals."""

from typing import NamedTuple

from benchmarks.pooling import BagsOf

# largest relative deviation from fp64 on the CPU: of losses, and of weights in terms of their change
BOUNDS = {"fp32": (1e-4, 1e-3), "bf16": (3e-2, 3e-2)}
# of the measured peak of matrix products
POOLING_PEAK_SHARE = 0.6
# times as fast
OVER_LOOP = 10.0
OVER_TORCHMIL = 5.0
# of the measured bandwidth of copies from pinned memory
STREAMED_BANDWIDTH_SHARE = 0.7
# patches per second end to end over those of the bare network
ENCODE_SHARE = 0.9
# device memory of a bag over that of one of a tenth of its size
CONSTANT_MEMORY = 1.05
PASSES_OF_STREAMING = 2
FREE_MEMORY_SHARE = 0.6
WIDTH = 1536
STREAMED_MB = 256.0


class Sizes(NamedTuple):
    """Sizes of what is measured on a kind of device.

    Args:
        rounds: counted steps of each method.
        large: bags of a step of pooling.
        small: bags of a step beside a loop over bags and torchmil.
        streamed: instances of the bag that is streamed, at most; less where the host's memory is smaller.
    """

    rounds: int
    large: BagsOf
    small: BagsOf
    streamed: int


SMALL_BAGS = BagsOf(256, 5, 30)
SIZES = {
    "cuda": Sizes(20, BagsOf(4, 10_000, 10_000), SMALL_BAGS, 10_000_000),
    "cpu": Sizes(3, BagsOf(4, 1_000, 1_000), SMALL_BAGS, 50_000),
}
