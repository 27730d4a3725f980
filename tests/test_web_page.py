"""The page in a real browser: asked, rated, read by keyboard, and given odd replies.

Tests that take `site` need any server of the web app: its fixture is the one place
where another takes the stand-in's place. Tests that take `odd` script what it sends.
After each test: no script error, nothing against the page's policy, no request to
another origin, and the key in no address, log or text.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from support.page_server import (
    PAGE,
    PageServer,
    Reply,
    end,
    error_body,
    event,
    json_reply,
    problem,
    start,
    stream,
    whole,
)
from support.page_visit import HOSTILE, Site, Visit, done, streamed_text, text_of

WRONG_KEY = "not-the-key-5d1e"


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """Serve the page and the API; `serve_web(...)` can take this place."""
    with PageServer() as server:
        yield server


@pytest.fixture(scope="module")
def _odd() -> Iterator[PageServer]:
    with PageServer() as server:
        yield server


@pytest.fixture
def odd(_odd: PageServer) -> PageServer:
    """Return a server to which a test gives the replies."""
    _odd.forget()
    return _odd


Visitor = Callable[..., Visit]


@pytest.fixture
def visitor(started: Browser) -> Iterator[Visitor]:
    """Return a function that opens a window of its own on a server."""
    visits: list[Visit] = []

    def new(server: Site, **options: Any) -> Visit:
        visits.append(Visit(started.new_context(**options), server))
        return visits[-1]

    yield new
    for made in visits:
        made.check()
        made.context.close()


@pytest.fixture(scope="module")
def _window(started: Browser, _odd: PageServer) -> Iterator[Visit]:
    visit = Visit(started.new_context(), _odd).open()
    yield visit
    visit.context.close()


@pytest.fixture
def visit(_window: Visit, odd: PageServer) -> Iterator[Visit]:
    """Return the window that many tests on `odd` share, loaded anew."""
    _window.page.reload()
    expect(_window.page.get_by_role("radio")).to_have_count(4)
    odd.forget()
    yield _window
    _window.check()


# --- what the files hold --------------------------------------------------------------


def test_the_page_has_no_way_to_turn_text_into_markup() -> None:
    script = (PAGE / "app.js").read_text(encoding="utf-8")
    ways = "innerHTML outerHTML insertAdjacent document.write eval( DOMParser"
    ways += " createContextualFragment setHTML Function("
    for way in ways.split():
        assert way not in script


def test_the_page_needs_no_inline_code_and_nobody_else() -> None:
    markup = (PAGE / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"\s(on\w+|style)=|<style|<script(?![^>]* src=)", markup)
    for path in PAGE.iterdir():
        text = path.read_text(encoding="utf-8")
        text = text.replace("http://www.w3.org/2000/svg", "")  # a name, not an address
        assert not re.search(r"https?:|//[a-z]+\.|url\(|@import", text), path.name


def test_key_and_question_have_no_name_that_a_form_could_send() -> None:
    markup = (PAGE / "index.html").read_text(encoding="utf-8")
    fields = re.findall(r"<(?:input|textarea)[^>]*>", markup)
    assert [field for field in fields if " name=" in field] == [
        '<input type="radio" name="choice">'
    ]
    assert set(re.findall(r"<form[^>]* method=\"(\w+)\"", markup)) == {"dialog"}


def test_each_file_that_the_page_names_is_there(site: Site, visitor: Visitor) -> None:
    """The icon as well: without it, browsers log a 404 for /favicon.ico."""
    markup = (PAGE / "index.html").read_text(encoding="utf-8")
    named = re.findall(r"<(?:link|script)[^>]* (?:href|src)=\"([^\"]+)\"", markup)
    assert {*named, "index.html"} == {path.name for path in PAGE.iterdir()}
    visit = visitor(site)
    missing: list[str] = []
    visit.page.on(
        "response", lambda reply: reply.ok or missing.append(reply.request.url)
    )
    visit.open(key=False)
    expect(visit.key_field).to_be_visible()
    # Browsers draw it, under the page's policy.
    drawn = """async () => {
      const image = new Image();
      image.src = document.querySelector("link[rel=icon]").href;
      await image.decode();
      return image.naturalWidth > 0;
    }"""
    assert visit.page.evaluate(drawn)
    asks_without_key = [f"{site.url}/api/versions"]
    assert missing == asks_without_key
    assert not [note for note in visit.notes if "404" in note]


# --- asking and rating ----------------------------------------------------------------


def test_a_question_gets_its_streamed_answer(site: Site, visitor: Visitor) -> None:
    visit = visitor(site).open()
    with visit.page.expect_request("**/api/generate") as caught:
        exchange = visit.ask("What is a training job?")
    done(exchange)
    answer = streamed_text(visit.streamed())
    assert answer and text_of(exchange) == answer
    expect(exchange.locator(".question")).to_have_text("What is a training job?")
    body = caught.value.post_data_json
    assert body == {
        "question": "What is a training job?",
        "version": None,
        "stream": True,
    }
    # The next question can be written at once.
    expect(visit.question).to_be_focused()
    expect(visit.question).to_have_value("")


def test_an_answer_is_said_once_and_not_by_pieces(site: Site, visitor: Visitor) -> None:
    visit = visitor(site).open()
    before = len(visit.spoken())
    exchange = visit.ask_to_the_end("Who says it?")
    visit.page.wait_for_function(f"window.spoken.length >= {before + 2}")
    asked, answered = visit.spoken()[before:]
    assert asked == "Asked. The answer is read out when it is complete."
    assert answered.endswith(f" answered: {text_of(exchange)}")
    # No other live region holds the pieces.
    live = exchange.locator("[aria-live], [role=status], [role=alert], [role=log]")
    expect(live).to_have_count(0)


def test_sources_stand_below_the_answer(odd: PageServer, visit: Visit) -> None:
    odd.replies += [whole("One.", "tuned", "sm-0012", "sm-0440"), whole("Two.")]
    first = visit.ask_to_the_end("With notes?")
    expect(first.get_by_role("listitem")).to_have_text(["sm-0012", "sm-0440"])
    assert "34 tokens · 1.2 s" in first.inner_text()
    second = visit.ask_to_the_end("Without notes?")
    expect(second.locator(".sources")).to_be_hidden()


@pytest.mark.parametrize("label", ["base", "tuned"])
def test_a_version_can_be_chosen(site: Site, visitor: Visitor, label: str) -> None:
    visit = visitor(site).open()
    visit.choose(label)
    with visit.page.expect_request("**/api/generate") as caught:
        exchange = visit.ask("Who are you?")
    done(exchange)
    assert caught.value.post_data_json["version"] == label
    expect(exchange.get_by_role("group", name=label, exact=True)).to_be_visible()


def test_two_versions_answer_side_by_side(site: Site, visitor: Visitor) -> None:
    visit = visitor(site).open()
    visit.choose("Side by side")
    exchange = visit.ask_to_the_end("Which of you is better?")
    base = exchange.get_by_role("group", name="base", exact=True)
    tuned = exchange.get_by_role("group", name="tuned", exact=True)
    left, right = base.bounding_box(), tuned.bounding_box()
    assert left and right
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
    for region in (base, tuned):
        expect(region.locator(".text")).not_to_be_empty()
    assert len([line for line in visit.spoken() if " answered: " in line]) == 1


def test_one_of_two_may_fail(odd: PageServer, visit: Visit) -> None:
    visit.choose("Side by side")
    odd.replies += [whole("Fine.", "base"), problem(502, "model_error")]
    exchange = visit.ask_to_the_end("Both?")
    expect(exchange.locator(".problem:visible")).to_have_count(1)
    expect(exchange.get_by_text("Fine.")).to_be_visible()


def test_a_rating_and_a_comment_are_stored(site: Site, visitor: Visitor) -> None:
    visit = visitor(site).open()
    exchange = visit.ask_to_the_end("Rate me.")
    request_id = re.search(r'"request_id": ?"(\w+)"', visit.streamed())[1]

    def sent_by(act: Callable[[], None]) -> dict[str, str]:
        with visit.page.expect_response("**/api/feedback") as caught:
            act()
        assert caught.value.json() == {"request_id": request_id, "stored": True}
        return caught.value.request.post_data_json

    helpful = exchange.get_by_role("button", name="Helpful", exact=True)
    poor = exchange.get_by_role("button", name="Not helpful")
    note = exchange.locator(".note")
    expected = {"request_id": request_id, "thumb": "up", "comment": ""}
    assert sent_by(helpful.click) == expected
    expect(note).to_have_text("Stored: helpful. Thank you.")
    expect(helpful).to_have_attribute("aria-pressed", "true")
    exchange.get_by_label("Why?").fill('=HYPERLINK("x") <b>short</b>')
    send = exchange.get_by_role("button", name="Send comment")
    expected["comment"] = '=HYPERLINK("x") <b>short</b>'
    assert sent_by(send.click) == expected
    expect(note).to_have_text("Stored: helpful, with your comment. Thank you.")
    # Another rating keeps the comment, since the service keeps the last one whole.
    assert sent_by(poor.click) == expected | {"thumb": "down"}
    expect(helpful).to_have_attribute("aria-pressed", "false")
    expect(poor).to_have_attribute("aria-pressed", "true")
    assert "Stored: helpful. Thank you." in visit.spoken()


@pytest.mark.parametrize("reply", ["stored", "failed"])
def test_what_is_rated_while_another_is_sent_is_sent_afterwards(
    odd: PageServer, visit: Visit, reply: str
) -> None:
    """The last rating and the last comment count, whatever became of the first."""
    exchange = visit.ask_to_the_end("Rate me.")
    helpful = exchange.get_by_role("button", name="Helpful", exact=True)
    poor = exchange.get_by_role("button", name="Not helpful")
    note = exchange.locator(".note")
    helpful.click()
    expect(note).to_have_text("Stored: helpful. Thank you.")
    (request_id,) = odd.feedback
    body = {"request_id": request_id, "stored": reply == "stored"}
    slow = [(0.7, json.dumps(body).encode())]
    odd.replies_to["/api/feedback"] = [
        Reply(200, {"content-type": "application/json"}, slow)
    ]
    poor.click()
    helpful.click()
    poor.click()
    exchange.get_by_label("Why?").fill("Wrong.")
    exchange.get_by_role("button", name="Send comment").click()
    expect(note).to_have_text("Stored: not helpful, with your comment. Thank you.")
    expect(poor).to_have_attribute("aria-pressed", "true")
    sent = [request.body for request in odd.asked("/api/feedback")]
    assert [(one["thumb"], one["comment"]) for one in sent] == [
        ("up", ""),
        ("down", ""),
        ("down", "Wrong."),
    ]


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (problem(404, "unknown_request"), "does not know this answer any more"),
        (problem(429, "throttled", retry_after="9"), "You can try again in 9 s."),
        (problem(413, "too_large"), "The comment is too long."),
        (problem(503, "unavailable"), "Try again in a while."),
        (problem(403, "forbidden"), "did not accept the access key"),
        (json_reply(200, ["unexpected"]), "Try again in a while."),
    ],
    ids=lambda value: str(value.status) if isinstance(value, Reply) else None,
)
def test_a_rating_that_is_not_stored_says_so(
    odd: PageServer, visit: Visit, reply: Reply, words: str
) -> None:
    exchange = visit.ask_to_the_end("Rate me.")
    odd.replies_to["/api/feedback"] = [reply]
    helpful = exchange.get_by_role("button", name="Helpful", exact=True)
    helpful.click()
    expect(exchange.locator(".note")).to_contain_text("Your rating is not stored.")
    expect(exchange.locator(".note")).to_contain_text(words)
    expect(helpful).to_have_attribute("aria-pressed", "false")
    helpful.click()
    expect(exchange.locator(".note")).to_have_text("Stored: helpful. Thank you.")


def test_a_comment_that_is_too_long_or_empty_is_not_sent(
    odd: PageServer, visit: Visit
) -> None:
    exchange = visit.ask_to_the_end("Rate me.")
    exchange.get_by_role("button", name="Not helpful").click()
    comment, note = exchange.get_by_label("Why?"), exchange.locator(".note")
    send = exchange.get_by_role("button", name="Send comment")
    comment.fill("x" * 1001)
    expect(exchange.locator(".count")).to_have_text(
        "1,001 of 1,000 characters: 1 too many"
    )
    send.click()
    expect(note).to_have_text("The comment is too long. Shorten it first.")
    comment.fill("   ")
    send.click()
    expect(note).to_contain_text("The comment is empty.")
    assert len(odd.asked("/api/feedback")) == 1


def test_an_answer_can_be_copied(site: Site, visitor: Visitor) -> None:
    visit = visitor(site, permissions=["clipboard-read", "clipboard-write"]).open()
    exchange = visit.ask_to_the_end("Copy me.")
    exchange.get_by_role("button", name="Copy").click()
    expect(exchange.locator(".note")).to_have_text("Copied.")
    copied = visit.page.evaluate("navigator.clipboard.readText()")
    assert copied == text_of(exchange)


def test_without_a_clipboard_the_answer_is_selected(
    site: Site, visitor: Visitor
) -> None:
    visit = visitor(site)
    visit.context.add_init_script(
        "Object.defineProperty(navigator, 'clipboard', { value: undefined })"
    )
    exchange = visit.open().ask_to_the_end("Select me.")
    exchange.get_by_role("button", name="Copy").click()
    expect(exchange.locator(".note")).to_contain_text("The answer is selected.")
    assert visit.page.evaluate("getSelection().toString()") == text_of(exchange)


# --- the key --------------------------------------------------------------------------


def test_the_page_asks_for_the_key_and_names_a_wrong_one(
    site: Site, visitor: Visitor
) -> None:
    visit = visitor(site).open(key=False)
    expect(visit.key_field).to_be_focused()
    assert visit.key_field.get_attribute("type") == "password"
    visit.enter_key(WRONG_KEY)
    alert = visit.page.locator("#key-message")
    expect(alert).to_have_text("The service did not accept the access key.")
    expect(visit.key_field).to_be_focused()
    expect(visit.key_field).to_have_value("")
    assert WRONG_KEY not in visit.page.content()
    visit.enter_key(site.key)
    expect(visit.key_field).to_be_hidden()
    expect(visit.question).to_be_focused()
    visit.ask_to_the_end("Am I in?")
    assert visit.page.evaluate("Object.values(sessionStorage)") == [site.key]


@pytest.mark.parametrize("given", ["", "   ", "schlüssel", "鍵", "a\u00a0b", "k" * 257])
def test_what_cannot_be_a_key_is_not_sent(
    odd: PageServer, visitor: Visitor, given: str
) -> None:
    visit = visitor(odd).open(key=False)
    visit.enter_key(given)
    expect(visit.page.locator("#key-message")).to_contain_text("plain ASCII")
    assert visit.page.evaluate("sessionStorage.length") == 0
    assert len(odd.asked("/api/versions")) == 1


def test_a_key_refused_later_is_asked_for_and_the_question_kept(
    odd: PageServer, visit: Visit
) -> None:
    odd.replies.append(problem(403, "forbidden"))
    exchange = visit.ask_to_the_end("Is my key still good?")
    expect(exchange.locator(".what")).to_have_text(
        "The service did not accept the access key."
    )
    expect(visit.key_field).to_be_focused()
    expect(visit.question).to_have_value("Is my key still good?")


def test_a_forgotten_key_is_gone(odd: PageServer, visitor: Visitor) -> None:
    visit = visitor(odd).open()
    visit.page.get_by_role("button", name="Forget key").click()
    expect(visit.key_field).to_be_focused()
    assert visit.page.evaluate("sessionStorage.length") == 0
    exchange = visit.ask_to_the_end("Who am I?")
    assert odd.asked()[-1].headers["x-api-key"] is None
    expect(exchange.locator(".what")).to_have_text(
        "The service asks for an access key."
    )


def test_the_key_stays_for_the_tab_only(site: Site, visitor: Visitor) -> None:
    visit = visitor(site).open()
    visit.page.reload()
    expect(visit.page.get_by_text("Access key kept for this tab")).to_be_visible()
    expect(visit.page.get_by_role("radio", name="tuned")).to_be_visible()
    expect(visit.key_field).to_be_hidden()
    other = visit.context.new_page()
    other.goto(site.url)
    expect(other.get_by_role("textbox", name="Access key")).to_be_visible()


def test_an_open_service_asks_for_no_key(visitor: Visitor) -> None:
    with PageServer(key=None) as server:
        visit = visitor(server).open()
        visit.ask_to_the_end("No key?")
        expect(visit.key_field).to_be_hidden()
        expect(visit.page.get_by_role("button", name="Forget key")).to_be_hidden()


def test_the_key_is_sent_to_the_api_only(odd: PageServer, visitor: Visitor) -> None:
    visit = visitor(odd).open()
    visit.page.reload()
    visit.ask_to_the_end("Where does it go?")
    for request in odd.requests:
        assert odd.key not in request.path
        if not request.path.startswith("/api/"):
            assert request.headers["x-api-key"] is None


# --- what is asked --------------------------------------------------------------------


def test_markup_and_template_keys_are_shown_as_text(
    site: Site, visitor: Visitor
) -> None:
    visit = visitor(site).open()
    exchange = visit.ask_to_the_end(HOSTILE)
    assert exchange.locator(".question").text_content() == HOSTILE
    assert text_of(exchange) == streamed_text(visit.streamed())
    expect(exchange.locator("img, script, b, style, iframe")).to_have_count(0)
    assert visit.page.evaluate("window.ran") is None


def test_whatever_the_service_sends_is_shown_as_text(
    odd: PageServer, visitor: Visitor
) -> None:
    named = [{"name": HOSTILE, "description": HOSTILE}]
    odd.replies_to["/api/versions"] = [json_reply(200, {"versions": named, "live": []})]
    visit = visitor(odd).open()
    expect(visit.page.get_by_role("radio")).to_have_count(2)
    fields = {"field": HOSTILE, "problem": HOSTILE}
    odd.replies += [
        whole(HOSTILE, HOSTILE, HOSTILE),
        problem(422, "invalid", fields),
        json_reply(422, {"error": {"code": HOSTILE, "request_id": HOSTILE}}),
        stream(start(), event("error", error_body(HOSTILE))),
    ]
    answered = visit.ask_to_the_end("One")
    assert text_of(answered) == HOSTILE
    assert answered.locator(".sources li").text_content() == HOSTILE
    refused = visit.ask_to_the_end("Two")
    assert refused.locator(".fields li").text_content() == f"{HOSTILE}: {HOSTILE}"
    for text in ("Three", "Four"):
        visit.ask_to_the_end(text)
    tags = visit.page.locator("img, b, main style, main script, iframe")
    expect(tags).to_have_count(0)
    assert visit.page.evaluate("window.ran") is None


TEN_MEGABYTES = "'word <b>'.repeat(1310720)"
INSERT = {
    "pasted": f"navigator.clipboard.writeText({TEN_MEGABYTES})",
    "dropped": f"""() => {{
      const dataTransfer = new DataTransfer();
      dataTransfer.setData("text/plain", {TEN_MEGABYTES});
      const drop = new DragEvent("drop", {{ dataTransfer, cancelable: true }});
      if (document.activeElement.dispatchEvent(drop)) throw Error("not refused");
    }}""",
    "put in by a program": f"""() => {{
      const field = document.activeElement;
      field.value = {TEN_MEGABYTES};
      field.dispatchEvent(new InputEvent("input"));
      // Were it drawn, the page would hang, and the test with it.
      if (field.value.length <= field.maxLength) return;
      field.value = "";
      throw Error("not refused");
    }}""",
    "inserted": f"document.execCommand('insertText', false, {TEN_MEGABYTES})",
}


@pytest.mark.parametrize("way", INSERT)
def test_ten_megabytes_are_refused_in_words(
    odd: PageServer, visitor: Visitor, way: str
) -> None:
    visit = visitor(odd, permissions=["clipboard-read", "clipboard-write"]).open()
    visit.question.fill("Kept.")
    visit.page.evaluate(
        """() => {
          window.longest = 0;
          new PerformanceObserver((list) => {
            for (const entry of list.getEntries())
              window.longest = Math.max(window.longest, entry.duration);
          }).observe({ type: "longtask" });
        }"""
    )
    visit.page.evaluate(INSERT[way])
    message = visit.page.locator("#question-message")
    if way == "pasted":
        visit.question.press("Control+v")
    if way == "inserted":
        # The browser itself cuts it, to what the page still counts and refuses.
        visit.question.press("Enter")
        expect(message).to_contain_text("18,000 characters too long")
        assert odd.asked() == []
        visit.question.fill("Kept.")
    else:
        expect(message).to_contain_text("10,485,760 characters, and 2,000 are possible")
    expect(visit.question).to_have_value("Kept.")
    assert visit.page.evaluate("window.longest") < 3000  # milliseconds
    visit.question.press("Enter")
    done(visit.exchanges.first)
    expect(message).to_be_hidden()
    assert [request.body["question"] for request in odd.asked()] == ["Kept."]


def test_a_question_over_the_limit_is_counted_and_refused(
    odd: PageServer, visit: Visit
) -> None:
    visit.ask("é" * 2001)
    expect(visit.page.locator("#question-count")).to_have_text(
        "2,001 of 2,000 characters: 1 too many"
    )
    message = visit.page.locator("#question-message")
    expect(message).to_contain_text("1 characters too long")
    expect(visit.question).to_have_attribute("aria-invalid", "true")
    assert odd.asked() == []
    # An emoji is one character of the service, though two of JavaScript.
    visit.ask_to_the_end("  " + "😀" * 2000 + "\n")
    assert odd.asked()[0].body["question"] == "😀" * 2000


@pytest.mark.parametrize("text", ["", "  ", "\n\t \u3000"])
def test_an_empty_question_is_not_sent(
    odd: PageServer, visit: Visit, text: str
) -> None:
    visit.question.fill(text)
    visit.page.get_by_role("button", name="Ask", exact=True).click()
    message = visit.page.locator("#question-message")
    expect(message).to_have_text("The question is empty. Write one first.")
    expect(visit.question).to_be_focused()
    assert odd.asked() == []


def test_half_a_surrogate_pair_is_replaced(odd: PageServer, visit: Visit) -> None:
    visit.page.evaluate("document.querySelector('#question').value = 'a\\ud83d b'")
    visit.question.press("Enter")
    done(visit.exchanges.first)
    assert odd.asked()[0].body["question"] == "a\ufffd b"


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("\\ud83d", "\ufffd"),
        ("a\\udc00", "a\ufffd"),
        ("\\udc00\\ud83d", "\ufffd\ufffd"),
        ("\\ud83d\\udc4d", "👍"),
    ],
)
def test_half_a_surrogate_pair_is_replaced_in_comments_too(
    odd: PageServer, visit: Visit, written: str, sent: str
) -> None:
    visit.page.evaluate(f"document.querySelector('#question').value = '{written}'")
    visit.question.press("Enter")
    exchange = visit.exchanges.first
    done(exchange)
    exchange.get_by_role("button", name="Helpful", exact=True).click()
    comment = exchange.get_by_label("Why?")
    comment.evaluate(f"(field) => {{ field.value = '{written}'; }}")
    exchange.get_by_role("button", name="Send comment").click()
    expect(exchange.locator(".note")).to_contain_text("with your comment")
    assert odd.asked()[0].body["question"] == sent
    assert [one["comment"] for one in odd.feedback.values()] == [sent]


def test_shift_and_enter_make_a_line_and_an_unfinished_word_is_not_asked(
    odd: PageServer, visit: Visit
) -> None:
    visit.question.press_sequentially("One")
    visit.question.press("Shift+Enter")
    visit.question.press_sequentially("Two")
    # Safari has ended the composition by then, and says so by the code 229 alone.
    for sign in ({"isComposing": True}, {"keyCode": 229}):
        visit.question.dispatch_event("keydown", {"key": "Enter", **sign})
        expect(visit.question).to_have_value("One\nTwo")
        expect(visit.exchanges).to_have_count(0)
    visit.question.press("Enter")
    done(visit.exchanges.first)
    assert [one.body["question"] for one in odd.asked()] == ["One\nTwo"]


def test_enter_that_ends_an_input_method_s_word_asks_nothing(
    odd: PageServer, visit: Visit
) -> None:
    session = visit.context.new_cdp_session(visit.page)
    word = {"text": "にほん", "selectionStart": 3, "selectionEnd": 3}
    visit.question.focus()
    session.send("Input.imeSetComposition", word)
    # Without the character that it would write: the input method takes that.
    key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13}
    session.send("Input.dispatchKeyEvent", {"type": "rawKeyDown", **key})
    session.send("Input.insertText", {"text": "日本"})
    session.send("Input.dispatchKeyEvent", {"type": "keyUp", **key})
    expect(visit.question).to_have_value("日本")
    expect(visit.exchanges).to_have_count(0)
    visit.question.press("Enter")
    done(visit.exchanges.first)
    assert [one.body["question"] for one in odd.asked()] == ["日本"]


# --- what goes wrong ------------------------------------------------------------------

STATUSES = [
    (400, "bad_json", "could not read the question"),
    (403, "forbidden", "did not accept the access key"),
    (404, "not_found", "do not fit together"),
    (405, "method_not_allowed", "do not fit together"),
    (413, "too_large", "too long for the service"),
    (415, "unsupported_media_type", "do not fit together"),
    (422, "invalid", "cannot work with this question"),
    (422, "unknown_version", "not offered any more"),
    (429, "throttled", "Too many questions"),
    (502, "model_error", "could not answer"),
    (502, "internal", "Something failed in the service"),
    (503, "unavailable", "not available at the moment"),
    (504, "timeout", "took too long"),
]
# A reply of a gateway or a proxy in between has no body of ours.
STRANGE = [
    (403, "did not accept the access key"),
    (413, "too long for the service"),
    (429, "Too many questions"),
    (500, "Something failed in the service"),
    (503, "not available at the moment"),
    (504, "took too long"),
    (418, "Something failed in the service"),
]


@pytest.mark.parametrize(("status", "code", "words"), STATUSES)
def test_each_error_has_words_and_a_way_on(
    odd: PageServer, visit: Visit, status: int, code: str, words: str
) -> None:
    field = {"field": "max_tokens", "problem": "must be at most 256"}
    odd.replies.append(problem(status, code, field))
    exchange = visit.ask_to_the_end("Will this work?")
    box = exchange.locator(".problem")
    expect(box.locator(".what")).to_contain_text(words)
    expect(box.locator(".advice")).not_to_be_empty()
    expect(box.locator(".request")).to_have_text(re.compile("^Request [0-9a-f]{32}$"))
    expect(box.locator(".fields li")).to_have_text("max_tokens: must be at most 256")
    said = [line for line in visit.spoken() if words in line]
    assert len(said) == 1
    # The question is back, and the same page can ask it again.
    expect(visit.question).to_have_value("Will this work?")
    visit.question.press("Enter")
    expect(visit.exchanges).to_have_count(2)
    done(visit.exchanges.first)
    expect(visit.exchanges.first.locator(".problem")).to_be_hidden()


def test_an_error_without_our_body_has_words_too(odd: PageServer, visit: Visit) -> None:
    body = b"<html><h1>Forbidden</h1><script>window.ran=1</script></html>"
    for status, words in STRANGE:
        odd.replies.append(Reply(status, {"content-type": "text/html"}, [(0, body)]))
        exchange = visit.ask_to_the_end(f"Will {status} work?")
        expect(exchange.locator(".what")).to_contain_text(words)
        assert "<h1>" not in exchange.inner_text()


def test_retry_after_counts_down(odd: PageServer, visitor: Visitor) -> None:
    visit = visitor(odd)
    visit.page.clock.install()
    visit.open()
    odd.replies.append(problem(503, "unavailable", retry_after="12"))
    exchange = visit.ask_to_the_end("Are you there?")
    line = exchange.locator(".countdown")
    again = exchange.get_by_role("button", name="Ask again")
    expect(line).to_have_text(re.compile("^You can try again in 1[12] s.$"))
    expect(again).to_have_attribute("aria-disabled", "true")
    again.click(force=True)
    visit.page.clock.run_for(6000)
    expect(line).to_have_text(re.compile("^You can try again in [56] s.$"))
    visit.page.clock.run_for(7000)
    expect(line).to_have_text("You can try again now.")
    assert "You can ask again now." in visit.spoken()
    assert len([said for said in visit.spoken() if "try again in" in said]) == 0
    again.click()
    expect(visit.exchanges).to_have_count(2)
    done(visit.exchanges.first)
    assert [request.body["question"] for request in odd.asked()] == (
        ["Are you there?"] * 2
    )


@pytest.mark.parametrize(
    ("header", "shown"),
    [("Fri, 01 Jan 2100 00:00:00 GMT", "3600"), ("0", ""), ("soon", ""), ("-5", "")],
)
def test_retry_after_may_be_a_date_or_nonsense(
    odd: PageServer, visit: Visit, header: str, shown: str
) -> None:
    odd.replies.append(problem(503, "unavailable", retry_after=header))
    exchange = visit.ask_to_the_end("When?")
    line = exchange.locator(".countdown")
    if shown:
        expect(line).to_contain_text("You can try again in 3")
    else:
        expect(line).to_be_hidden()
        again = exchange.get_by_role("button", name="Ask again")
        expect(again).not_to_have_attribute("aria-disabled", "true")


BEGUN = (start(), event("piece", {"text": "The beginning"}))
BROKEN = {
    "the connection breaks": (
        stream(*BEGUN, (0.3, b": on\n\n"), breaks=True),
        "The answer broke off.",
    ),
    "the stream has no end": (stream(*BEGUN), "The answer broke off."),
    "the last event is cut": (stream(*BEGUN, end()[:-1]), "The answer broke off."),
    "an error comes within": (
        stream(*BEGUN, event("error", error_body("timeout"))),
        "The model took too long.",
    ),
    "an event is not JSON": (
        stream(*BEGUN, b"event: piece\ndata: {oops\n\n"),
        "The reply was not one of this service.",
    ),
    "an event never ends": (
        stream(*BEGUN, b"data: ", *[b"x" * 100_000] * 12),
        "The reply was not one of this service.",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_stream_keeps_what_came(
    odd: PageServer, visit: Visit, fault: str
) -> None:
    reply, words = BROKEN[fault]
    odd.replies.append(reply)
    exchange = visit.ask_to_the_end("Will it hold?")
    expect(exchange.locator(".what")).to_have_text(words)
    assert text_of(exchange) == "The beginning"
    # What is incomplete cannot be rated.
    expect(exchange.get_by_role("button", name="Helpful", exact=True)).to_be_hidden()


def test_a_page_in_place_of_an_answer_is_no_answer(
    odd: PageServer, visit: Visit
) -> None:
    """A distribution that turns errors into the page with status 200."""
    body = (PAGE / "index.html").read_bytes()
    odd.replies.append(Reply(200, {"content-type": "text/html"}, [(0, body)]))
    exchange = visit.ask_to_the_end("Are you the API?")
    expect(exchange.locator(".what")).to_contain_text("not one of this service")


NONSENSE = [
    json_reply(200, None),
    json_reply(200, {"answer": 7}),
    Reply(200, {"content-type": "application/json"}, [(0, b"{")]),
    stream(event("start", None), event("piece", [1]), event("end", "x")),
    stream(event("start", {"sources": [None, {"id": 3}]}), event("end", {"tokens": 1})),
    json_reply(422, {"error": {"code": ["x"], "fields": [None, 1, {"field": "x"}]}}),
    json_reply(502, [1]),
]


def test_no_reply_breaks_the_page(odd: PageServer, visit: Visit) -> None:
    for number, reply in enumerate(NONSENSE, 1):
        odd.replies.append(reply)
        exchange = visit.ask_to_the_end("Nonsense?")
        expect(exchange).to_have_accessible_name(f"Question {number}")
        assert exchange.locator(".what").inner_text() or text_of(exchange)
    for versions in (None, {"versions": [None, {"name": 1}], "live": 7}):
        odd.replies_to["/api/versions"] = [json_reply(200, versions)]
        visit.page.reload()
        expect(visit.page.get_by_text("Answered as for everybody.")).to_be_visible()
        visit.ask_to_the_end("Still there?")


def test_a_redirect_to_another_host_is_not_followed(
    odd: PageServer, visit: Visit
) -> None:
    with PageServer(key=None) as other:
        moved = Reply(307, {"location": f"{other.url}/api/generate"})
        odd.replies.append(moved)
        exchange = visit.ask_to_the_end("Where do you send me?")
        expect(exchange.locator(".what")).to_contain_text("cannot be reached")
        assert other.requests == []


def test_no_connection_has_words(odd: PageServer, visitor: Visitor) -> None:
    visit = visitor(odd).open()
    visit.context.set_offline(True)
    exchange = visit.ask_to_the_end("Hello?")
    expect(exchange.locator(".what")).to_have_text("The service cannot be reached.")
    visit.context.set_offline(False)
    exchange.get_by_role("button", name="Ask again").click()
    expect(visit.exchanges).to_have_count(2)
    done(visit.exchanges.first)
    assert text_of(visit.exchanges.first).endswith("Hello?")


def test_without_its_versions_the_page_still_asks(
    odd: PageServer, visitor: Visitor
) -> None:
    odd.replies_to["/api/versions"] = [problem(503, "unavailable")]
    visit = visitor(odd).open()
    expect(visit.page.locator("#question-message")).to_contain_text("list of versions")
    expect(visit.page.get_by_role("radio")).to_have_count(1)
    visit.ask_to_the_end("Live?")
    expect(visit.page.get_by_role("radio")).to_have_count(4)


def test_an_empty_answer_is_named(odd: PageServer, visit: Visit) -> None:
    odd.replies += [stream(start(), end()), stream(start(), end("length"))]
    exchange = visit.ask_to_the_end("Nothing to say?")
    assert text_of(exchange) == "(The model gave an empty answer.)"
    expect(visit.ask_to_the_end("And now?")).to_contain_text("cut off at the length")


def test_a_service_that_cannot_stream_answers_at_once(
    odd: PageServer, visit: Visit
) -> None:
    reply = {"request_id": "a" * 32, "answer": "Whole.", "version": "base"}
    odd.replies.append(json_reply(200, reply | {"sources": [], "latency_ms": 900}))
    exchange = visit.ask_to_the_end("All of it?")
    assert text_of(exchange) == "Whole."
    expect(exchange.get_by_role("heading", name="base (live traffic)")).to_be_visible()


# --- slow networks --------------------------------------------------------------------


def test_the_first_piece_may_take_three_seconds(odd: PageServer, visit: Visit) -> None:
    text = "At last: é, 漢, 👍🏽."
    whole_body = start() + event("piece", {"text": text}) + end()
    odd.replies.append(stream((3, whole_body)))
    exchange = visit.ask("Take your time.")
    expect(exchange.get_by_text("Waiting for the answer")).to_be_visible()
    expect(visit.page.get_by_role("button", name="Stop")).to_be_visible()
    expect(visit.question).to_be_focused()
    done(exchange)
    assert text_of(exchange) == text
    expect(exchange.get_by_text("Waiting for the answer")).to_be_hidden()


@pytest.mark.parametrize("size", [1, 3, 5, 10_000])
def test_characters_and_events_may_be_cut_anywhere(
    odd: PageServer, visit: Visit, size: int
) -> None:
    text = 'é漢👍🏽 "quoted" \\ line\r\nend [DONE] event: end data: {"text": 1} \u2028.'
    body = b": a comment\n\n" + start() + b"event: unknown\ndata: {}\n\n"
    body += event("piece", {"text": text}) + event("piece", {"text": text}) + end()
    for line_end in (b"\n", b"\r\n", b"\r"):
        sent = body.replace(b"\n", line_end)
        pieces = [sent[cut : cut + size] for cut in range(0, len(sent), size)]
        # A pause now and then, so that the browser reads some chunks alone.
        odd.replies.append(
            stream(
                *[(0.002 * (place % 7 == 0), one) for place, one in enumerate(pieces)]
            )
        )
        exchange = visit.ask_to_the_end("In pieces?")
        assert text_of(exchange) == text + text, line_end


def test_a_narrow_line_still_gets_the_answer(site: Site, visitor: Visitor) -> None:
    visit = visitor(site).open()
    visit.context.new_cdp_session(visit.page).send(
        "Network.emulateNetworkConditions",
        {
            "offline": False,
            "latency": 400,
            "downloadThroughput": 4000,
            "uploadThroughput": 4000,
        },
    )
    exchange = visit.ask_to_the_end("Slow?")
    assert text_of(exchange)
    expect(exchange.locator(".problem")).to_be_hidden()


def test_after_thirty_seconds_the_page_gives_up(
    odd: PageServer, visitor: Visitor
) -> None:
    visit = visitor(odd)
    visit.page.clock.install()
    visit.open()
    odd.replies.append(stream(*BEGUN, *[(0.3, b": still there\n\n")] * 20, end()))
    exchange = visit.ask("For ever?")
    expect(exchange.get_by_text("The beginning")).to_be_visible()
    visit.page.clock.fast_forward(29_000)
    expect(visit.page.get_by_role("button", name="Stop")).to_be_visible()
    visit.page.clock.fast_forward(1_500)
    done(exchange)
    expect(exchange.locator(".what")).to_have_text(
        "There was no complete answer within 30 seconds."
    )
    assert odd.asked()[0].left.wait(5)


def test_stop_ends_the_request_and_keeps_what_came(
    odd: PageServer, visit: Visit
) -> None:
    visit.choose("Side by side")
    slow = [(0.1, event("piece", {"text": "and on "}))] * 100
    odd.replies += [stream(start("base"), *slow), stream(start("tuned"), *slow)]
    exchange = visit.ask("Tell me all.")
    expect(exchange.get_by_text("and on").nth(1)).to_be_visible()
    visit.page.get_by_role("button", name="Stop").click()
    done(exchange)
    expect(exchange.locator(".what")).to_have_text(["Stopped.", "Stopped."])
    expect(exchange.locator(".text").first).to_contain_text("and on")
    for request in odd.asked():
        assert request.left.wait(5)
    expect(visit.page.get_by_role("button", name="Stop")).to_be_hidden()
    expect(visit.question).to_be_focused()
    visit.choose("Live traffic")
    visit.ask_to_the_end("And again?")


def test_the_focus_is_not_lost_when_stop_goes(odd: PageServer, visit: Visit) -> None:
    odd.replies.append(stream(*BEGUN, (0.7, end())))
    exchange = visit.ask("Soon?")
    expect(exchange.get_by_text("The beginning")).to_be_visible()
    button = visit.page.get_by_role("button", name="Stop")
    button.focus()
    done(exchange)
    expect(exchange.locator(".problem")).to_be_hidden()
    expect(visit.question).to_be_focused()
    # In Safari a click does not give a button the focus.
    odd.replies.append(stream(*BEGUN, (0.7, end())))
    exchange = visit.ask("And now?")
    expect(exchange.get_by_text("The beginning")).to_be_visible()
    visit.question.blur()
    button.evaluate("(element) => element.click()")
    done(exchange)
    expect(visit.question).to_be_focused()


def test_nothing_is_sent_twice(odd: PageServer, visit: Visit) -> None:
    odd.replies += [problem(502, "internal"), stream((1.2, start() + end()))]
    failed = visit.ask_to_the_end("Failing?")
    again = failed.get_by_role("button", name="Ask again").element_handle()
    visit.question.fill("Once?")
    for _ in range(3):
        visit.question.press("Enter")
    button = visit.page.get_by_role("button", name="Ask", exact=True)
    button.click(click_count=2, force=True)
    visit.question.fill("Impatient?")
    visit.question.press("Enter")
    message = visit.page.locator("#question-message")
    expect(message).to_contain_text("An answer is still on its way.")
    expect(visit.question).to_have_value("Impatient?")
    again.click()
    expect(visit.exchanges).to_have_count(2)
    done(visit.exchanges.first)
    assert [request.body["question"] for request in odd.asked()] == [
        "Failing?",
        "Once?",
    ]
    odd.replies_to["/api/feedback"] = [Reply(200, {}, [(2, b"{}")])]
    helpful = visit.exchanges.first.get_by_role("button", name="Helpful", exact=True)
    helpful.dblclick()
    expect(visit.exchanges.first.locator(".note")).to_contain_text("not stored")
    assert len(odd.asked("/api/feedback")) == 1


def test_who_leaves_the_page_ends_the_request(
    odd: PageServer, visitor: Visitor
) -> None:
    visit = visitor(odd).open()
    odd.replies.append(stream(*BEGUN, *[(0.1, b": on\n\n")] * 100))
    expect(visit.ask("Wait?").get_by_text("The beginning")).to_be_visible()
    visit.page.goto(f"{odd.url}/style.css")
    assert odd.asked()[0].left.wait(5)


# --- the session's history ------------------------------------------------------------


def test_the_history_is_newest_first_and_can_be_cleared(
    site: Site, visitor: Visitor
) -> None:
    visit = visitor(site).open()
    for text in ("First?", "Second?", "Third?"):
        visit.ask_to_the_end(text)
    questions = visit.exchanges.locator(".question")
    expect(questions).to_have_text(["Third?", "Second?", "First?"])
    expect(visit.exchanges.first).to_have_accessible_name("Question 3")
    assert "First?" not in visit.page.evaluate("JSON.stringify({...sessionStorage})")
    visit.page.get_by_role("button", name="Clear").click()
    expect(visit.exchanges).to_have_count(0)
    expect(visit.page.get_by_role("heading", name="This session")).to_be_hidden()
    assert "First?" not in visit.page.content()
    expect(visit.question).to_be_focused()


def test_a_reload_forgets_the_history(site: Site, visitor: Visitor) -> None:
    visit = visitor(site).open()
    visit.ask_to_the_end("Remember me?")
    visit.page.reload()
    expect(visit.question).to_have_value("")
    assert "Remember me?" not in visit.page.content()


def test_clearing_leaves_the_answer_that_is_on_its_way(
    odd: PageServer, visit: Visit
) -> None:
    visit.ask_to_the_end("Old?")
    odd.replies.append(stream(*BEGUN, (0.7, end())))
    exchange = visit.ask("New?")
    expect(exchange.get_by_text("The beginning")).to_be_visible()
    visit.page.get_by_role("button", name="Clear").click()
    expect(visit.exchanges).to_have_count(1)
    done(visit.exchanges.first)
    expect(visit.exchanges.first.locator(".question")).to_have_text("New?")


# --- for everybody --------------------------------------------------------------------


def focused(page: Page) -> str:
    """Name what has the focus, which must be seen to have it."""
    name, seen = page.evaluate(
        """() => {
          const field = document.activeElement;
          const label = field.labels?.[0];
          const radio = field.type === "radio";
          const style = getComputedStyle(radio ? label : field);
          const seen = style.outlineStyle !== "none" && parseFloat(style.outlineWidth);
          return [(label ?? field).innerText.trim().split("\\n")[0], seen];
        }"""
    )
    assert seen >= 2, f"the focus on {name!r} cannot be seen"
    return name


def tab_to(page: Page, name: str, key: str = "Tab") -> None:
    """Press Tab until something of this name has the focus."""
    passed = []
    for _ in range(30):
        page.keyboard.press(key)
        passed.append(focused(page))
        if passed[-1] == name:
            return
    raise AssertionError(f"Tab never came to {name!r} but to {passed}")


def test_everything_works_by_keyboard(odd: PageServer, visitor: Visitor) -> None:
    visit = visitor(odd).open(key=False)
    page, keyboard = visit.page, visit.page.keyboard
    expect(visit.key_field).to_be_focused()
    keyboard.type(odd.key)
    keyboard.press("Enter")
    expect(visit.question).to_be_focused()
    assert focused(page) == "Your question"
    tab_to(page, "Live traffic")
    keyboard.press("ArrowDown")
    assert focused(page) == "base"
    keyboard.press("ArrowLeft")
    keyboard.press("ArrowLeft")
    assert focused(page) == "Side by side"
    tab_to(page, "Your question", "Shift+Tab")
    keyboard.type("By keyboard?")
    tab_to(page, "Ask")
    keyboard.press("Space")
    done(visit.exchanges.first)
    assert focused(page) == "Ask"
    tab_to(page, "Helpful")
    keyboard.press("Enter")
    expect(visit.exchanges.first.locator(".note").first).to_contain_text("Stored")
    assert focused(page) == "Helpful"
    tab_to(page, "Why? (optional)")
    keyboard.type("Clear")
    tab_to(page, "Send comment")
    keyboard.press("Enter")
    expect(visit.exchanges.first.locator(".note").first).to_contain_text("comment")
    assert focused(page) == "Send comment"
    slow = [(0.1, event("piece", {"text": "and on "}))] * 100
    odd.replies += [stream(start(), *slow), stream(start(), *slow)]
    tab_to(page, "Your question", "Shift+Tab")
    keyboard.type("Stop?")
    keyboard.press("Enter")
    tab_to(page, "Stop")
    keyboard.press("Enter")
    expect(visit.question).to_be_focused()
    done(visit.exchanges.first)
    tab_to(page, "Clear")
    keyboard.press("Enter")
    expect(visit.exchanges).to_have_count(0)
    assert focused(page) == "Your question"
    tab_to(page, "Forget key")
    keyboard.press("Enter")
    expect(visit.key_field).to_be_focused()
    assert [body["comment"] for body in odd.feedback.values()] == ["Clear"]


def violations(page: Page) -> list[str]:
    """Name what axe-core finds, with the places."""
    found = Axe().run(page).response["violations"]
    return [
        f"{rule['impact']}: {rule['id']} at {node['target']}"
        for rule in found
        for node in rule["nodes"]
    ]


@pytest.mark.parametrize(
    ("scheme", "width"),
    [
        ("light", 1280),
        ("dark", 390),
        pytest.param("light", 390, marks=pytest.mark.slow),
        pytest.param("dark", 1280, marks=pytest.mark.slow),
    ],
)
def test_axe_finds_nothing(
    odd: PageServer, visitor: Visitor, scheme: str, width: int
) -> None:
    size = {"width": width, "height": 900}
    visit = visitor(odd, color_scheme=scheme, viewport=size).open(key=False)
    expect(visit.key_field).to_be_visible()
    assert violations(visit.page) == []
    visit.enter_key(WRONG_KEY)
    expect(visit.page.locator("#key-message")).not_to_be_empty()
    assert violations(visit.page) == []
    visit.enter_key(odd.key)
    expect(visit.key_field).to_be_hidden()
    odd.replies.append(problem(422, "invalid", {"field": "question", "problem": "no"}))
    visit.ask_to_the_end("Refused?")
    odd.replies.append(problem(429, "throttled", retry_after="60"))
    visit.ask_to_the_end("Throttled?")
    visit.choose("Side by side")
    exchange = visit.ask_to_the_end("Both?")
    exchange.get_by_role("button", name="Helpful", exact=True).first.click()
    exchange.get_by_label("Why?").first.fill("x" * 1001)
    visit.choose("Live traffic")
    odd.replies.append(stream(*BEGUN, *[(0.1, b": on\n\n")] * 200))
    expect(visit.ask("Now?").get_by_text("The beginning")).to_be_visible()
    visit.question.fill("x" * 2001)
    visit.question.press("Enter")
    expect(visit.page.locator("#question-message")).to_be_visible()
    assert violations(visit.page) == []


@pytest.mark.parametrize("width", [390, 320])
def test_a_phone_needs_no_sideways_scrolling(
    odd: PageServer, visitor: Visitor, width: int
) -> None:
    size = {"width": width, "height": 800}
    visit = visitor(odd, viewport=size, has_touch=True, is_mobile=True).open(key=False)
    page = visit.page

    def overflow() -> list[str]:
        return page.evaluate(
            """() => [...document.querySelectorAll("body *:not(.spoken, .spoken *)")]
              .filter((part) => part.getBoundingClientRect().right > innerWidth + 0.5)
              .map((part) => part.outerHTML.slice(0, 80))
              .concat(document.documentElement.scrollWidth > innerWidth ? ["all"] : [])
            """
        )

    assert page.evaluate("innerWidth") == width
    assert overflow() == []
    visit.enter_key(odd.key)
    visit.choose("Side by side")
    long = "w" * 500
    odd.replies += [whole(long, "base", long), whole(long, "tuned", "a", "b", long)]
    exchange = visit.ask_to_the_end(long)
    exchange.get_by_role("button", name="Not helpful").first.tap()
    expect(exchange.get_by_label("Why?").first).to_be_visible()
    odd.replies.append(problem(422, "invalid", {"field": long, "problem": long}))
    visit.choose("Live traffic")
    visit.ask_to_the_end("Refused?")
    assert overflow() == []
    # Fingers need room: 44 CSS pixels (WCAG 2.5.5).
    for button in page.get_by_role("button").all():
        box = button.bounding_box()
        assert box is None or box["height"] >= 44


def test_who_wants_no_motion_sees_none(odd: PageServer, visitor: Visitor) -> None:
    for wish, names in (("reduce", {"none"}), ("no-preference", {"dots"})):
        visit = visitor(odd, reduced_motion=wish).open()
        odd.replies.append(stream((0.5, start() + end())))
        visit.ask("Moving?")
        moving = "[...document.querySelectorAll('main .dots i')]"
        names_found = f"{moving}.map((dot) => getComputedStyle(dot).animationName)"
        assert set(visit.page.evaluate(names_found)) == names
        done(visit.exchanges.first)


def test_the_policy_stops_inline_code(site: Site, visitor: Visitor) -> None:
    """What the tests above rely on: the policy is there and works."""
    visit = visitor(site).open(key=False)
    visit.page.evaluate(
        """() => {
          const script = document.createElement("script");
          script.textContent = "window.ran = 1";
          document.body.append(script);
        }"""
    )
    deadline = time.monotonic() + 5
    while not visit.notes and time.monotonic() < deadline:
        visit.page.wait_for_timeout(20)
    refused = [note for note in visit.notes if "Security Policy" in note]
    assert refused and visit.page.evaluate("window.ran") is None
    visit.notes = [note for note in visit.notes if note not in refused]
