"""What the picture of a set says."""

from PIL import ImageFont

from potstill.distilled.picture import drawable, shorten, wrap

FONT = ImageFont.load_default(15)


def test_characters_that_the_font_lacks_are_written_plainly():
    assert drawable("été of 猫 42-a", FONT) == "ete of ? 42-a"


def test_long_names_are_cut_and_long_captions_wrapped():
    short = shorten("a very long class name indeed", FONT, 80)
    assert short.endswith("…")
    assert FONT.getlength(short) <= 80
    lines = wrap("one two three four five six seven", FONT, 0, 90)
    assert " ".join(lines) == "one two three four five six seven"
    assert all(FONT.getlength(line) <= 90 for line in lines)
