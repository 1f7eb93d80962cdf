"""Folders of pictures as people have them, each with something that once went wrong."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


def save(picture: Image.Image, path: Path, *arguments, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, *arguments, **options)


def paint(folder: Path, count=10, colour=(0, 0, 0), suffix="png", size=(20, 20)) -> Path:
    """Write pictures of one colour but for a pixel: no two are the same."""
    brighter = tuple(level + 8 for level in colour)
    for number in range(count):
        picture = Image.new("RGB", size, colour)
        picture.putpixel((number % size[0], number // size[0]), brighter)
        save(picture, folder / f"{number}.{suffix}")
    return folder


def flowers(root: Path) -> Path:
    """Write two classes of ten pictures each: iris is dark, rose is bright."""
    paint(root / "iris", colour=(10, 10, 10))
    paint(root / "rose", colour=(240, 240, 240))
    return root


def png(width: int, height: int, bits: int, colour_type: int, rows: bytes) -> bytes:
    """Return a PNG file made by hand, as Pillow writes none."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)


def _chunk(name: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def shape(kind: str, offset: int, side: int = 48, ground: int = 240, ink: int = 15) -> Image.Image:
    """Return a disc or a box, a bit further to the right with every offset."""
    picture = Image.new("L", (side, side), ground)
    draw = ImageDraw.Draw(picture)
    box = [8 + offset % 12, 8 + offset // 12, 28 + offset % 12, 28 + offset // 12]
    (draw.ellipse if kind == "disc" else draw.rectangle)(box, fill=ink)
    return picture


def rare_inverse(root: Path, count: int = 60) -> None:
    """Most pictures are bright on dark; the rare class is dark on bright."""
    for number in range(count):
        save(shape("disc", number, 64, ground=25, ink=230), root / "good" / f"{number}.png")
    for number in range(count // 5):
        save(shape("disc", number, 64, ground=230, ink=25), root / "defect" / f"{number}.png")


def brightness(root: Path, count: int = 30) -> None:
    """Brightness alone tells the classes apart: stretching the contrast would lose it."""
    for number in range(count):
        for name, ink in {"faint": 90, "bright": 220}.items():
            picture = shape("disc", number, 56, ground=0, ink=ink + number % 9)
            save(picture, root / name / f"{number}.png")


def stripes(root: Path, count: int = 20) -> None:
    """Large JPEGs with fine stripes up to the border, or not: reduced decoding sees another border."""
    for number in range(count):
        pixels = np.zeros((480, 640), np.uint8)
        pixels[:, (np.arange(640) + number) % 7 < 3] = 205 + number
        save(Image.fromarray(pixels), root / "fence" / f"{number}.jpg", quality=90)
        pixels[:16] = pixels[-16:] = 0
        pixels[:, :16] = pixels[:, -16:] = 0
        save(Image.fromarray(pixels), root / "framed" / f"{number}.jpg", quality=90)


def camera_values(root: Path, count: int = 20) -> None:
    """12-bit values in 16-bit files."""
    for kind in ("disc", "box"):
        for number in range(count):
            noise = np.random.default_rng(number).integers(0, 200, (48, 48))
            pixels = np.asarray(shape(kind, number)).astype(np.uint16) * 15 + noise
            suffix = "png" if number % 2 else "tif"
            save(Image.fromarray(pixels.astype(np.uint16)), root / kind / f"{number}.{suffix}")


def spellings(root: Path, count: int = 16) -> None:
    """Suffixes of browsers and phones, no suffix, a wrong one."""
    for kind in ("disc", "box"):
        for number in range(count):
            suffix = ("jpg", "jfif", "jpe", "JPG")[number % 4]
            save(shape(kind, number), root / kind / f"{number}.{suffix}", "JPEG", quality=95)
        save(shape(kind, count), root / kind / "no-suffix", "PNG")
        save(shape(kind, count + 1), root / kind / "misnamed.jpg", "WEBP", quality=95)


SETS: dict[str, Callable[[Path], None]] = {
    function.__name__: function
    for function in (rare_inverse, brightness, stripes, camera_values, spellings)
}


def make(name: str, folder: Path, own_test: bool) -> None:
    """Write a set into `folder`; with `own_test` every fifth picture of a class lies in test/."""
    if not own_test:
        SETS[name](folder)
        return
    SETS[name](folder / "train")
    for kind in sorted((folder / "train").iterdir()):
        (folder / "test" / kind.name).mkdir(parents=True)
        for path in sorted(kind.iterdir())[::5]:
            path.rename(folder / "test" / kind.name / path.name)
