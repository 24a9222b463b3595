"""How Sphinx makes the site: `make docs`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

import externals  # noqa: E402

from fastvi import __version__  # noqa: E402

project = "fastvi"
author = "The authors of fastvi"
copyright = "The authors of fastvi"  # noqa: A001
version = release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
    "sphinx_design",
    "externals",
    "mathml",
    "project",
]
exclude_patterns = ["_build"]
nitpicky = True

# ---- pages that are run -------------------------------------------------------------------------
# FASTVI_DOCS_RUN=cache runs a page only if its code has changed, for whoever writes one.
nb_execution_mode = os.environ.get("FASTVI_DOCS_RUN", "force")
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_execution_excludepatterns = ["api/*"]
nb_merge_streams = True
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
nb_mime_priority_overrides = [("html", "image/svg+xml", 0)]
myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
myst_dmath_double_inline = True

# ---- the reference ------------------------------------------------------------------------------
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
maximum_signature_line_length = 88
autodoc_preserve_defaults = True
autosummary_generate = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"
intersphinx_mapping = externals.within_reach()
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# ---- links --------------------------------------------------------------------------------------
# Links within the site are checked by the build itself; without a network only they are.
linkcheck_ignore = [
    r"https://github.com/fastvi/fastvi/.*",  # files of this checkout, which the build looks for
    r"https://fastvi.github.io/.*",
    r"https://(doi.org|openreview.net)/.*",  # turn programs away
]
if not intersphinx_mapping:
    linkcheck_ignore = [r"https?://.*"]
linkcheck_anchors = False
linkcheck_timeout = 20
linkcheck_retries = 3

# ---- looks --------------------------------------------------------------------------------------
html_theme = "furo"
pygments_style = "friendly"
pygments_dark_style = "github-dark"
html_title = "fastvi"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/logo.svg"
html_math_renderer = "mathml"
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "light_logo": "logo.svg",
    "dark_logo": "logo.svg",
    "source_repository": "https://github.com/fastvi/fastvi/",
    "source_branch": "main",
    "source_directory": "docs/",
    "light_css_variables": {
        "color-brand-primary": "#0b6e8a",
        "color-brand-content": "#0b6e8a",
        "color-api-name": "#0b6e8a",
        "color-api-pre-name": "#5d6b73",
    },
    "dark_css_variables": {
        "color-brand-primary": "#5cc6e0",
        "color-brand-content": "#5cc6e0",
        "color-api-name": "#5cc6e0",
        "color-api-pre-name": "#9aa7ae",
    },
}
