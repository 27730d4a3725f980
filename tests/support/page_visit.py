"""A person at the page of the web app, and what the browser notes meanwhile."""

from __future__ import annotations

import json
from typing import Protocol

from playwright.sync_api import BrowserContext, Locator, expect

# Markup, a script, the course's template keys, and what could end a stream's event.
HOSTILE = (
    '<img src=x onerror="window.ran=1"><script>window.ran=1</script>'
    "<b>bold</b> &amp; {instruction} ### Response: [DONE]\n\ndata: {}\nevent: end\n"
    "</p></article><style>body{display:none}</style>\u2028 ${1+1} {{7*7}}"
)
SPOKEN = """
window.spoken = [];
addEventListener("DOMContentLoaded", () => {
  const log = document.querySelector("#announcements");
  if (log) new MutationObserver((changes) => {
    for (const change of changes)
      for (const node of change.addedNodes) spoken.push(node.textContent);
  }).observe(log, { childList: true });
});
"""
# Chromium hands out no body that a page reads as a stream.
STREAMED = """
window.streamed = [];
const ask = window.fetch;
window.fetch = async (...request) => {
  const reply = await ask(...request);
  if (reply.headers.get("content-type").startsWith("text/event-stream"))
    reply.clone().text().then((body) => streamed.push(body), () => {});
  return reply;
};
"""


class Site(Protocol):
    """What a test needs of a server: `PageServer` has it, and so has `serve_web`."""

    url: str
    key: str


class Visit:
    """A person at the page, and what the browser notes meanwhile."""

    def __init__(self, context: BrowserContext, site: Site) -> None:
        self.site = site
        self.context = context
        context.add_init_script(SPOKEN)
        context.add_init_script(STREAMED)
        self.page = page = context.new_page()
        self.notes: list[str] = []
        self.faults: list[str] = []
        self.addresses: list[str] = []
        page.on("console", lambda message: self.notes.append(message.text))
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("dialog", lambda dialog: self.faults.append(dialog.message))
        page.on("request", lambda request: self.addresses.append(request.url))
        page.set_default_timeout(10_000)

    def open(self, key: bool = True) -> Visit:
        """Go to the page and enter the key."""
        self.page.goto(self.site.url)
        if key and self.site.key:
            self.enter_key(self.site.key)
            expect(self.key_field).to_be_hidden()
        return self

    @property
    def question(self) -> Locator:
        return self.page.get_by_label("Your question")

    @property
    def key_field(self) -> Locator:
        return self.page.get_by_role("textbox", name="Access key")

    @property
    def exchanges(self) -> Locator:
        return self.page.get_by_role("article")

    def enter_key(self, key: str) -> None:
        self.key_field.fill(key)
        self.key_field.press("Enter")

    def choose(self, label: str) -> None:
        self.page.get_by_role("radio", name=label, exact=True).check()

    def ask(self, text: str) -> Locator:
        """Ask, and return the newest exchange at once."""
        self.question.fill(text)
        self.question.press("Enter")
        return self.exchanges.first

    def ask_to_the_end(self, text: str) -> Locator:
        exchange = self.ask(text)
        done(exchange)
        return exchange

    def spoken(self) -> list[str]:
        return self.page.evaluate("window.spoken")

    def streamed(self) -> str:
        """Return what came for the last question, as it came."""
        self.page.wait_for_function("window.streamed.length > 0")
        return self.page.evaluate("window.streamed.at(-1)")

    def check(self) -> None:
        """Hold what is true of every visit."""
        assert not self.faults
        assert not [note for note in self.notes if "Security Policy" in note]
        address = self.site.url.rstrip("/") + "/"
        assert not [url for url in self.addresses if not url.startswith(address)]
        if self.site.key and self.page.url.startswith(address):
            said = [*self.notes, *self.addresses, self.page.content()]
            assert not [text for text in said if self.site.key in text]
            fields = "[...document.querySelectorAll('input, textarea')]"
            values = self.page.evaluate(f"{fields}.map((field) => field.value)")
            assert self.site.key not in values
            assert self.page.evaluate("localStorage.length") == 0
            assert self.context.cookies() == []


def done(exchange: Locator) -> None:
    """Wait until no answer of an exchange is on its way."""
    expect(exchange).to_be_visible()
    expect(exchange.locator('[aria-busy="true"]')).to_have_count(0)


def text_of(exchange: Locator) -> str:
    return exchange.locator(".text").first.text_content() or ""


def streamed_text(body: str) -> str:
    """Return the answer within the body of a stream."""
    lines = body.replace("\r\n", "\n").split("\n")
    pairs = [
        (name.removeprefix("event: "), json.loads(data.removeprefix("data: ")))
        for name, data in zip(lines, lines[1:], strict=False)
        if name.startswith("event: ")
    ]
    return "".join(data["text"] for name, data in pairs if name == "piece")
