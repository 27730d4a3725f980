"""What the build of the site shows of a small course, and which faults it notices."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest

from utils.site import links, stored
from utils.site.__main__ import main
from utils.site.build import build_site
from utils.site.pages import SiteError, find_pages, index
from utils.site.rendering import anchor, readable

# One pixel, as it lies in a notebook into which a picture was pasted.
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9"
    "awAAAABJRU5ErkJggg=="
)
README = """\
# A course

It has one lesson.

![drawn](https://images.test/badge.svg)

## Road map

| notebook | time |
|:--|--:|
| [01_first](notebooks/01_first.ipynb) | 1 s |
"""


@dataclass
class Course:
    """A small course: what its notebook says can be changed before it is built."""

    root: Path
    prose: str = "# First\n\nIt shows one thing.\n\n## 2 · Templates\n\nText."
    outputs: tuple[nbformat.NotebookNode, ...] = ()
    count: int | None = 1
    attachments: dict | None = None

    def write(self) -> Course:
        prose = nbformat.v4.new_markdown_cell(self.prose, id="prose")
        if self.attachments:
            prose["attachments"] = self.attachments
        code = nbformat.v4.new_code_cell(
            "1 + 1", id="code", execution_count=self.count, outputs=list(self.outputs)
        )
        notebook = nbformat.v4.new_notebook(cells=[prose, code])
        notebook.metadata["language_info"] = {"name": "python"}
        (self.root / "notebooks").mkdir(exist_ok=True)
        nbformat.write(notebook, self.root / "notebooks" / "01_first.ipynb")
        (self.root / "README.md").write_text(README, encoding="utf-8")
        return self

    def build(self) -> str:
        """Build the site; return the notebook's page."""
        self.write()
        built = build_site(self.root / "build" / "site", self.root)
        return (built.index.parent / "notebooks/01_first.html").read_text("utf-8")


@pytest.fixture
def course(tmp_path: Path) -> Course:
    return Course(tmp_path)


def html_output(text: str) -> nbformat.NotebookNode:
    return nbformat.v4.new_output("display_data", {"text/html": text})


def test_what_notebooks_may_hold_is_shown(course: Course) -> None:
    """Pasted pictures, both spellings of a link to a heading, frames, dollars."""
    course.prose += (
        "\n\nThen [more](more.ipynb), and what it [reads](../data/a%20b.csv)."
        "\n\n![pasted](attachment:image.png) and [there](#2-·-Templates), "
        "[here](../README.md#road-map). It costs $5 or $6 `[x](#none)`.\n\n"
        "| | |\n|:--|:--|\n| **time** | 1 -- 2 minutes |\n\n% no comment {note}`x`"
    )
    course.attachments = {"image.png": {"image/png": PIXEL}}
    course.outputs = (
        html_output('<iframe src="http://127.0.0.1:5000"></iframe>'),
        nbformat.v4.new_output("display_data", {"text/markdown": "|a|\n|-|\n|'b'|"}),
    )
    course.write()
    (course.root / "data").mkdir()
    (course.root / "data" / "a b.csv").write_text("a,b")
    more = nbformat.v4.new_markdown_cell("# More\n\nIt has no number.", id="more")
    notebook = nbformat.v4.new_notebook(cells=[more])
    nbformat.write(notebook, course.root / "notebooks" / "more.ipynb")
    page = course.build()
    assert 'href="more.html"' in page
    assert re.search(r'href="\.\./_downloads/\w+/a(%20| )b\.csv"', page)
    assert f"data:image/png;base64,{PIXEL}" in page
    assert '<a class="reference internal" href="#templates">' in page
    assert 'href="../README.html#road-map"' in page
    assert "<iframe" not in page and "127.0.0.1" not in page
    assert "It costs $5 or $6" in page and "<math" not in page
    assert page.count("<thead>") == 1, "the empty head is left out, the other is not"
    assert "1 -- 2 minutes" in page and "'b'" in page
    assert "% no comment {note}" in page
    assert "their date is unknown" in page
    first = (course.root / "build" / "site" / "index.html").read_text("utf-8")
    assert "images.test" not in first and "drawn" in first


def test_a_dead_link_is_refused_with_its_place(course: Course) -> None:
    course.prose += "\n\nRead [this](02_second.ipynb) and [that](#nowhere)."
    with pytest.raises(SiteError) as caught:
        course.build()
    message = str(caught.value)
    assert "notebooks/01_first.ipynb, cell 1" in message
    assert "02_second.ipynb" in message and "nowhere" in message
    assert not (course.root / "build" / "site").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"count": None}, "01_first.ipynb: cell 2 was not executed"),
        (
            {"outputs": (nbformat.v4.new_output("error", ename="E", evalue="e"),)},
            "01_first.ipynb: cell 2 has stored an error",
        ),
    ],
    ids=["not executed", "an error"],
)
def test_missing_outputs_are_refused(course: Course, change: dict, words: str) -> None:
    for name, value in change.items():
        setattr(course, name, value)
    with pytest.raises(SiteError, match=re.escape(words)):
        course.build()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a site without faults."""
    root = tmp_path_factory.mktemp("small")
    Course(root).build()
    return root / "build" / "site"


@pytest.mark.parametrize(
    ("file", "added", "fault"),
    [
        (
            "index.html",
            '<link rel="stylesheet" href="https://cdn.test/x.css">',
            "index.html loads https://cdn.test/x.css from another host",
        ),
        (
            "index.html",
            "<style>a { background: url(//cdn.test/x.png) }</style>",
            "index.html loads //cdn.test/x.png from another host",
        ),
        (
            "_static/course.css",
            "@import 'https://cdn.test/y.css';",
            "_static/course.css loads https://cdn.test/y.css from another host",
        ),
        (
            "_static/doctools.js",
            "fetch('https://cdn.test/z.json')",
            "_static/doctools.js loads https://cdn.test/z.json from another host",
        ),
        (
            "_static/course.css",
            "a { background: url(none.png) }",
            "_static/course.css loads none.png: there is no such file",
        ),
        (
            "README.html",
            '<a href="index.html#nowhere">x</a>',
            "README.html links to index.html#nowhere: there is no such heading",
        ),
        (
            "README.html",
            '<img src="data/none.png">',
            "README.html loads data/none.png: there is no such file",
        ),
        (
            "notebooks/01_first.html",
            '<a href="../../x.html">x</a>',
            "notebooks/01_first.html links to ../../x.html: this is outside the site",
        ),
        ("index.html", '<a href="https://example.test/">a reader may go</a>', None),
    ],
)
def test_a_planted_fault_is_found(
    small: Path, tmp_path: Path, file: str, added: str, fault: str | None
) -> None:
    copy = tmp_path / "site"
    shutil.copytree(small, copy)
    with open(copy / file, "a", encoding="utf-8") as stream:
        stream.write(added)
    assert links.faults(copy) == ([fault] if fault else [])


def test_a_folder_that_is_no_site_is_not_replaced(course: Course) -> None:
    course.write()
    place = course.root / "thesis"
    place.mkdir()
    (place / "chapter.txt").write_text("years of work")
    with pytest.raises(SiteError, match="holds something that is no site"):
        build_site(place, course.root)
    assert (place / "chapter.txt").read_text() == "years of work"


def test_a_readme_without_the_table_is_refused(course: Course) -> None:
    course.write()
    (course.root / "README.md").write_text("# A course\n\nWithout a map.\n")
    with pytest.raises(SiteError, match='no section "## Road map"'):
        index(course.root, find_pages(course.root))


def test_another_folder_is_no_course(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="give the folder of the course"):
        find_pages(tmp_path)


def test_the_command_says_what_is_wrong_in_one_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").touch()
    assert main([str(tmp_path)]) == 1
    assert "holds something that is no site" in capsys.readouterr().err


# --- parts ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spelling", "found"),
    [
        ("2 · Templates", "2--templates"),
        ("2-·-Templates", "2--templates"),
        ("2-%C2%B7-Templates", "2--templates"),
        ("the-map-of-utils", "the-map-of-utils"),
        ("What's new?", "whats-new"),
    ],
)
def test_both_spellings_of_an_anchor_are_one(spelling: str, found: str) -> None:
    assert anchor(spelling) == found


def test_code_stays_as_it_is() -> None:
    text = "`[a](#A-·-B)`\n\n```\n[a](#A-·-B)\n```\n\n[a](#A-·-B) [b](x.ipynb#C-d)"
    changed = text.removesuffix("[a](#A-·-B) [b](x.ipynb#C-d)")
    assert readable(text) == changed + "[a](#a--b) [b](x.ipynb#c-d)"


def test_where_outputs_are_from(tmp_path: Path) -> None:
    (tmp_path / "a.ipynb").write_text("1")
    assert stored.origin("a.ipynb", tmp_path) == stored.Origin()

    def git(*arguments: str) -> None:
        who = ("-c", "user.name=T", "-c", "user.email=t@example.test")
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True)

    git("init", "--quiet")
    git("add", "a.ipynb")
    git("commit", "--quiet", "-m", "First", "--date=2026-01-02T03:04:05")
    first = stored.origin("a.ipynb", tmp_path)
    assert re.search(r"stored on \d{4}-\d\d-\d\d \(commit [0-9a-f]{7,}\)\.", str(first))
    (tmp_path / "a.ipynb").write_text("2")
    changed = stored.origin("a.ipynb", tmp_path)
    assert str(changed).endswith("changed since without a commit.")
    assert changed.commit == first.commit
