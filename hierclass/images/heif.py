"""Read HEIC and HEIF by `pillow-heif`, without making its plugin known to Pillow."""

from __future__ import annotations

from typing import Any

from PIL import ImageFile


class HeifPicture(ImageFile.ImageFile):
    """The main picture of a HEIC file, 8 bits, upright: libheif turns it as the file says, whatever EXIF says."""

    format = "HEIF"

    def _open(self) -> None:
        import pillow_heif

        self._heif: Any = pillow_heif.open_heif(self.fp, convert_hdr_to_8bit=True)
        main = self._heif[self._heif.primary_index]
        self._size, self._mode = main.size, main.mode
        self.tile = []

    def load(self) -> Any:
        """Decode the picture."""
        if self._heif is not None:
            main, self._heif = self._heif[self._heif.primary_index], None
            data = main.data
            self._size = main.size
            self.load_prepare()
            self.frombytes(data, "raw", (main.mode, main.stride))
        return super().load()
