"""Settings of the documentation. Build it with `make docs`."""

from importlib.metadata import version as installed_version

project = "jobqueue-broadcast"
author = "the jobqueue-broadcast contributors"
copyright = f"2026, {author}"
release = version = installed_version("jobqueue-broadcast")

# No intersphinx: it fetches inventories, and the build must work without a network.
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3  # pages link to each other's headings

autodoc_class_signature = "mixed"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_use_type_comments = False
maximum_signature_line_length = 88
napoleon_numpy_docstring = False
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"jobqueue-broadcast {release}"
html_copy_source = False
html_show_sphinx = False
