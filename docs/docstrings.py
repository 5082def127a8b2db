"""Docstrings as autodoc reads them: ours are plain text, in which an indented block keeps its lines.

The fields of a dataclass are documented by the comments behind them; here they become a list below its docstring.
"""

import dataclasses
import inspect
import re

FIELD = re.compile(r"^    (\w+): ([^=#]+?)(?: = (.*?))?(?:  # (.*))?$")


def as_rst(app, what: str, name: str, thing, options, lines: list[str]) -> None:
    """Autodoc's `autodoc-process-docstring`: changes `lines` in place."""
    text = [line.replace("*", r"\*") if "`" not in line else line for line in lines]
    lines[:] = literal(text)
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
    """`name: type = default`, and its comment, for each field whose line in the source is complete."""
    found = []
    for line in inspect.getsource(kind).splitlines():
        if (match := FIELD.match(line)) and match[1] in {field.name for field in dataclasses.fields(kind)}:
            default = f" = {match[3]}" if match[3] else ""
            found += [f"- ``{match[1]}: {match[2]}{default}``" + (f": {match[4]}" if match[4] else "")]
    return found
