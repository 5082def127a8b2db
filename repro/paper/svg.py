"""A figure as a part of a page: its text can be searched and selected, and its colours follow the page, light or dark."""

import re
import xml.etree.ElementTree as ET
from collections import Counter

from repro.paper.names import COLOURS

SVG, LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
# What matplotlib draws with
DRAWN = {"svg", "g", "path", "text", "tspan", "use", "defs", "clipPath", "pattern", "rect", "image"}
PIXELS = "data:image/png;base64,"  # the only image that is kept: one that is in the file
PAPER = "#ffffff"

PLACES = {"d", "x", "y", "width", "height"}
DECIMALS = re.compile(r"(\d\.\d)\d+")
PLAIN_MOVE = re.compile(r"translate\([^()]*\)")  # a scale or a rotation needs its decimals
URL = re.compile(r"url\((#?)([^)]*)\)")
UPRIGHT = re.compile(r"rotate\(-?0 [^)]*\)")
PLAIN = re.compile(r"[\w :;.,()'#-]+")  # of a style: nothing that would end its rule
FONT = re.compile(r"font-family: ([^;]*);?\s*")


def inline(text: str, prefix: str, alt: str) -> str:
    """The SVG file's `text` as an element for HTML, described by `alt`.

    To be small, coordinates keep a decimal, of a point, styles that come again become classes, and what has no effect is left
    out: groups that say nothing, spaces between elements, a font on each text. A page has several figures, so ids and classes
    are numbers with the `prefix`. The colours of `names` become the page's variables (--ink, --blue), white becomes --paper.
    Of any file only shapes, text and pixels are kept: no script, style sheet or link to elsewhere.
    Raises xml.etree.ElementTree.ParseError if the text is no XML.
    """
    root = ET.fromstring(text)
    _clean(root)
    values = " ".join(value for element in root.iter() for value in element.attrib.values())
    referred = {name: f"{prefix}-{number}" for number, name in enumerate(dict.fromkeys(re.findall(r"#([^\s();\"']+)", values)))}
    fonts: set[str] = set()
    for element in root.iter():
        element.tag = element.tag.removeprefix(SVG)
        kept = {}
        for name, value in element.attrib.items():
            name = "href" if name == LINK else name
            if name == "id":
                if value in referred:
                    kept[name] = referred[value]
            elif name.startswith(("on", "{")) or (name == "href" and not value.startswith(("#", PIXELS))):
                continue
            elif name == "href" and value.startswith(PIXELS):
                kept[name] = value
            elif name == "href":
                kept[name] = f"#{referred[value[1:]]}"
            elif "url(" in value:
                kept[name] = URL.sub(lambda found: f"url(#{referred[found[2]]})" if found[1] else "none", value)
            elif name == "style":
                fonts.update(FONT.findall(value))
                kept[name] = _variables(value)
            elif name in PLACES or PLAIN_MOVE.fullmatch(value):
                kept[name] = " ".join(DECIMALS.sub(r"\1", value).split())
            elif not UPRIGHT.fullmatch(value):
                kept[name] = value
        element.attrib = kept
    width, style = root.attrib.get("viewBox", "0 0 518 0").split()[2], ""
    if len(fonts) == 1:  # of all texts
        style = f"; font-family: {fonts.pop()}"
        for element in root.iter():
            if "style" in element.attrib:
                element.attrib["style"] = FONT.sub("", element.attrib["style"])
    _flatten(root)
    _share_styles(root, prefix)
    root.attrib = {"viewBox": root.attrib.get("viewBox", ""), "role": "img", "aria-label": alt}
    root.attrib["style"] = f"width: {width}pt{style}"
    return ET.tostring(root, encoding="unicode")


def _clean(element: ET.Element) -> None:
    for child in list(element):
        name = child.tag.removeprefix(SVG) if isinstance(child.tag, str) else ""
        if name in DRAWN and (name != "image" or child.get(LINK, "").startswith(PIXELS)):
            _clean(child)
        else:
            element.remove(child)


def _flatten(element: ET.Element) -> None:
    """Without groups that have no attributes, and without blank text between elements."""
    children: list[ET.Element] = []
    for child in element:
        _flatten(child)
        children += list(child) if child.tag == "g" and not child.attrib else [child]
    for each in children:
        each.tail = each.tail and each.tail.strip("\n ")
    if children:
        element.text = element.text and element.text.strip("\n ")
    element[:] = children


def _share_styles(root: ET.Element, prefix: str) -> None:
    """Makes each style that several elements have a class of the figure."""
    counts = Counter(element.attrib.get("style", "") for element in root.iter())
    shared = [style for style, count in counts.items() if count > 1 and PLAIN.fullmatch(style)]
    classes = {style: f"{prefix}-s{number}" for number, style in enumerate(shared)}
    for element in root.iter():
        if element.attrib.get("style") in classes:
            element.attrib["class"] = classes[element.attrib.pop("style")]
    if classes:
        sheet = ET.Element("style")
        sheet.text = "".join(f".{name}{{{style}}}" for style, name in classes.items())
        root.insert(0, sheet)


def _variables(style: str) -> str:
    for name, colour in (COLOURS | {"paper": PAPER}).items():
        style = style.replace(colour, f"var(--{name})")
    return style
