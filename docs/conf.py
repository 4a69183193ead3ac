"""How Sphinx builds the pages and the reference of the sources: `make docs`.

Nothing is fetched: no other project's index of names, no script or font from elsewhere.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

project = "HybridMedNet"
extensions = ["sphinx.ext.autodoc", "sphinx.ext.autosummary", "myst_parser", "docstrings", "module_pages"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "HybridMedNet"
html_show_sourcelink = False
html_copy_source = False

myst_heading_anchors = 4  # [text](page.md#a-heading), as GitHub has it

autosummary_generate = False  # module_pages writes a page for each package
autodoc_inherit_docstrings = False  # torch's forward says nothing of ours
autodoc_member_order = "bysource"
# A quarter of the time: no types are said in comments here, and the contents beside a page name its modules alone.
autodoc_use_type_comments = False
toc_object_entries = False
# Names in signatures that are imported for type checkers only are words to Sphinx: of two of one name it links to one.
suppress_warnings = ["ref.python"]
