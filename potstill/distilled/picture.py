"""Pictures of a distilled set."""

import io
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from potstill.distilled.sets import DistilledSet
from potstill.files import write

MOST_COLUMNS, COLUMNS_OF_MANY = 50, 20
CELL_PX, GAP_PX, MARGIN_PX, TEXT_PX, CAPTION_PX, NAME_PX = 96, 6, 12, 15, 480, 240
INK, PAPER, FAINT = (24, 24, 27), (255, 255, 255), (113, 113, 122)

FONTS = (
    "DejaVuSans.ttf",
    "Arial.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "wqy-microhei.ttc",
    "msyh.ttc",
    "YuGothM.ttc",
    "malgun.ttf",
    "PingFang.ttc",
    "Arial Unicode.ttf",
    "unifont.ttf",
)
"""Fonts that systems have, those with Chinese, Japanese and Korean letters after the others."""
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def to_bytes(pixels: Tensor) -> Tensor:
    """Convert pixels in [0, 1] to bytes, rounded."""
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8)


def to_image(pixels: Tensor) -> Image.Image:
    """Convert pixels (C, H, W) in [0, 1] to a grey or RGB image."""
    array = to_bytes(pixels).numpy()
    return Image.fromarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0))


def grid(distilled: DistilledSet, caption: str = "") -> Image.Image:
    """Draw the images of a set, a row for each class, with class names and a caption.

    They are enlarged without smoothing. Of more than 50 images a class the first 20 are shown. At
    one image per class the classes stand side by side instead, up to ten in a row.
    """
    classes, each = len(distilled.class_names), shown_of_class(distilled)
    order = torch.argsort(distilled.labels, stable=True).view(classes, -1)[:, :each].flatten()
    pictures = [to_image(pixels) for pixels in distilled.fitted.pictures(distilled.images[order])]
    columns = min(classes, 10) if each == 1 else each
    rows = -(-len(pictures) // columns)
    height, width = distilled.shape[1:]
    zoom = max(1, round(CELL_PX / max(height, width)))
    cell_w, cell_h = width * zoom, height * zoom
    font = font_for(distilled.class_names)
    names = [shorten(name, font, NAME_PX) for name in drawable_names(distilled.class_names, font)]
    left = 0 if each == 1 else round(max(font.getlength(name) for name in names)) + MARGIN_PX
    across = max(columns * (cell_w + GAP_PX) + left, CAPTION_PX if caption else 0)
    name_h = TEXT_PX + GAP_PX if each == 1 else 0
    lines = wrap(caption, font, 2 * MARGIN_PX, across) if caption else []
    size = (
        2 * MARGIN_PX + across - GAP_PX,
        2 * MARGIN_PX
        + rows * (cell_h + GAP_PX + name_h)
        - GAP_PX
        + len(lines) * (TEXT_PX + 5)
        + (GAP_PX if lines else 0),
    )
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        x, y = (
            MARGIN_PX + left + column * (cell_w + GAP_PX),
            MARGIN_PX + row * (cell_h + GAP_PX + name_h),
        )
        sheet.paste(
            picture.convert("RGB").resize((cell_w, cell_h), Image.Resampling.NEAREST),
            (x, y + name_h),
        )
        if each == 1:
            pen.text((x, y), shorten(names[index], font, cell_w), INK, font)
        elif column == 0:
            pen.text((MARGIN_PX, y + (cell_h - TEXT_PX) // 2), names[row], INK, font)
    for number, line in enumerate(lines):
        pen.text(
            (MARGIN_PX, size[1] - MARGIN_PX - (len(lines) - number) * (TEXT_PX + 5)),
            line,
            FAINT,
            font,
        )
    return sheet


def shown_of_class(distilled: DistilledSet) -> int:
    """Return how many images of each class a grid shows."""
    return distilled.per_class if distilled.per_class <= MOST_COLUMNS else COLUMNS_OF_MANY


def font_for(texts: Sequence[str]) -> Font:
    """Return a font of the system that has all letters of the texts, if there is one.

    Else it is the first there is; else Pillow's own, which has little more than ASCII.
    """
    fonts = []
    for name in FONTS:
        try:
            fonts.append(ImageFont.truetype(name, TEXT_PX))
        except OSError:
            continue
        if all(drawable(text, fonts[-1]) == text for text in texts):
            return fonts[-1]
    return fonts[0] if fonts else ImageFont.load_default(TEXT_PX)


def drawable_names(names: Sequence[str], font: Font) -> list[str]:
    """Return names that the font can draw; a class whose name it cannot is told by its number."""
    drawn = [(name, drawable(name, font)) for name in names]
    return [
        f"class {number}" if "?" in text and text != name else text
        for number, (name, text) in enumerate(drawn)
    ]


def drawable(text: str, font: Font) -> str:
    """Replace the characters of `text` that the font lacks by their plain form or "?".

    The font would draw them as boxes; a line break or another control character it cannot draw.
    """
    box = bytes(font.getmask("\ufffe"))

    def plain(character: str) -> str:
        near = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
        return near if near.isprintable() and near else "?"

    return "".join(
        plain(character)
        if not character.isprintable() or bytes(font.getmask(character)) == box
        else character
        for character in text
    )


def shorten(text: str, font: Font, width: int) -> str:
    """Cut `text` with an ellipsis if it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def wrap(text: str, font: Font, margin: int, width: int) -> list[str]:
    """Break `text` into lines of at most `width` pixels.

    Args:
        text: any text.
        font: what it is drawn with.
        margin: pixels of the width that stay free.
        width: pixels, with the margin.
    """
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width - margin:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def caption(distilled: DistilledSet) -> str:
    """Return a sentence that says what the set is."""
    metadata = distilled.metadata
    words = (metadata.option("data") or "data", f"{distilled.per_class:,} a class", metadata.method)
    text = ", ".join(filter(None, words))
    if len(distilled.blocks) > 1:
        text += f" in {len(distilled.blocks)} blocks, beta {metadata.option('boost_beta') or 0:g}"
    if distilled.per_class > MOST_COLUMNS:
        text += f"; the first {COLUMNS_OF_MANY} of each are shown"
    text += f"; stored: {distilled.stored}"
    if accuracy := metadata.accuracy:
        text += (
            f"; validation accuracy {100 * accuracy.mean:.1f} % ({accuracy.n} "
            f"network{'s'[: accuracy.n > 1]})"
        )
    return text + ". Brightness and contrast are those of a typical image."


def write_grid(distilled: DistilledSet, path: Path) -> None:
    """Write the annotated grid as a PNG."""
    buffer = io.BytesIO()
    grid(distilled, caption(distilled)).save(buffer, "PNG")
    write(path, buffer.getvalue())
