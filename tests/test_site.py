"""`make site`: built once from the stored outputs, then read as files and in a browser.

What the build notices, and what else a notebook may hold: test_site_build.py.
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nbformat
import pytest
from axe_playwright_python.sync_playwright import Axe
from docutils.nodes import make_id
from playwright.sync_api import Browser, Page, expect

from utils.course import ROOT
from utils.site import links
from utils.site.build import Site, build_site
from utils.site.glossary import read_terms
from utils.site.pages import without_code

TELEPHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1400, "height": 1000}
LESSON = "notebooks/03_dataset_templating.html"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Build the course's own site once."""
    return build_site(tmp_path_factory.mktemp("site") / "built")


@pytest.fixture(scope="module")
def folder(site: Site) -> Path:
    return site.index.parent


def text_of(folder: Path, page: str) -> str:
    return (folder / page).read_text(encoding="utf-8")


# --- the course's own site ------------------------------------------------------------


def test_each_notebook_and_each_linked_document_is_a_page(
    site: Site, folder: Path
) -> None:
    notebooks = sorted((ROOT / "notebooks").rglob("[0-9][0-9]_*.ipynb"))
    assert [ROOT / path for path in site.pages.notebooks] == sorted(
        notebooks, key=lambda path: (len(path.parts), path.name)
    )
    documents = {"README.md", "CONTRIBUTING.md", "data/README.md"}
    assert documents <= set(site.pages.documents)
    for path in (*site.pages.notebooks, *site.pages.documents):
        assert (folder / path).with_suffix(".html").is_file()


def test_nothing_is_written_but_the_site(folder: Path) -> None:
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_the_index_shows_picture_road_map_and_the_times_of_the_readme(
    folder: Path,
) -> None:
    page = text_of(folder, "index.html")
    assert page.count("_images/page.png") and page.count("_images/road_map_01.svg")
    readme = (ROOT / "README.md").read_text("utf-8")
    rows = re.findall(
        r"^\| \[(\d\d_\w+)\]\((\S+)\.ipynb\) .*\| (\d+ s) \|$", readme, re.M
    )
    assert len(rows) > 10
    for name, path, time in rows:
        row = rf'href="{path}\.html">.*?{name[-9:]}.*?<p>{time}</p></td>\n</tr>'
        assert re.search(row, page, re.DOTALL), name
    for document in ("README", "data/README", "data/lab_model/README", "CONTRIBUTING"):
        assert f'href="{document}.html"' in page


def test_nothing_that_is_stored_gets_lost(site: Site, folder: Path) -> None:
    """Every cell, its tags whatever they are, every picture, every solution."""
    for path in site.pages.notebooks:
        cells = nbformat.read(ROOT / path, as_version=4).cells
        page = (folder / path).with_suffix(".html").read_text("utf-8")
        code = [cell for cell in cells if cell.cell_type == "code" and cell.source]
        assert len(re.findall(r'<div class="cell_input ', page)) == len(code), path
        shown = [cell for cell in code if cell.outputs]
        assert len(re.findall(r'<div class="cell_output ', page)) == len(shown), path
        drawn = [
            o
            for cell in shown
            for o in cell.outputs
            if "image/png" in o.get("data", "")
        ]
        assert len(re.findall(r"<img [^>]*_images/[0-9a-f]{64}\.png", page)) == len(
            drawn
        ), path
        prose = "\n\n".join(c.source for c in cells if c.cell_type == "markdown")
        folded = without_code(prose).count("<details>")
        assert page.count("<details>") == page.count("</details>") == folded, path


def test_links_lead_somewhere_and_nothing_is_loaded_from_elsewhere(
    folder: Path,
) -> None:
    assert links.faults(folder) == []


def test_links_between_notebooks_lead_to_pages_and_other_files_come_along(
    folder: Path,
) -> None:
    followed = links.read_page(
        folder / "notebooks/experiments/06_production.html"
    ).links
    assert "../06_djl_deployment.html" in followed
    files = [link for link in links.read_page(folder / "README.html").links]
    (policy,) = {link for link in files if link.endswith("/iam_policy.json")}
    original = (ROOT / "data" / "aws" / "iam_policy.json").read_bytes()
    assert (folder / policy).read_bytes() == original
    here = [link for link in files if not link.startswith("https://")]
    assert not [link for link in here if link.endswith((".md", ".ipynb"))][1:]


def test_each_page_has_title_language_and_description(folder: Path) -> None:
    for file in folder.rglob("*.html"):
        page = file.read_text(encoding="utf-8")
        assert '<html lang="en"' in page
        assert re.search(r"<title>[^<&]{4,}", page), file.name
        described = re.findall(r'<meta name="description" content="([^"]*)"', page)
        assert len(described) == 1 and len(described[0]) > 15, file.name


def test_each_notebook_says_from_which_commit_its_outputs_are(
    site: Site, folder: Path
) -> None:
    for path, origin in site.origins.items():
        page = (folder / path).with_suffix(".html").read_text("utf-8")
        (said,) = re.findall(r'<p class="outputs-from">(.*?)</p>', page)
        assert said == str(origin)
        if (ROOT / ".git").exists():
            assert re.search(r"stored on \d{4}-\d\d-\d\d \(commit [0-9a-f]{7,}\)", said)


def test_a_notebook_can_be_downloaded_as_it_is_stored(folder: Path) -> None:
    name = "notebooks/01_language_models.ipynb"
    assert (folder / "_sources" / name).read_bytes() == (ROOT / name).read_bytes()


def test_formulas_need_no_script(folder: Path) -> None:
    page = text_of(folder, "notebooks/01_language_models.html")
    assert page.count('<div class="formula"') == 3
    assert page.count("<math ") == 3 and "mathjax" not in page.replace(
        "mathjax_ignore", ""
    )


def test_the_first_use_of_each_term_leads_to_the_glossary(folder: Path) -> None:
    """Where it stands in a link to elsewhere, that one stays."""
    entries = links.read_page(folder / "notebooks/glossary.html").anchors
    found = set()
    for path in sorted((folder / "notebooks").glob("[0-9][0-9]_*.html")):
        linked = [link for link in links.read_page(path).links if "glossary" in link]
        found |= {link.partition("#")[2] for link in linked} - {""}
    assert found <= entries
    missing = {term.name for term in read_terms() if make_id(term.name) not in found}
    assert missing == {"circuit breaker"}


# --- in a browser ---------------------------------------------------------------------


@dataclass
class Window:
    """A window on the site, and what went wrong in it."""

    page: Page
    url: str
    wrong: list[str]

    def open(self, path: str) -> Page:
        self.page.goto(f"{self.url}/{path}")
        return self.page


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def window(started: Browser, url: str) -> Iterator[Callable[..., Window]]:
    """Return a function that opens a window; nothing may go wrong in it."""
    windows: list[Window] = []

    def new(**options: object) -> Window:
        page = started.new_context(**options).new_page()
        page.set_default_timeout(60_000)
        one = Window(page, url, [])
        page.on(
            "request",
            lambda asked: (
                asked.url.startswith((url, "data:")) or one.wrong.append(asked.url)
            ),
        )
        page.on(
            "response",
            lambda reply: (
                reply.status < 400 or one.wrong.append(f"{reply.status} {reply.url}")
            ),
        )
        page.on("pageerror", lambda error: one.wrong.append(str(error)))
        windows.append(one)
        return one

    yield new
    for one in windows:
        one.page.context.close()
        # axe reads style sheets again, from where the page is: one of the theme names
        # another by a relative path.
        wrong = [text for text in one.wrong if not text.endswith("/basic.css")]
        assert not wrong


def test_no_page_is_wider_than_a_telephone(
    window: Callable[..., Window], folder: Path
) -> None:
    visit = window(viewport=TELEPHONE)
    wide = {}
    for file in sorted(folder.rglob("*.html")):
        path = file.relative_to(folder).as_posix()
        width = visit.open(path).evaluate("document.documentElement.scrollWidth")
        if width > TELEPHONE["width"]:
            wide[path] = width
    assert not wide
    # Drawings scroll by themselves, and so their letters stay readable.
    drawing = visit.open("index.html").locator(".drawing").first
    inside, shown = drawing.evaluate("box => [box.scrollWidth, box.clientWidth]")
    assert inside > 600 and shown < 390


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", ["index.html", LESSON, "search.html?q=LoRA"])
def test_axe_finds_nothing_serious(
    window: Callable[..., Window], path: str, scheme: str
) -> None:
    size = TELEPHONE if scheme == "light" else DESKTOP
    page = window(viewport=size, color_scheme=scheme).open(path)
    expect(page.locator("html")).to_have_attribute("data-theme", scheme)
    if "search" in path:
        expect(page.locator("#search-results li").nth(3)).to_be_visible()
    found = Axe().run(page, options={"resultTypes": ["violations"]})
    serious = {
        violation["id"]: [node["target"] for node in violation["nodes"]][:3]
        for violation in found.response["violations"]
        if violation["impact"] in ("serious", "critical")
    }
    assert not serious


def test_the_search_finds_a_term(window: Callable[..., Window]) -> None:
    page = window().open("index.html")
    page.keyboard.press("Control+k")
    field = page.get_by_role("dialog").get_by_role("searchbox")
    field.fill("LoRA")
    field.press("Enter")
    results = page.locator("#search-results")
    lesson = results.get_by_role("link", name="Fine-tuning with LoRA")
    expect(lesson).to_be_visible()
    with page.expect_navigation():
        lesson.click()
    assert "/notebooks/04_lora_training.html" in page.url
    expect(page.get_by_role("heading", level=1)).to_contain_text("LoRA")


def test_solutions_are_folded_and_open_by_keyboard(
    window: Callable[..., Window],
) -> None:
    page = window().open(LESSON)
    solution = page.locator("details", has_text="Solution").first
    code = solution.locator("pre").first
    expect(code).to_be_hidden()
    solution.locator("summary").focus()
    page.keyboard.press("Enter")
    expect(code).to_be_visible()


@pytest.mark.parametrize("size", [DESKTOP, TELEPHONE], ids=["desktop", "telephone"])
def test_a_self_check_is_answered_by_keyboard(
    window: Callable[..., Window], size: dict[str, int]
) -> None:
    page = window(viewport=size).open(LESSON + "#self-check")
    choices = page.locator("#self-check details")
    first = page.locator("#self-check summary").first
    first.focus()
    shown = []
    for key in ("Space", "Enter", "Space"):  # the answers of the first question
        page.keyboard.press(key)
        shown.append(choices.nth(len(shown)).locator("p"))
        expect(shown[-1]).to_be_visible()
        page.keyboard.press("Tab")
    texts = [text.inner_text() for text in shown]
    assert [text.partition(" ")[0] for text in texts] == ["No.", "No.", "Right."]
    first.focus()
    page.keyboard.press("Space")
    expect(shown[0]).to_be_hidden()
    expect(shown[2]).to_be_visible()


def test_the_mode_can_be_switched(window: Callable[..., Window]) -> None:
    page = window(color_scheme="light").open("index.html")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    for mode, theme in (("dark", "dark"), ("light", "light"), ("auto", "light")):
        page.get_by_role("button", name="Color mode").click()
        page.locator(f".theme-change-button[data-mode={mode}]").click()
        expect(page.locator("html")).to_have_attribute("data-theme", theme)
        assert (page.evaluate(ground) == light) == (theme == "light")
