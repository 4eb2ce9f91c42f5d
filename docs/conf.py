"""How Sphinx builds the site: `make docs`. Nothing is fetched, neither for the build nor by the pages."""

import sys
from pathlib import Path

from atlasnet import __version__

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "AtlasNet"
copyright = "the AtlasNet developers"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "docstrings", "hidden", "verbs"]
exclude_patterns = ["_build", "_extensions"]
nitpicky = True
smartquotes_action = "D"  # dashes only

myst_heading_anchors = 3

default_role = "py:obj"  # single backticks of docstrings
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = "AtlasNet"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
