"""What Sphinx does on the way that a plain build would not: an extension of it.

- A link to a heading works in both spellings, JupyterLab's and the forges'.
- A picture pasted into a notebook is shown.
- Where a lesson first sets a term in italics, the term leads to the glossary.
- Formulas become MathML.
- A picture on another host becomes its text, a frame a sentence: a page loads nothing
  from elsewhere, and where the notebook showed its own web server nobody listens.
- A page says what it is about to search engines, and a notebook's page from which
  commit its outputs are.
"""

from __future__ import annotations

import json
import re
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

from utils.site.glossary import PAGE as GLOSSARY
from utils.site.glossary import first_uses
from utils.site.pages import CODE, FIRST, ORIGINS, README_TITLE, TITLE

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.config import Config

LOGGER = logging.getLogger(__name__)
FRAGMENT = re.compile(r"(?<=\]\()(?P<page>[^()\s:#]*)#(?P<heading>[^()\s]+)(?=\))")
ATTACHED = re.compile(r"(?<=\]\()attachment:(?P<name>[^()\s]+)(?=\))")
FRAME = re.compile(r"<iframe\b", re.IGNORECASE)
FRAME_NOTE = (
    "Here the notebook shows a page from a server that it has started. Run the "
    "notebook to see it."
)
# Drawings are wide: on a narrow page they scroll, by keyboard as well.
DRAWING = '<span class="drawing" role="group" aria-label="Drawing" tabindex="0">'
DESCRIPTION = 160  # characters, which is about what search engines show


def anchor(heading: str) -> str:
    """Return the anchor that forges give a heading, which is the site's as well.

    JupyterLab only puts a `-` for each space. From such an anchor this makes the same
    as from the heading itself, so that both spellings of a link lead there.

    Args:
        heading: as it reads, or its anchor in either spelling.
    """
    kept = re.sub(r"[^\w\- ]", "", unquote(heading).strip().lower())
    return kept.replace(" ", "-")


def readable(text: str, attachments: dict[str, dict[str, str]] | None = None) -> str:
    """Return Markdown whose links and pasted pictures Sphinx can follow.

    Args:
        text: of a document or a cell; what is set as code stays as it is.
        attachments: pictures pasted into the cell: name to type to base64.
    """

    def picture(found: re.Match[str]) -> str:
        for kind, data in (attachments or {}).get(unquote(found["name"]), {}).items():
            return f"data:{kind};base64,{data.strip()}"
        return found[0]

    def outside_code(piece: str) -> str:
        piece = FRAGMENT.sub(lambda f: f"{f['page']}#{anchor(f['heading'])}", piece)
        return ATTACHED.sub(picture, piece)

    pieces, end = [], 0
    for code in CODE.finditer(text):
        pieces += [outside_code(text[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*pieces, outside_code(text[end:])])


def read_source(app: Sphinx, page: str, source: list[str]) -> None:
    """Make the text of a page readable before it is parsed."""
    if page + ".md" == FIRST[0]:
        source[0] = TITLE.sub(f"# {README_TITLE}", source[0], count=1)
    if app.env.doc2path(page).suffix != ".ipynb":
        source[0] = readable(source[0])
        return
    notebook = json.loads(source[0])
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            text = readable("".join(cell["source"]), cell.pop("attachments", None))
            cell["source"] = text
    source[0] = json.dumps(notebook, ensure_ascii=False)


def keep_to_the_site(app: Sphinx, document: nodes.document) -> None:
    """Replace what would be loaded from elsewhere, and say where outputs are from.

    A table of Markdown must have a head: an empty one is left out.
    """
    for image in list(document.findall(nodes.image)):
        if re.match(r"(https?:)?//", image["uri"]):
            image.replace_self(nodes.Text(image.get("alt") or "picture"))
        elif image["uri"].endswith(".svg"):
            image.replace_self([_html(DRAWING), image.deepcopy(), _html("</span>")])
    for raw in list(document.findall(nodes.raw)):
        if "html" in raw.get("format", "") and FRAME.search(raw.astext()):
            output = raw.parent  # on a pale ground, as HTML from notebooks may need
            output["classes"] = [c for c in output["classes"] if c != "text_html"]
            raw.replace_self(nodes.paragraph("", FRAME_NOTE, classes=["frame-note"]))
    for head in list(document.findall(nodes.thead)):
        if not head.astext().strip():
            head.parent.remove(head)
    said = app.config.course_origins.get(app.env.current_document.docname)
    heading = next(iter(document.findall(nodes.title)), None)
    if said and heading is not None:
        note = nodes.paragraph("", said, classes=["outputs-from"])
        heading.parent.insert(heading.parent.index(heading) + 1, note)


def link_terms(app: Sphinx, document: nodes.document) -> None:
    """Let the first use of each term lead to its entry in the glossary.

    Only the page that the glossary names has one. A term within another link, or in a
    heading, stays as it is.
    """
    page = Path(app.env.current_document.docname)
    if page.parent != Path(GLOSSARY).parent or not (app.srcdir / GLOSSARY).is_file():
        return
    waiting = dict(first_uses(app.srcdir / GLOSSARY, f"{page.name}.ipynb"))
    for term in list(document.findall(nodes.emphasis)):
        name = waiting.get(term.astext().lower())
        if name is None or not isinstance(term.parent, nodes.paragraph):
            continue
        waiting = {one: other for one, other in waiting.items() if other != name}
        place = f"{Path(GLOSSARY).stem}.html#{nodes.make_id(name)}"
        link = nodes.reference("", "", term.deepcopy(), refuri=place, internal=True)
        term.replace_self(link)


def describe(
    app: Sphinx,
    page: str,
    template: str,
    context: dict[str, Any],
    document: nodes.document | None,
) -> None:
    """Give a page its description: its first paragraph that is no part of a table."""
    paragraphs = document.findall(nodes.paragraph) if document else ()
    texts = (
        node.astext()
        for node in paragraphs
        if isinstance(node.parent, nodes.section)
        and "outputs-from" not in node["classes"]
    )
    text = " ".join(next(texts, f"{page} · {app.config.project}").split())
    if len(text) > DESCRIPTION:
        text = text[:DESCRIPTION].rpartition(" ")[0] + " …"
    tag = f'<meta name="description" content="{escape(text)}" />'
    context["metatags"] = context.get("metatags", "") + tag


def inline_formula(translator: HTML5Translator, node: nodes.math) -> None:
    """Write a formula within a line."""
    translator.body.append(_mathml(node, as_block=False))
    raise nodes.SkipNode


def block_formula(translator: HTML5Translator, node: nodes.math_block) -> None:
    """Write a formula on lines of its own, which may be wider than a telephone."""
    formula = _mathml(node, as_block=True)
    translator.body.append(f'<div class="formula" tabindex="0">{formula}</div>')
    raise nodes.SkipNode


def _html(text: str) -> nodes.raw:
    return nodes.raw("", text, format="html")


def _mathml(node: nodes.Element, as_block: bool) -> str:
    try:
        return tex2mathml(node.astext(), as_block=as_block)
    except MathError as error:
        LOGGER.warning("no MathML for %r: %s", node.astext(), error, location=node)
        return f"<code>{escape(node.astext())}</code>"


def read_origins(app: Sphinx, config: Config) -> None:
    """Read what `utils.site.build` has left beside the pages."""
    file = Path(app.srcdir) / ORIGINS
    config.course_origins = json.loads(file.read_text(encoding="utf-8"))


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx what is done when."""
    app.connect("config-inited", read_origins)
    app.add_config_value("course_origins", {}, "env", types=frozenset({dict}))
    app.add_html_math_renderer("mathml", (inline_formula, None), (block_formula, None))
    app.connect("source-read", read_source)
    app.connect("doctree-read", keep_to_the_site)
    app.connect("doctree-read", link_terms)
    app.connect("html-page-context", describe)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
