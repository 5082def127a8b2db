"""A figure as a part of a page: its text can be searched and selected, and its colours follow the page, light or dark."""

import re
import xml.etree.ElementTree as ET

from repro.paper.names import COLOURS

SVG, LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
# What matplotlib draws with
DRAWN = {"svg", "g", "path", "text", "tspan", "use", "defs", "clipPath", "pattern", "rect", "image"}
PIXELS = "data:image/png;base64,"  # the only image that is kept: one that is in the file
PAPER = "#ffffff"

PLACES = {"d", "x", "y", "width", "height"}
DECIMALS = re.compile(r"(\d\.\d)\d+")


def inline(text: str, prefix: str, alt: str) -> str:
    """The SVG file's `text` as an element for HTML, described by `alt`.

    Coordinates keep a decimal, of a point. A page has several figures, so ids get the `prefix`. The colours of `names`
    become the page's variables (--ink, --blue), white becomes --paper. Of any file only shapes, text and pixels are kept: no
    script, style sheet or link to elsewhere.
    Raises xml.etree.ElementTree.ParseError if the text is no XML.
    """
    root = ET.fromstring(text)
    _clean(root)
    referred = set(re.findall(r"#([\w-]+)", " ".join(value for element in root.iter() for value in element.attrib.values())))
    for element in root.iter():
        element.tag = element.tag.removeprefix(SVG)
        kept = {}
        for name, value in element.attrib.items():
            name = "href" if name == LINK else name
            if name == "id":
                if value in referred:
                    kept[name] = f"{prefix}-{value}"
            elif name.startswith(("on", "{")) or (name == "href" and not value.startswith(("#", PIXELS))):
                continue
            elif name == "href" and value.startswith(PIXELS):
                kept[name] = value
            elif name == "href":
                kept[name] = f"#{prefix}-{value[1:]}"
            elif "url(" in value:
                kept[name] = re.sub(
                    r"url\((#?)([^)]*)\)", lambda found: f"url(#{prefix}-{found[2]})" if found[1] else "none", value
                )
            else:
                kept[name] = _variables(value) if name == "style" else DECIMALS.sub(r"\1", value) if name in PLACES else value
        element.attrib = kept
    width = root.attrib.get("viewBox", "0 0 518 0").split()[2]
    root.attrib = {"viewBox": root.attrib.get("viewBox", "")} | {"role": "img", "aria-label": alt, "style": f"width: {width}pt"}
    return ET.tostring(root, encoding="unicode")


def _clean(element: ET.Element) -> None:
    for child in list(element):
        name = child.tag.removeprefix(SVG) if isinstance(child.tag, str) else ""
        if name in DRAWN and (name != "image" or child.get(LINK, "").startswith(PIXELS)):
            _clean(child)
        else:
            element.remove(child)


def _variables(style: str) -> str:
    for name, colour in (COLOURS | {"paper": PAPER}).items():
        style = style.replace(colour, f"var(--{name})")
    return style
