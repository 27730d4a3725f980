"""Sphinx's configuration of the site, as `make site` uses it.

https://www.sphinx-doc.org/en/master/usage/configuration.html

Everything that a page needs lies in the site itself. Formulas become MathML, which
browsers draw themselves; the other renderers would ask another host for a script.
"""

from pathlib import Path

project = "Fine-tuning on SageMaker"
language = "en"
smartquotes = False  # outputs and options stay as they are written
# githubpages: a file that lets GitHub show folders whose names begin with "_".
extensions = ["myst_nb", "sphinx.ext.githubpages", "utils.site.rendering"]
html_theme = "sphinx_book_theme"
html_title = project
html_static_path = [str(Path(__file__).parent / "static")]
html_css_files = ["course.css"]
html_favicon = str(Path(__file__).parents[1] / "web" / "page" / "icon.svg")
html_math_renderer = "mathml"
html_show_copyright = False
html_use_index = False
html_permalinks_icon = "#"
html_context = {"default_mode": "auto"}
html_theme_options = {
    "footer_content_items": [],
    "home_page_in_toc": True,
    "logo": {"text": project},
    "navbar_persistent": [],
    "show_toc_level": 2,
    "use_fullscreen_button": False,
}

# The outputs are the stored ones.
nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "gfm"

# The files are written for JupyterLab and for forges. Of MyST's additions only formulas
# and <img> are wanted; `{note}`, a line that begins with % and the like are plain text.
myst_enable_extensions = ["dollarmath", "html_image"]
myst_disable_syntax = ["myst_block_break", "myst_line_comment", "myst_role"]
myst_disable_syntax += ["myst_target"]
myst_dmath_allow_digits = False
myst_dmath_allow_labels = False
myst_dmath_allow_space = False
myst_dmath_double_inline = True
myst_heading_anchors = 6
