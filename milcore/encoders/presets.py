"""Published pathology encoders by name: input, feature width, source and licence.

A row follows the authors' model card; copies of the weights are checked against it. Licences are the authors' own and
bind you; ``gated`` weights are released after one has accepted the licence on the page.
"""

from typing import NamedTuple

from milcore.encoders.spec import Tokens, Triple
from milcore.encoders.transform import IMAGENET_MEAN, IMAGENET_STD

HALF: Triple = (0.5, 0.5, 0.5)
BIOPTIMUS_MEAN: Triple = (0.707223, 0.578729, 0.703617)
BIOPTIMUS_STD: Triple = (0.211883, 0.230117, 0.177517)
CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)
NC = "CC-BY-NC-ND-4.0"


class Preset(NamedTuple):
    """Facts of one published encoder.

    Args:
        loader: key of LOADERS.
        width: of its features.
        repository: on the authors' hub; empty where there is none.
        licence: of the weights.
        gated: True where the weights are released on request only.
        source: paper.
        mpp: um/px it was trained at; empty for any.
        heads: attention heads, which are not in a file of weights; 0 for other networks than vision transformers.
        mean: of the channels, in 0 to 1.
        std: of the channels, in 0 to 1.
        tokens: output tokens that make the feature.
        input_px: edge of its input.
    """

    loader: str
    width: int
    repository: str
    licence: str
    gated: bool
    source: str
    mpp: tuple[float, ...] = (0.5,)
    heads: int = 0
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    tokens: Tokens = "cls"
    input_px: int = 224

    @property
    def page(self) -> str:
        """Address of the authors' page with the weights."""
        return f"https://huggingface.co/{self.repository}"


PRESETS: dict[str, Preset] = {
    "efficientnet_lite0": Preset(
        "efficientnet_lite0", 1280, "", "Apache-2.0", gated=False, source="Tan, Le 2019, arXiv 1905.11946", mpp=()
    ),
    "resnet50": Preset(
        "resnet50", 1024, "timm/resnet50.tv_in1k", "BSD-3-Clause", gated=False,
        source="He et al. 2016, arXiv 1512.03385; cut after stage 3: Lu et al. 2021, arXiv 2004.09666", mpp=(),
    ),
    "phikon": Preset(
        "hf", 768, "owkin/phikon", "Owkin non-commercial", gated=False,
        source="Filiot et al. 2023, medRxiv 2023.07.21.23292757",
    ),
    "phikon-v2": Preset(
        "hf", 1024, "owkin/phikon-v2", "Owkin non-commercial", gated=False,
        source="Filiot et al. 2024, arXiv 2409.09173",
    ),
    "uni": Preset(
        "vit", 1024, "MahmoodLab/UNI", NC, gated=True, source="Chen et al. 2024, doi 10.1038/s41591-024-02857-3",
        heads=16,
    ),
    "uni2-h": Preset(
        "vit", 1536, "MahmoodLab/UNI2-h", NC, gated=True, source="Chen et al. 2024, doi 10.1038/s41591-024-02857-3",
        heads=24,
    ),
    "virchow": Preset(
        "vit", 2560, "paige-ai/Virchow", "Apache-2.0", gated=True,
        source="Vorontsov et al. 2024, doi 10.1038/s41591-024-03141-0", heads=16, tokens="cls+mean",
    ),
    "virchow2": Preset(
        "vit", 2560, "paige-ai/Virchow2", NC, gated=True, source="Zimmermann et al. 2024, arXiv 2408.00738",
        mpp=(0.5, 0.25, 1.0, 2.0), heads=16, tokens="cls+mean",
    ),
    "h-optimus-0": Preset(
        "vit", 1536, "bioptimus/H-optimus-0", "Apache-2.0", gated=True,
        source="Saillard et al. 2024, github.com/bioptimus", heads=24, mean=BIOPTIMUS_MEAN, std=BIOPTIMUS_STD,
    ),
    "h-optimus-1": Preset(
        "vit", 1536, "bioptimus/H-optimus-1", NC, gated=True, source="Bioptimus 2025, huggingface.co/bioptimus",
        heads=24, mean=BIOPTIMUS_MEAN, std=BIOPTIMUS_STD,
    ),
    "h0-mini": Preset(
        "vit", 1536, "bioptimus/H0-mini", NC, gated=True, source="Filiot et al. 2025, arXiv 2501.16239",
        heads=12, mean=BIOPTIMUS_MEAN, std=BIOPTIMUS_STD, tokens="cls+mean",
    ),
    "gigapath": Preset(
        "vit", 1536, "prov-gigapath/prov-gigapath", "Apache-2.0 with conditions", gated=True,
        source="Xu et al. 2024, doi 10.1038/s41586-024-07441-w", heads=24,
    ),
    "midnight": Preset(
        "hf", 3072, "kaiko-ai/midnight", "MIT", gated=False, source="Karasikov et al. 2025, arXiv 2504.05186",
        mpp=(0.5, 0.25, 1.0, 2.0), mean=HALF, std=HALF, tokens="cls+mean",
    ),
    "conch": Preset(
        "torchscript", 512, "MahmoodLab/CONCH", NC, gated=True, source="Lu et al. 2024, doi 10.1038/s41591-024-02856-4",
        mean=CLIP_MEAN, std=CLIP_STD, input_px=448,
    ),
}  # fmt: skip
