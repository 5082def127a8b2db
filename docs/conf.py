"""Sphinx's configuration: `make docs` builds the site from the repository's own pages, notebooks and docstrings.

The source folder is the repository, so that a link between two pages is the same on the site and in a clone.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

from repro import __version__  # noqa: E402

import docstrings  # noqa: E402
import executed  # noqa: E402
import generated  # noqa: E402

project = "scaleout-repro"
author = "The scaleout-repro authors"
copyright = author
release = version = __version__

root_doc = "docs/index"
include_patterns = [
    "docs/*.md",
    "docs/api/*.rst",
    "notebooks/*.ipynb",
    "data_prep/README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
]
exclude_patterns = [".*", "data", "results", "docs/_build", "**/.ipynb_checkpoints"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.viewcode"]
suppress_warnings = ["config.cache"]  # functions in this file are not pickled

myst_enable_extensions = ["html_image"]
myst_heading_anchors = 4
highlight_language = "none"  # a block without a language is for a terminal

nb_execution_mode = "off"  # `executed` runs what is to be run
nb_output_stderr = "remove"
nb_merge_streams = True

default_role = "code"
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100
add_module_names = False
viewcode_line_numbers = True

html_theme = "furo"
html_title = "Scale out for large minibatch SGD, reproduced"
html_show_sourcelink = False
html_copy_source = False
templates_path = ["_templates"]
html_additional_pages = {"index": "first.html"}  # the address of the site itself leads to docs/index.html
html_theme_options = {"navigation_with_keys": True}


def setup(app):
    app.connect("source-read", generated.fill)
    app.connect("source-read", executed.replace)
    app.connect("autodoc-process-docstring", docstrings.as_rst)
    app.connect("autodoc-process-signature", docstrings.without_fields)
