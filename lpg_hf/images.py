"""Opening image files: headers, EXIF orientation, limits, and any kind of image as upright 8-bit RGB."""

import os
import stat
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from lpg_hf._bands import (
    TIFF_STARTS,
    Bands,
    Notes,
    Rendering,
    TooManyPixels,
    bands_in_file,
    num_pages,
    pillow_bands,
    pillow_holds,
    png_bands,
    tiff_bands,
)
from lpg_hf._files import check_machine, fs_path


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
# Pillow's own limit for an error (twice its limit for a warning), 178,956,970 pixels.
MAX_PIXELS = 2 * (1024 * 1024 * 1024 // 4 // 3)
# Sides of images for a network; images whose padded sizes agree share a forward pass.
PAD_MULTIPLE = 32
EXIF_ORIENTATION = 0x0112
PNG_START = b"\x89PNG\r\n\x1a\n"
# Pillow's names of what is opened, by content. Its other formats are rare, and one starts a program (PostScript).
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF")
FORMATS_WITH_AN_END = ("JPEG", "MPO", "PNG", "WEBP")  # Pillow's names

_STRIP = 4_000_000  # pixels that are copied from Pillow at once
# What Pillow raises on a damaged file: it trusts the numbers in headers, tags and chunks.
_DAMAGE = (OSError, SyntaxError, EOFError, ValueError, TypeError, LookupError, ArithmeticError, struct.error)

# What an image can be read from.
ImageSource = str | os.PathLike | BinaryIO | Image.Image
# EXIF orientation -> what makes the image upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageProblem(OSError):
    """An image that cannot be used; `kind` is its key in `PROBLEMS`."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


_pixel_limit_lock = threading.Lock()


@contextmanager
def _without_pixel_limit() -> Iterator[None]:
    """Switch Pillow's process-wide limit off for one `Image.open`, as ours is an argument."""
    with _pixel_limit_lock:
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def open_image(source: ImageSource, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open an image: its header is read, its pixels are not.

    Args:
        source: path or binary file; an opened image is returned as it is.
        name: for messages.
        max_pixels: an image with more is refused before any memory is taken for it.

    Raises:
        ImageProblem: it cannot be opened, or is too large.
        MachineError: no file can be opened.
    """
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, (str, os.PathLike)):
        source = fs_path(source)
    try:
        if isinstance(source, str) and not stat.S_ISREG(os.stat(source).st_mode):  # to open a pipe waits for a writer
            raise OSError("it is not a file")
        with _without_pixel_limit():
            image = Image.open(source, formats=FORMATS)
    except _DAMAGE as error:
        check_machine(error)
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "it is not an image of a known format" if unknown else getattr(error, "strerror", None) or str(error)
        if _is_cut_file(source) or "truncated" in reason.lower():
            raise ImageProblem("truncated_image", f"the image {name} is cut off: {reason}") from error
        raise ImageProblem("unreadable_image", f"cannot open the image {name}: {reason}") from error
    width, height = image.size
    if width * height > max_pixels:
        image.close()
        raise _too_large(name, f"{width} x {height} = {width * height} pixels", max_pixels)
    return image


def load_pixels(image: Image.Image, name: str) -> None:
    """Decode an opened image, which Pillow else does where its values are first asked for.

    Raises:
        ImageProblem: damaged or cut off; `name` is in the message.
    """
    try:
        image.load()
    except _DAMAGE as error:
        raise _undecodable(name, error) from error


def _too_large(name: str, what: str, max_pixels: int) -> ImageProblem:
    return ImageProblem(
        "image_too_large",
        f"the image {name} has {what}, more than max_pixels={max_pixels}; raise max_pixels (--max-pixels) if you "
        "trust the file",
    )


def _open(source: ImageSource, name: str, max_pixels: int, rendering: Rendering = Rendering()) -> Image.Image | Bands:
    """As `open_image`; a TIFF that Pillow does not hold is read as a whole."""
    try:
        image = open_image(source, name, max_pixels)
    except ImageProblem as problem:
        if problem.kind != "unreadable_image" or isinstance(source, Image.Image) or not _starts_as_tiff(source):
            raise
        return _read_tiff(source, name, max_pixels)
    is_cut = image.format == "TIFF" and getattr(image, "fp", None) and not pillow_holds(image, rendering)
    return _read_tiff(image, name, max_pixels) if is_cut else image


@contextmanager
def _opened(source: ImageSource) -> Iterator[IO[bytes]]:
    """The file of an image."""
    if isinstance(source, (str, os.PathLike)):
        with open(fs_path(source), "rb") as file:
            yield file
        return
    file = getattr(source, "fp", None) if isinstance(source, Image.Image) else source
    assert file is not None
    yield file


def _starts_as_tiff(source: ImageSource) -> bool:
    if isinstance(source, (str, os.PathLike)) and not os.path.isfile(fs_path(source)):
        return False
    with _opened(source) as file:
        file.seek(0)
        return file.read(4) in TIFF_STARTS


def _read_tiff(source: ImageSource, name: str, max_pixels: int) -> Bands:
    """All bands of a TIFF of any number type; raises ImageProblem."""
    try:
        with _opened(source) as file:
            return tiff_bands(file, max_pixels)
    except ImportError as error:
        raise ImageProblem(
            "unreadable_image",
            f"the image {name} is a TIFF of several bands, or of values beyond 8 bits, which needs the extra tiff: "
            "pip install 'lpg_hf[tiff]'",
        ) from error
    except TooManyPixels as error:
        raise _too_large(name, str(error), max_pixels) from error
    except Exception as error:  # tifffile raises many types on a damaged file.
        check_machine(error)
        raise ImageProblem("unreadable_image", f"tifffile cannot read the image {name}: {error}") from error


def _is_cut_file(source: ImageSource) -> bool:
    if not isinstance(source, str) or not os.path.isfile(source):
        return False
    try:
        with open(source, "rb") as file:
            return _ends_early(file)
    except OSError as error:
        check_machine(error)
        raise


def _ends_early(file: IO[bytes]) -> bool:
    """Whether the end mark of a JPEG or PNG is absent: the file may be cut off, only decoding can tell."""
    file.seek(0)
    start = file.read(8)
    file.seek(max(file.seek(0, os.SEEK_END) - 64, 0))
    end = file.read()
    return (start[:3] == b"\xff\xd8\xff" and b"\xff\xd9" not in end) or (start == PNG_START and b"IEND" not in end)


def _exif_orientation(image: Image.Image) -> int:
    """How an opened image is stored: 1 upright, 2 to 8 turned or mirrored; nothing is decoded.

    Pillow turns TIFF itself, and would decode a whole PNG to look for a block behind the pixels.
    """
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1
    try:
        return image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # Pillow's parser raises many types on a broken block; viewers show such an image as stored.
        return 1


def image_orientation(path: str, name: str, max_pixels: int = MAX_PIXELS) -> int:
    """The EXIF orientation of an image, 1 (stored upright) to 8, from its header.

    Raises:
        ImageProblem: unreadable or too large.
    """
    image = _open(path, name, max_pixels)
    if isinstance(image, Bands):  # As Pillow does, readers turn TIFF themselves.
        return 1
    with image:
        orientation = _exif_orientation(image)
    return orientation if orientation in _UPRIGHT else 1


def image_size(path: str | BinaryIO, name: str, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(height, width) of an image when shown upright, from its header; a file that may be cut off is decoded as well.

    So is every BMP, TIFF and the like: they have no mark at their end. Pillow looks at the whole of a WebP when it
    opens it.

    Raises:
        ImageProblem: unreadable, too large or cut off.
    """
    opened = _open(path, name, max_pixels)
    if isinstance(opened, Bands):
        height, width = opened.values.shape[:2]
        return (width, height) if opened.orientation in (5, 6, 7, 8) else (height, width)
    with opened as image:
        width, height = image.size
        turned = _exif_orientation(image) in (5, 6, 7, 8)
        file = getattr(image, "fp", None) if isinstance(path, str) else None
        if image.format not in FORMATS_WITH_AN_END or (file and _ends_early(file)):
            try:
                image.load()
            except _DAMAGE as error:
                raise ImageProblem("truncated_image", f"the image {name} is cut off or damaged: {error}") from error
    return (width, height) if turned else (height, width)


def read_rgb(
    source: ImageSource,
    name: str | None = None,
    max_pixels: int = MAX_PIXELS,
    rendering: Rendering = Rendering(),
    notes: Notes | None = None,
) -> np.ndarray:
    """An image as upright 8-bit RGB.

    Grey becomes three equal channels. Transparent pixels are laid over white, as a viewer shows them. Of more bands
    than three the first three are taken, and values beyond 8 bits are scaled, as `rendering` says.

    Args:
        source: path, binary file, or an opened image.
        name: for messages; None: the path.
        max_pixels: a larger image is refused before it takes memory.
        rendering: bands and range of the values.
        notes: takes what was assumed of the image, as (key in `PROBLEMS`, in words).

    Returns:
        (H, W, 3) uint8 RGB, turned as the EXIF orientation says.

    Raises:
        ImageProblem: cannot be opened, is cut off, or does not have the bands; the message names the file.
    """
    name = name or (os.fspath(source) if isinstance(source, (str, os.PathLike)) else "image")
    image, notes = _open(source, name, max_pixels, rendering), [] if notes is None else notes
    if not isinstance(image, Bands) and not pillow_holds(image, rendering) and getattr(image, "fp", None):
        image = _read_png(image, name)
    if isinstance(image, Bands):
        pixels = _rendered(image, name, rendering, notes)
        upright = _UPRIGHT.get(image.orientation)
        return pixels if upright is None else np.array(Image.fromarray(pixels).transpose(upright))
    try:
        if (num_bands := bands_in_file(image)) > len(image.getbands()):
            notes.append(("chosen_bands", f"1,2,3 of {num_bands}"))
        if (pages := num_pages(image)) > 1:
            notes.append(("first_page", f"1 of {pages}"))
        orientation = _exif_orientation(image)
        if orientation in _UPRIGHT:
            image = image.transpose(_UPRIGHT[orientation])
        if image.mode == "RGB" and "transparency" not in image.info and rendering == Rendering():
            return _array(image)
        bands = pillow_bands(image)
    except _DAMAGE as error:
        raise _undecodable(name, error) from error
    return _rendered(bands, name, rendering, notes)


def _array(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 of an RGB image, strip by strip: at once, Pillow makes two copies beside it."""
    width, height = image.size
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    rows = max(_STRIP // max(width, 1), 1)
    for top in range(0, height, rows):
        strip = image if rows >= height else image.crop((0, top, width, min(top + rows, height)))
        pixels[top : top + rows] = np.asarray(strip)
    return pixels


def _undecodable(name: str, error: Exception) -> ImageProblem:
    check_machine(error)
    kind = "truncated_image" if "truncated" in str(error).lower() else "unreadable_image"  # Pillow's only sign.
    return ImageProblem(kind, f"cannot decode the image {name}: {error}. Replace the file or remove it")


def _read_png(image: Image.Image, name: str) -> Bands:
    """All bits of a PNG with 16-bit colours; raises ImageProblem."""
    try:
        with _opened(image) as file:
            file.seek(0)
            data = file.read()
        image.load()  # Pillow tells whether it is damaged, and OpenCV does not.
        bands = png_bands(data)
    except _DAMAGE as error:
        raise _undecodable(name, error) from error
    bands.orientation = _exif_orientation(image)
    return bands


def _rendered(bands: Bands, name: str, rendering: Rendering, notes: Notes) -> np.ndarray:
    try:
        return bands.to_rgb(rendering, notes)
    except ValueError as error:
        raise ImageProblem("unreadable_image", f"cannot use the image {name}: {error}") from error
