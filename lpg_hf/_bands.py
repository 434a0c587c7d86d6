"""Images that are not 8-bit RGB: which of their bands are red, green and blue, which values black and white."""

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import IO

import numpy as np
from PIL import Image


# What they log stands in our errors too: with a handler, it is not also printed where nobody asked for logs.
for _name in ("PIL.TiffImagePlugin", "tifffile"):
    logging.getLogger(_name).addHandler(logging.NullHandler())

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# What was assumed of an image: (key in `PROBLEMS`, in words).
Notes = list[tuple[str, str]]

_STRETCHES = ("none", "bits", "minmax")
_DEFAULT_OF_FLOATS = "2%,98%"
_MAX_VALUES = 2**31  # of all bands of an image
_SAMPLE = 1_000_000  # pixels that percentiles are taken from
_GREY_OR_RGB = (0, 1, 2)  # TIFF's photometric interpretations
_KIND_OF_PAGE_TAG, _NODATA_TAG, _ORIENTATION_TAG = 254, 42113, 274  # the second is GDAL's
_MAX_PAGES = 100


class TooManyPixels(ValueError):
    """An image is larger than allowed."""


@dataclass(frozen=True)
class Rendering:
    """How the values of an image become 8-bit RGB.

    Attributes:
        bands: numbers, from 1 on, of the bands that are red, green and blue, or of one band that is grey, as a list or
            a text with commas. Transparency is then a band too. None: the first three, or the first of less than
            three; a last band that is tagged as transparency and has mostly values in between is not used.
        stretch: which values become 0 and 255, those beyond are cut: "none" (the range of the type: 255, 65535, or 1
            of floats), "bits" (0, and the largest number of as many bits as the image uses: 4095 where its largest
            value is 3000), "minmax", two percentages such as "2%,98%", or two values such as "0,4095". Percentages and
            "minmax" are of each band; pixels without data and values that are not finite do not count, and are black.
            None: 8 bits stay as they are, other values from 0 to 65535 are taken as "bits", and further ones and
            floats as "2%,98%".

    Raises:
        ValueError: a value is not one of these.
    """

    bands: str | Sequence[int] | None = None
    stretch: str | None = None

    def __post_init__(self):
        bands = self.bands
        if bands is not None:
            numbers = [str(part).strip() for part in (bands.split(",") if isinstance(bands, str) else bands)]
            if len(numbers) not in (1, 3) or not all(re.fullmatch("[1-9][0-9]{0,4}", number) for number in numbers):
                raise ValueError(
                    f"bands={bands!r} must be one or three numbers from 1 on, such as 4,3,2 for red, green, blue"
                )
            object.__setattr__(self, "bands", tuple(map(int, numbers)))
        if self.stretch is not None and self.stretch not in _STRETCHES and self._limits is None:
            raise ValueError(
                f"stretch={self.stretch!r} must be one of {', '.join(_STRETCHES)}, or two percentages (2%,98%) or "
                "values (0,4095), the lower one first"
            )

    @property
    def _limits(self) -> tuple[float, float] | None:
        """The two percentages or values of `stretch`."""
        numbers = [part.strip() for part in (self.stretch or "").split(",")]
        percent = all(number.endswith("%") for number in numbers)
        try:
            low, high = (float(number.removesuffix("%") if percent else number) for number in numbers)
        except ValueError:
            return None
        inside = 0 <= low and high <= 100 if percent else math.isfinite(high - low)
        return (low, high) if low < high and inside else None

    def limits(self, values: np.ndarray, usable: np.ndarray | bool) -> list[tuple[float, float]]:
        """What becomes 0 and 255 in each band of values, (H, W, N); `usable` (the same shape) says which count."""
        is_whole = values.dtype.kind in "iu"
        largest = int(values.max(initial=0, where=usable)) if is_whole else 0
        fits = is_whole and largest <= 65535 and values.min(initial=0, where=usable) >= 0
        stretch = self.stretch or ("bits" if fits else _DEFAULT_OF_FLOATS)
        if stretch in ("none", "bits"):
            top = 65535 if is_whole else 1
            if values.dtype == np.uint8:
                top = 255
            elif stretch == "bits" and is_whole:
                top = 2 ** max(8, largest.bit_length()) - 1
            return [(0, top)] * values.shape[2]
        if stretch != "minmax" and "%" not in stretch:
            return [self._limits or (0, 1)] * values.shape[2]
        low, high = Rendering(stretch=stretch)._limits or (0, 100)
        step = 1 if stretch == "minmax" else max(1, math.isqrt(values.shape[0] * values.shape[1] // _SAMPLE))
        found = []
        for band in range(values.shape[2]):
            some = values[::step, ::step, band]
            some = some if usable is True else some[usable[::step, ::step, band]]  # pyright: ignore[reportIndexIssue]
            if values.dtype.kind == "f":  # Halves, as the difference of two floats may be larger than the largest.
                limits = [2 * half for half in np.percentile(some / 2, (low, high)).tolist()] if some.size else (0, 1)
            else:
                limits = np.percentile(some, (low, high)).tolist() if some.size else (0, 1)
            found.append(tuple(limits))
        return found


@dataclass
class Bands:
    """All values of an image.

    Attributes:
        values: (H, W, N), of any number type.
        has_alpha: whether the file says that the last band is transparency.
        is_sure: whether it can be nothing else.
        nodata: value of pixels that hold none.
        orientation: as of EXIF, 1 upright.
        is_inverted: whether 0 is white.
        num_pages: in the file, see `num_pages`; these are the values of the first.
    """

    values: np.ndarray
    has_alpha: bool = False
    is_sure: bool = False
    nodata: float | None = None
    orientation: int = 1
    is_inverted: bool = False
    num_pages: int = 1

    def to_rgb(self, rendering: Rendering, notes: Notes) -> np.ndarray:
        """(H, W, 3) uint8 RGB, not turned; what is assumed is added to the notes.

        Raises:
            ValueError: the image does not have the bands.
        """
        num_bands, alpha = self.values.shape[2], None
        if self.num_pages > 1:
            notes.append(("first_page", f"1 of {self.num_pages}"))
        chosen = tuple(map(int, rendering.bands or ()))
        if chosen and max(chosen) > num_bands:
            raise ValueError(f"it has {num_bands} bands, and bands={','.join(map(str, chosen))} needs {max(chosen)}")
        if not chosen:
            num_colors = num_bands - self.has_alpha
            if self.has_alpha and (self.is_sure or _is_transparency(self.values[..., -1])):
                alpha = self.values[..., -1]
            elif self.has_alpha:
                notes.append(("alpha_as_band", f"band {num_bands}"))
            chosen = (1, 2, 3) if num_colors >= 3 else (1,)
            if num_colors > len(chosen):
                notes.append(("chosen_bands", f"{','.join(map(str, chosen))} of {num_bands}"))
        picked = self.values[..., [number - 1 for number in chosen]]
        rgb = self._to_8_bits(picked, rendering, notes)
        rgb = np.repeat(rgb, 3, axis=2) if len(chosen) == 1 else rgb
        if alpha is None:
            return rgb
        opacity = alpha if alpha.dtype == np.uint8 else np.round(alpha / np.iinfo(alpha.dtype).max * 255)
        image = Image.fromarray(np.dstack([rgb, opacity.astype(np.uint8)]))
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
        return np.array(image.convert("RGB"))

    def _to_8_bits(self, values: np.ndarray, rendering: Rendering, notes: Notes) -> np.ndarray:
        """Values, (H, W, N), as uint8."""
        if values.dtype == np.uint8 and rendering.stretch in (None, "none", "bits") and not self.is_inverted:
            return values
        usable: np.ndarray | bool = np.isfinite(values) if values.dtype.kind == "f" else True
        if self.nodata is not None:
            with np.errstate(over="ignore"):
                usable = usable & (values != self.nodata)
        limits = rendering.limits(values, usable)
        if rendering.stretch is None and values.dtype != np.uint8:
            told = ", ".join(f"{low:g} to {high:g}" for low, high in dict.fromkeys(limits))
            notes.append(("scaled_values", f"{values.dtype.name} of {told}"))
        kind = np.result_type(values.dtype, np.float32)
        pixels = np.zeros(values.shape, dtype=np.uint8)
        for band, (low, high) in enumerate(limits):
            # Halves, as the whole range of a type of floats is larger than its largest number.
            shifted, scale = values[..., band].astype(kind) / 2 - low / 2, 255 / max(high / 2 - low / 2, 5e-31)
            with np.errstate(over="ignore"):
                scaled = shifted * scale
            scaled = np.round(np.clip(scaled, 0, 255))
            scaled = 255 - scaled if self.is_inverted else scaled
            inside = True if usable is True else usable[..., band]  # pyright: ignore[reportIndexIssue]
            pixels[..., band] = np.where(inside, scaled, 0)
        return pixels


def _is_transparency(band: np.ndarray) -> bool:
    """Whether a band, (H, W), that is tagged as transparency can be some: light takes mostly values in between."""
    if band.dtype.kind not in "iu" or not band.size:
        return False
    step = max(1, math.isqrt(band.size // _SAMPLE))
    found, counts = np.unique(band[::step, ::step], return_counts=True)
    between = (found > 0) & (found < np.iinfo(band.dtype).max)
    return between.sum() < 2 or 2 * counts[between].sum() <= counts.sum()


def bands_in_file(image: Image.Image) -> int:
    """The number of bands of an opened image, also those that Pillow leaves out."""
    num_bands = getattr(image, "tag_v2", {}).get(277) if image.format == "TIFF" else None
    return num_bands or len(image.getbands())


def num_pages(image: Image.Image) -> int:
    """The number of pages of an opened TIFF, at most 100, without reduced copies and masks of a page; else 1."""
    count = 1
    if image.format == "TIFF" and getattr(image, "fp", None):
        for number in range(1, _MAX_PAGES):  # The attribute n_frames walks through all pages.
            try:
                image.seek(number)
            except EOFError:
                break
            count += not getattr(image, "tag_v2", {}).get(_KIND_OF_PAGE_TAG, 0)
        image.seek(0)
    return count


def pillow_holds(image: Image.Image, rendering: Rendering) -> bool:
    """Whether the pixels of an opened image are as they are in the file: Pillow cuts colours to 8 bits."""
    num_bands, num_held = bands_in_file(image), len(image.getbands())
    if image.format == "PNG":
        rawmodes = [str(tile[3]) for tile in getattr(image, "tile", ())]
        return num_held == 1 or not any(mode.endswith(";16B") for mode in rawmodes)
    if image.format != "TIFF" or num_bands == 1:
        return True
    bits = max(np.ravel(getattr(image, "tag_v2", {}).get(258, 8)))
    return bits <= 8 and (rendering.bands is None or num_bands == num_held)


def pillow_bands(image: Image.Image) -> Bands:
    """The bands of an opened image that Pillow holds; a palette, and colours of other kinds, as RGB."""
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    nodata = _nodata(tags.get(_NODATA_TAG))
    if image.mode.startswith("I") or image.mode == "F":
        return Bands(np.asarray(image)[..., None], nodata=nodata)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        is_sure = image.mode != "RGBA" or image.format not in ("PNG", "TIFF")
        return Bands(np.array(image.convert("RGBA")), has_alpha=True, is_sure=is_sure)
    return Bands(np.atleast_3d(np.array(image.convert("L" if image.mode in ("1", "L") else "RGB"))), nodata=nodata)


def png_bands(data: bytes) -> Bands:
    """The bands of a PNG file with 16-bit colours, which Pillow has decoded without an error."""
    import cv2

    try:
        values = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ValueError(str(error)) from error
    if values is None or values.ndim != 3:
        raise ValueError("OpenCV reads no colours")
    order = [2, 1, 0, 3][: values.shape[2]]  # OpenCV's is blue, green, red
    return Bands(np.asarray(values)[..., order], has_alpha=values.shape[2] == 4)


def tiff_bands(file: IO[bytes], max_pixels: int) -> Bands:
    """All bands of the first image of a TIFF file, of any number type.

    Raises:
        TooManyPixels: before any memory is taken for them.
        ImportError: no tifffile.
        Exception: of many types, a damaged file.
    """
    from tifffile import TiffFile, TiffPage

    file.seek(0)
    with TiffFile(file) as tiff:
        page = tiff.pages.first
        assert isinstance(page, TiffPage)
        height, width, num_bands = page.imagelength, page.imagewidth, page.samplesperpixel
        if height * width > max_pixels or height * width * num_bands > _MAX_VALUES:
            raise TooManyPixels(f"{width} x {height} pixels and {num_bands} bands")
        if page.imagedepth > 1 or page.photometric not in _GREY_OR_RGB or page.dtype is None:
            raise ValueError(f"a TIFF of kind {page.photometric!r} is not read. Save it as RGB, or as single bands")
        values = page.asarray()
        tags = {tag.code: tag.value for tag in page.tags}
        count = sum(
            not other.subfiletype for other in islice(tiff.pages, 1, _MAX_PAGES) if isinstance(other, TiffPage)
        )
    if page.axes == "SYX":
        values = np.moveaxis(values, 0, -1)
    values = np.atleast_3d(values)
    if values.shape != (height, width, num_bands) or values.dtype.kind not in "biuf":
        raise ValueError(f"a TIFF of {values.dtype.name} values in the shape {page.axes} is not read")
    values = values.astype(np.uint8) * 255 if values.dtype.kind == "b" else values
    is_alpha = bool(page.extrasamples) and page.extrasamples[-1] in (1, 2)
    nodata, orientation = _nodata(tags.get(_NODATA_TAG)), int(tags.get(_ORIENTATION_TAG, 1))
    inverted = page.photometric == 0
    return Bands(values, is_alpha, False, nodata, orientation, inverted, num_pages=1 + count)


def _nodata(text: object) -> float | None:
    """GDAL's text for the value of pixels without data; None: there is none, or it is not finite."""
    try:
        value = float(str(text).strip("\0 "))
    except ValueError:
        return None
    return value if math.isfinite(value) else None
