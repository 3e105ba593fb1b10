"""The attention of one slide, read from the files that evaluation or prediction wrote."""

import io
from collections.abc import Callable
from functools import cached_property

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int
from PIL import Image

from milcore.errors import AbsentFileError, InputError
from milcore.runtime import html, storage
from milcore.training import run_files


class SlideAttention:
    """Attention of a slide's patches: shares of their bag's whole.

    A bag is the slide, or all slides of a patient where the run's bags are patients. It is no
    probability of disease. Files are read when they are asked for.

    Args:
        folder_uri: folder with ``<slide_id>.parquet`` and ``<slide_id>.png``.
        slide_id: of the slide.
        read_picture: reads the picture at a URI.
    """

    def __init__(
        self, folder_uri: str, slide_id: str, read_picture: Callable[[str], bytes] = run_files.read_file
    ) -> None:
        self.slide_id = slide_id
        self._uri = storage.join(folder_uri, slide_id)
        self._read_picture = read_picture

    @cached_property
    def table(self) -> pa.Table:
        """A row per patch, in the store's order.

        Columns weight and percentile, and where they are known x, y, size (level-0 px), tissue, score and the instance
        probability.

        Raises:
            InputError: the evaluation wrote none.
        """
        try:
            return storage.read_table(f"{self._uri}.parquet")
        except FileNotFoundError:
            raise self._absent("parquet") from None

    @property
    def weights(self) -> Float[np.ndarray, " patch"]:
        """Share of each patch; those of a bag sum to 1."""
        weights: np.ndarray = self.table["weight"].to_numpy()
        return weights

    @property
    def coords(self) -> Int[np.ndarray, "patch 2"] | None:
        """Corner (x, y) of each patch in level-0 px.

        None where an import does not know it.
        """
        if "x" not in self.table.column_names:
            return None
        return np.stack([self.table["x"].to_numpy(), self.table["y"].to_numpy()], axis=1)

    def overlay(self) -> Image.Image:
        """The slide's thumbnail with attention drawn over it.

        Raises:
            InputError: the evaluation wrote none, or the coordinates of patches are unknown.
        """
        return Image.open(io.BytesIO(self._png))

    @cached_property
    def _png(self) -> bytes:
        try:
            return self._read_picture(f"{self._uri}.png")
        except (FileNotFoundError, AbsentFileError):
            raise self._absent("png") from None

    def load(self) -> None:
        """Read table and picture, so that the files may go."""
        _ = self.table
        if self.coords is not None and len(self.table):
            _ = self._png

    def _absent(self, file_format: str) -> InputError:
        return InputError(
            f"attention of slide {self.slide_id}: expected {self._uri}.{file_format}, got none; evaluate or predict "
            f"with {file_format} among the attention_formats, on slides whose patches have coordinates"
        )

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        return f"SlideAttention({self.slide_id})"

    def _repr_html_(self) -> str:
        """The overlay, or why there is none, for a notebook."""
        try:
            return html.picture(self._png, "png", f"attention of {self.slide_id}")
        except InputError as error:
            return html.line(error.line)
