"""Follows every link of the built pages, and looks for what is loaded from elsewhere.

Sphinx warns of a page or a picture that is missing. It does not look at links in HTML
that a notebook or a template brought along, nor at what the result asks of other hosts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What a browser fetches by itself, by element and attribute.
LOADED = {
    ("script", "src"),
    ("img", "src"),
    ("iframe", "src"),
    ("embed", "src"),
    ("source", "src"),
    ("audio", "src"),
    ("video", "src"),
    ("video", "poster"),
    ("track", "src"),
    ("input", "src"),
    ("object", "data"),
    ("image", "href"),
    ("use", "href"),
}
LOADED_LINKS = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "manifest"}
LOADED_LINKS |= {"modulepreload", "dns-prefetch", "apple-touch-icon", "shortcut"}
NO_FILE = ("mailto:", "data:", "javascript:", "tel:")
IN_STYLE = re.compile(
    r"url\(\s*['\"]?(?P<url>[^'\")]+)|@import\s+['\"](?P<sheet>[^'\"]+)"
)
# A script that fetches from a written address; browsers tell the tests of the others.
IN_SCRIPT = re.compile(
    r"(?:\.src\s*=|\.href\s*=|import\(|importScripts\(|fetch\(|\bfrom)\s*"
    r"['\"`](?P<url>(?:https?:)?//[^'\"`]+)"
)
COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)


@dataclass
class Page(HTMLParser):
    """What one page has and asks for.

    Attributes:
        anchors: ids, to which a link may lead.
        links: what a reader can follow.
        loaded: what the browser fetches.
    """

    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Make the parser ready."""
        super().__init__()
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note ids and addresses of an element."""
        values = {name.removeprefix("xlink:"): value or "" for name, value in attrs}
        self._in_style = tag == "style"
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        for name, value in values.items():
            if (tag, name) in LOADED:
                self.loaded.append(value)
            elif name == "srcset":
                self.loaded += [one.split()[0] for one in value.split(",") if one]
            elif name == "style":
                self.loaded += addresses_in_style(value)
        if tag in ("a", "area", "form"):
            self.links += [
                values[name] for name in ("href", "action") if name in values
            ]
        if tag == "link":
            loads = LOADED_LINKS & set(values.get("rel", "").lower().split())
            (self.loaded if loads else self.links).append(values.get("href", ""))

    def handle_data(self, data: str) -> None:
        """Note addresses in a style sheet within the page."""
        if self._in_style:
            self.loaded += addresses_in_style(data)


def addresses_in_style(text: str) -> list[str]:
    """Return what a style sheet asks for."""
    found = IN_STYLE.finditer(COMMENT.sub("", text))
    return [(one["url"] or one["sheet"]).strip() for one in found]


def read_page(file: Path) -> Page:
    """Return what a built page has and asks for."""
    page = Page()
    page.feed(file.read_text(encoding="utf-8"))
    page.close()
    return page


def faults(site: Path) -> list[str]:
    """Return what is wrong with the links of a site, one sentence for each.

    Args:
        site: folder of the built pages.
    """
    pages = {file: read_page(file) for file in sorted(site.rglob("*.html"))}
    found: dict[str, None] = {}
    for file, page in pages.items():
        name = file.relative_to(site).as_posix()
        for link in page.loaded:
            if _is_elsewhere(link):
                found[f"{name} loads {link} from another host"] = None
            elif problem := _missing(site, file, link, pages):
                found[f"{name} loads {link}: {problem}"] = None
        for link in page.links:
            if not _is_elsewhere(link) and (
                problem := _missing(site, file, link, pages)
            ):
                found[f"{name} links to {link}: {problem}"] = None
    for file, link in _loaded_by_assets(site):
        name = file.relative_to(site).as_posix()
        if _is_elsewhere(link):
            found[f"{name} loads {link} from another host"] = None
        elif problem := _missing(site, file, link, pages):
            found[f"{name} loads {link}: {problem}"] = None
    return list(found)


def _loaded_by_assets(site: Path) -> Iterator[tuple[Path, str]]:
    """Yield what style sheets, drawings and scripts ask for; of these, other hosts."""
    for file in sorted(site.rglob("*.*")):
        if file.suffix == ".svg":
            yield from ((file, link) for link in read_page(file).loaded)
        elif file.suffix in (".css", ".js"):
            text = file.read_text(encoding="utf-8", errors="replace")
            links = addresses_in_style(text)
            if file.suffix == ".js":
                links = [one["url"] for one in IN_SCRIPT.finditer(text)]
            yield from ((file, link) for link in links)


def _is_elsewhere(link: str) -> bool:
    """Whether a link leads to another host."""
    return bool(re.match(r"(https?:|ftp:|wss?:)?//", link.strip(), re.IGNORECASE))


def _missing(site: Path, file: Path, link: str, pages: dict[Path, Page]) -> str:
    """Why a link within the site leads nowhere; "" if it leads somewhere."""
    link = link.strip()
    if link in ("", "#") or link.lower().startswith(NO_FILE):
        return ""
    parts = urlsplit(link)
    target = file
    if parts.path:
        target = (file.parent / unquote(parts.path)).resolve()
        if not target.is_relative_to(site.resolve()):
            return "this is outside the site"
        target = target / "index.html" if target.is_dir() else target
    if not target.is_file():
        return "there is no such file"
    anchor = unquote(parts.fragment)
    known = pages.get(target)
    if anchor and known is not None and anchor not in known.anchors:
        return "there is no such heading"
    return ""
