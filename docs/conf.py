"""Sphinx: these pages, and the reference from the docstrings. ``make docs``."""

from hscc import __version__

project = "hscc"
release = __version__
html_title = f"hscc {__version__}"
html_theme = "furo"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # result pages are written by programs
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures have them
napoleon_google_docstring = True
nitpicky = False
exclude_patterns = ["results-*"]
