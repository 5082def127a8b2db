"""Packs the second small data set: letters, rendered from the fonts that matplotlib brings, in 26 classes.

Upper and lower case are one class. An original is one glyph of one font, drawn and distorted as the digits are
(drawing.py), with less noise, because there are more classes. Whole families of fonts are in one split, so the question
that is tested is that of a new typeface:

    train   DejaVu Sans and the Mono derived from it, STIX General (serif); each regular, bold, slanted and both
    val     DejaVu Serif, the same four
    test    Computer Modern: roman, bold, italic, maths italic (serif), sans and typewriter

Validation has no sans, because there are only two that are not derived from one another. Fonts without letters (symbols,
brackets by size, DejaVu's "Display") are not used. In sans fonts an I and an l are nearly the same bar: about one
drawing in 26 cannot be told for certain.

The bytes are the same wherever Pillow brings the same FreeType, which renders the glyphs.

    python data_prep/letters.py [--out data/letters]
"""

from pathlib import Path
from string import ascii_lowercase

import matplotlib
import numpy as np
from PIL import Image, ImageFont

from repro.images import packed

import drawing

NOISE = 0.09  # standard deviation, on a scale from 0 to 1
# Mean and deviation are those of the training images; the smallest area is not the paper's 0.08.
PREPROCESSING = packed.Preprocessing(
    size=drawing.SEEN, short_side=drawing.SIDE, mean=(113,), scale=(1 / 39,), mirror=False, smallest_area=drawing.SMALLEST_AREA
)
FONTS = {
    "train": (
        *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
        *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
        *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    ),
    "val": ("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    "test": ("cmr10", "cmb10", "cmti10", "cmmi10", "cmss10", "cmtt10"),
}
GLYPHS = [case for letter in ascii_lowercase for case in (letter.upper(), letter)]
POINTS = 128  # the size of type at which a glyph is rendered, eight times that of an original
SIDE = 16  # of an original


def originals() -> dict[str, drawing.Originals]:
    """The originals of each split, font by font: ink (N, 16, 16) from 0 to 1 and the place in the alphabet (N,)."""
    labels = np.arange(len(GLYPHS)) // 2
    return {split: (np.concatenate(list(map(glyphs, fonts))), np.tile(labels, len(fonts))) for split, fonts in FONTS.items()}


def glyphs(font: str) -> np.ndarray:
    """Ink (52, 16, 16) of A, a, B, b, ...: each centred, its longer side the picture's."""
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{font}.ttf")
    # The plain layout: the other one depends on a library that not every Pillow has.
    face = ImageFont.truetype(str(path), POINTS, layout_engine=ImageFont.Layout.BASIC)
    return np.stack([_fitted(face, glyph) for glyph in GLYPHS])


def _fitted(face: ImageFont.FreeTypeFont, glyph: str) -> np.ndarray:
    mask = face.getmask(glyph)
    image = Image.frombytes("L", mask.size, bytes(mask))
    image = image.crop(image.getbbox())
    side = max(image.size)
    square = Image.new("L", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BOX)) / 255


if __name__ == "__main__":
    drawing.run(__doc__, "letters", list(ascii_lowercase), originals, NOISE, PREPROCESSING)
