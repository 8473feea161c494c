"""Pictures of nothing that an ImageNet classifier has a name for: drawn here, or found inside installed packages.

Each is small, the same every time, and made without the network. Some are near a name of ImageNet's ("web site",
"military uniform"): what is right is for the reader to judge, so the benchmark names what was answered.
"""

from __future__ import annotations

import importlib.util
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIZE = (360, 300)
EXAMPLES = Path(__file__).parent.parent / "examples"
TEXT = (
    "the account of this year shows that costs have risen while sales stayed where they were and no one of the "
    "members asked why a committee will read all letters before summer and answer them in the order they came"
)

Draw = ImageDraw.ImageDraw


@dataclass(frozen=True)
class Picture:
    """One picture: what kind it is, what it is called, and the image."""

    kind: str
    name: str
    image: Image.Image


def pictures() -> Iterator[Picture]:
    """Yield every picture there is on this machine, kind by kind."""
    for kind, makers in MADE.items():
        for maker in makers:
            for number in range(VARIANTS):
                name = maker.__name__.strip("_").replace("_", " ")
                yield Picture(kind, f"{name} {number + 1}", maker(random.Random(f"{kind} {name} {number}")))
    yield from _digits()
    yield from _found()


VARIANTS = 2
"""How many pictures each function below draws, with other numbers."""


def _blank(colour: str = "white") -> tuple[Image.Image, Draw]:
    image = Image.new("RGB", SIZE, colour)
    return image, ImageDraw.Draw(image)


def _colour(chance: random.Random) -> tuple[int, int, int]:
    return chance.randrange(30, 225), chance.randrange(30, 225), chance.randrange(30, 225)


def _sentence(chance: random.Random, count: int) -> str:
    words = TEXT.split()
    return " ".join(chance.choice(words) for _ in range(count))


# ---- drawings


def _house(chance: random.Random) -> Image.Image:
    image, draw = _blank()
    left, top = chance.randrange(60, 120), chance.randrange(110, 150)
    draw.rectangle((left, top, left + 170, 270), outline="black", width=4)
    draw.polygon([(left - 15, top), (left + 85, top - 80), (left + 185, top)], outline="black", width=4)
    draw.rectangle((left + 70, top + 60, left + 110, 270), outline="black", width=4)
    draw.ellipse((290, 20, 335, 65), outline="black", width=4)
    return image


def _stick_figure(chance: random.Random) -> Image.Image:
    image, draw = _blank()
    x, lift = chance.randrange(120, 240), chance.randrange(-40, 40)
    draw.ellipse((x - 32, 30, x + 32, 94), outline="black", width=4)
    draw.line((x, 94, x, 190), fill="black", width=4)
    for side in (-1, 1):
        draw.line((x, 120, x + side * 70, 140 + lift * side), fill="black", width=4)
        draw.line((x, 190, x + side * 45, 280), fill="black", width=4)
    return image


def _smiling_face(chance: random.Random) -> Image.Image:
    image, draw = _blank(chance.choice(["white", "lightblue"]))
    draw.ellipse((70, 40, 290, 260), fill="gold", outline="black", width=4)
    for x in (140, 220):
        draw.ellipse((x - 12, 110, x + 12, 150), fill="black")
    draw.arc((120, 120, 240, 225), 20, 160, fill="black", width=6)
    return image


# ---- charts


def _axes(draw: Draw) -> None:
    draw.line((45, 20, 45, 260, 340, 260), fill="black", width=2)
    for step in range(6):
        draw.text((12, 250 - 45 * step), str(step * 20), fill="black", font=ImageFont.load_default(13))


def _bars(chance: random.Random) -> Image.Image:
    image, draw = _blank()
    _axes(draw)
    for number in range(7):
        left = 60 + 40 * number
        draw.rectangle((left, chance.randrange(40, 230), left + 26, 259), fill=_colour(chance))
    return image


def _curves(chance: random.Random) -> Image.Image:
    image, draw = _blank()
    _axes(draw)
    for _ in range(3):
        height, speed = chance.uniform(20, 90), chance.uniform(0.01, 0.05)
        points = [(x, 150 + height * math.sin(speed * x + height)) for x in range(46, 340, 4)]
        draw.line(points, fill=_colour(chance), width=3)
    return image


def _pie(chance: random.Random) -> Image.Image:
    image, draw = _blank()
    cuts = sorted(chance.sample(range(20, 340), 4))
    for start, end in zip([0, *cuts], [*cuts, 360], strict=True):
        draw.pieslice((70, 30, 310, 270), start, end, fill=_colour(chance), outline="white", width=3)
    return image


# ---- documents and screens


def _page_of_text(chance: random.Random) -> Image.Image:
    image, draw = _blank()
    draw.text((30, 18), _sentence(chance, 3).title(), fill="black", font=ImageFont.load_default(20))
    for line in range(15):
        draw.text((30, 52 + 16 * line), _sentence(chance, 9), fill="black", font=ImageFont.load_default(11))
    return image


def _form(chance: random.Random) -> Image.Image:
    image, draw = _blank()
    for row in range(8):
        top = 20 + 33 * row
        draw.text((20, top + 6), _sentence(chance, 2), fill="black", font=ImageFont.load_default(12))
        draw.rectangle((150, top, 335, top + 24), outline="black")
    return image


def _terminal(chance: random.Random) -> Image.Image:
    image, draw = _blank("#101418")
    for line in range(18):
        text = f"$ {_sentence(chance, 4)}" if line % 3 == 0 else _sentence(chance, 7)
        colour = "#7ee787" if line % 3 == 0 else "#c9d1d9"
        draw.text((10, 8 + 16 * line), text, fill=colour, font=ImageFont.load_default(12))
    return image


# ---- signs


def _heart(chance: random.Random) -> Image.Image:
    image, draw = _blank()
    angles = [math.tau * step / 90 for step in range(90)]
    points = [
        (
            180 + 110 * math.sin(t) ** 3,
            140 - 7 * (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)),
        )
        for t in angles
    ]
    draw.polygon(points, fill=_colour(chance))
    return image


def _star(chance: random.Random) -> Image.Image:
    image, draw = _blank()
    points = [
        (
            180 + (130 if step % 2 else 52) * math.sin(math.pi * step / 5),
            150 + (130 if step % 2 else 52) * math.cos(math.pi * step / 5),
        )
        for step in range(10)
    ]
    draw.polygon(points, fill=_colour(chance))
    return image


def _tick(chance: random.Random) -> Image.Image:
    image, draw = _blank(chance.choice(["white", "#e8f5e9"]))
    draw.ellipse((60, 30, 300, 270), fill=_colour(chance))
    draw.line((120, 150, 165, 200, 245, 100), fill="white", width=22, joint="curve")
    return image


# ---- patterns and codes


def _square_code(chance: random.Random) -> Image.Image:
    cells = np.array([[chance.random() < 0.5 for _ in range(25)] for _ in range(25)])
    eye = np.pad(np.pad(np.ones((3, 3), bool), 1), 1, constant_values=True)
    for row, column in ((0, 0), (0, 18), (18, 0)):
        cells[row : row + 7, column : column + 7] = eye
    image = Image.new("RGB", SIZE, "white")
    code = Image.fromarray(np.where(cells, 0, 255).astype(np.uint8)).resize(
        (250, 250), Image.Resampling.NEAREST
    )
    image.paste(code, (55, 25))
    return image


def _bar_code(chance: random.Random) -> Image.Image:
    image, draw = _blank()
    x = 40
    while x < 320:
        width = chance.choice([2, 2, 3, 5])
        draw.rectangle((x, 60, x + width - 1, 230), fill="black")
        x += width + chance.choice([2, 3, 5])
    return image


def _street_map(chance: random.Random) -> Image.Image:
    image, draw = _blank("#eef0e6")
    draw.polygon([(0, 200), (120, 180), (250, 240), (360, 210), (360, 300), (0, 300)], fill="#aad3df")
    for _ in range(14):
        ends = (chance.randrange(360), 0, chance.randrange(360), 300)
        draw.line(ends if chance.random() < 0.5 else ends[1::-1] + ends[:1:-1], fill="white", width=7)
    for _ in range(10):
        x, y = chance.randrange(330), chance.randrange(160)
        draw.rectangle((x, y, x + 26, y + 18), fill="#d9d0c9")
    return image


# ---- nothing at all


def _noise(chance: random.Random) -> Image.Image:
    generator = np.random.default_rng(chance.randrange(1000))
    return Image.fromarray(generator.integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8))


def _clouds(chance: random.Random) -> Image.Image:
    generator = np.random.default_rng(chance.randrange(1000))
    pixels = generator.integers(0, 256, (15, 18, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(SIZE, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(6))


def _gradient(chance: random.Random) -> Image.Image:
    way = Image.linear_gradient("L") if chance.random() < 0.5 else Image.radial_gradient("L")
    ends = Image.new("RGB", SIZE, _colour(chance)), Image.new("RGB", SIZE, _colour(chance))
    return Image.composite(*ends, way.resize(SIZE))


MADE: dict[str, list[Callable[[random.Random], Image.Image]]] = {
    "drawings": [_house, _stick_figure, _smiling_face],
    "charts": [_bars, _curves, _pie],
    "documents and screens": [_page_of_text, _form, _terminal],
    "signs": [_heart, _star, _tick],
    "codes and maps": [_square_code, _bar_code, _street_map],
    "noise and gradients": [_noise, _clouds, _gradient],
}


# ---- what packages bring


def _digits() -> Iterator[Picture]:
    """Handwritten digits of scikit-learn's, 8 x 8 pixels, enlarged."""
    if importlib.util.find_spec("sklearn") is None:
        return
    from sklearn.datasets import load_digits

    for number, pixels in enumerate(load_digits().images[:6]):
        small = Image.fromarray((255 - pixels * 15.9).astype(np.uint8))
        yield Picture(
            "handwriting",
            f"digit {number}",
            small.resize((300, 300), Image.Resampling.BICUBIC).convert("RGB"),
        )


def _found() -> Iterator[Picture]:
    """Photographs of the examples whose subject has no name in ImageNet, and people in packages that are installed."""
    for name, what in (("flower", "a dahlia"), ("rocket", "a rocket on its pad")):
        yield Picture("things without a name", what, Image.open(EXAMPLES / f"{name}.jpg"))
    for package, file, what in (
        ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg", "an officer"),
        ("skimage", "data/astronaut.png", "an astronaut"),
    ):
        spec = importlib.util.find_spec(package)
        path = Path(spec.origin).parent / file if spec and spec.origin else None
        if path and path.is_file():
            yield Picture("people", what, Image.open(path))
