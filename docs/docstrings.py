"""Docstrings as autodoc reads them: ours are plain text, in which an indented block keeps its lines.

The fields of a dataclass are documented by the comments behind them; here they become a list below its docstring.
"""

import dataclasses
import inspect
import re

COMMENT = re.compile(r"^    (\w+): .*  # (.*)$", re.M)


def as_rst(app, what: str, name: str, thing, options, lines: list[str]) -> None:
    """Autodoc's `autodoc-process-docstring`: changes `lines` in place."""
    lines[:] = literal([plain(line) for line in lines])
    if what == "class" and dataclasses.is_dataclass(thing):
        lines += ["", *fields(thing)]


def without_fields(app, what: str, name: str, thing, options, signature: str, returned: str):
    """Autodoc's `autodoc-process-signature`: a dataclass's would only repeat its list of fields."""
    return ("", None) if what == "class" and dataclasses.is_dataclass(thing) else None


def literal(lines: list[str]) -> list[str]:
    """Each block of indented lines becomes a literal block."""
    result: list[str] = []
    inside = False
    for line in lines:
        indented = line.startswith("    ") or inside and not line
        if indented and not inside:
            result += ["", "::", ""]
        elif inside and not indented:
            result.append("")
        inside = indented
        result.append(line)
    return result


def fields(kind: type) -> list[str]:
    """`name: type = default` of each field, and what its metadata or the comment behind it says."""
    comments = dict(COMMENT.findall(inspect.getsource(kind)))
    return [f"- ``{declaration(field)}``" + meaning(field, comments) for field in dataclasses.fields(kind)]


def declaration(field: dataclasses.Field) -> str:
    default = repr(field.default)
    known = field.default is not dataclasses.MISSING and len(default) < 40
    return f"{field.name}: {inspect.formatannotation(field.type)}" + (f" = {default}" if known else "")


def meaning(field: dataclasses.Field, comments: dict[str, str]) -> str:
    text = field.metadata.get("help") or comments.get(field.name, "")
    return f": {plain(text)}" if text else ""


def plain(line: str) -> str:
    """A line without stars and bars that would be read as emphasis or substitution; code stays as it is."""
    if line.startswith("    ") or line.count("`") % 2:
        return line
    parts = re.split(r"(`+[^`]*`+)", line)  # every second one is code
    return "".join(part if place % 2 else re.sub(r"([*|])", r"\\\1", part) for place, part in enumerate(parts))
