// The page of the course's web app: asks the API and shows what it answers.
// What a model or a person wrote goes into the page as text, never as HTML.

const SECONDS = 30; // for a whole answer; the service itself gives up earlier
const EXCHANGES_KEPT = 50;
const CHARACTERS_OF_AN_EVENT = 1_000_000; // beyond this it is no stream of ours
const MILLISECONDS_SPOKEN = 20_000; // then a screen reader has taken the line over
const KEY_NAME = "course-web-key";

// For each code of the API, and for what only a browser sees: what happened, what to do,
// and whether asking again can help.
const PROBLEMS = {
  forbidden: [
    "The service did not accept the access key.",
    "Enter the key that you were given, then ask again.",
    true,
  ],
  no_key: [
    "The service asks for an access key.",
    "Enter the key that you were given, then ask again.",
    true,
  ],
  throttled: [
    "Too many questions in a short time.",
    "The service limits how many it answers for one key. Wait a little.",
    true,
  ],
  too_large: ["The question is too long for the service.", "Shorten it and ask again."],
  invalid: ["The service cannot work with this question.", "Change it and ask again."],
  bad_json: [
    "The service could not read the question.",
    "Remove unusual characters and ask again.",
  ],
  unknown_version: [
    "This version is not offered any more.",
    "Choose another one above and ask again.",
  ],
  unknown_request: [
    "The service does not know this answer any more.",
    "Ask the question again and rate the new answer.",
  ],
  unsupported_media_type: [
    "The page and the service do not fit together.",
    "Reload the page. If that does not help, tell whoever runs the service.",
  ],
  model_error: [
    "The model could not answer.",
    "Ask again. If it keeps failing, word the question differently.",
    true,
  ],
  unavailable: [
    "The model is not available at the moment.",
    "Nothing is wrong with your question. Ask again in a while.",
    true,
  ],
  timeout: [
    "The model took too long.",
    "Ask again, or ask something shorter.",
    true,
  ],
  internal: [
    "Something failed in the service.",
    "Ask again. If it keeps failing, tell whoever runs the service.",
    true,
  ],
  offline: [
    "The service cannot be reached.",
    "Check your connection, then ask again.",
    true,
  ],
  slow: [
    `There was no complete answer within ${SECONDS} seconds.`,
    "The connection or the service is slow. Ask again later.",
    true,
  ],
  broken: ["The answer broke off.", "What arrived is shown. Ask again for all of it.", true],
  garbled: [
    "The reply was not one of this service.",
    "Something between you and the service may have changed it. Ask again later.",
    true,
  ],
  stopped: ["Stopped.", "The answer is incomplete.", true],
};
PROBLEMS.not_found = PROBLEMS.method_not_allowed = PROBLEMS.unsupported_media_type;

// What to do where a rating was refused; all else passes with time.
const ADVICE_ON_RATING = {
  forbidden: "The service did not accept the access key. Enter it, then rate again.",
  no_key: "The service asks for an access key. Enter it, then rate again.",
  throttled: "That was too much in a short time. Wait a little, then rate again.",
  unknown_request: PROBLEMS.unknown_request.join(" "),
  too_large: "The comment is too long. Shorten it.",
  invalid: "The service cannot work with this comment. Change it.",
  bad_json: "The service could not read the comment. Remove unusual characters.",
  offline: "The service cannot be reached. Check your connection, then rate again.",
};

const CODES = {
  400: "bad_json",
  403: "forbidden",
  404: "not_found",
  405: "method_not_allowed",
  413: "too_large",
  415: "unsupported_media_type",
  422: "invalid",
  429: "throttled",
  502: "model_error",
  503: "unavailable",
  504: "timeout",
};

const one = (selector, root = document) => root.querySelector(selector);
const number = (value) => value.toLocaleString("en");
const copyOf = (template) => one(template).content.firstElementChild.cloneNode(true);
const question = one("#question");

// --- the key --------------------------------------------------------------------------

let key = "";
try {
  key = sessionStorage.getItem(KEY_NAME) ?? "";
} catch {
  // Storage is switched off: the key lives as long as the page.
}

function keepKey(value) {
  key = value;
  try {
    if (value) sessionStorage.setItem(KEY_NAME, value);
    else sessionStorage.removeItem(KEY_NAME);
  } catch {
    // As above.
  }
  one("#key-kept").hidden = !value;
}

function askForKey(message) {
  one("#key-section").hidden = false;
  one("#key-message").textContent = message;
  one("#key-field").setAttribute("aria-invalid", String(Boolean(key)));
  one("#key-field").focus();
}

one("#key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const field = one("#key-field");
  const given = field.value.trim();
  // A header takes no other characters, and fetch would name the whole value.
  if (!/^[\x21-\x7e]{1,256}$/.test(given)) {
    const what = given ? "This cannot be a key" : "The field is empty";
    one("#key-message").textContent =
      `${what}. A key has letters, digits and signs of plain ASCII, without spaces.`;
    field.setAttribute("aria-invalid", "true");
    field.focus();
    return;
  }
  field.value = ""; // the field must not hold it where the page can be read
  field.setAttribute("aria-invalid", "false");
  one("#key-message").textContent = "";
  keepKey(given);
  if (await loadVersions()) {
    one("#key-section").hidden = true;
    announce("The key is kept for this tab.");
    question.focus();
  }
});

one("#forget").addEventListener("click", () => {
  keepKey("");
  announce("The key is forgotten.");
  askForKey("");
});

// --- the API --------------------------------------------------------------------------

class Problem extends Error {
  constructor(code, { fields = [], requestId = "", retryAfter = null } = {}) {
    super(code);
    Object.assign(this, { code, fields, requestId, retryAfter });
  }
}

/** The objects of a list that have a text under a name; a reply may hold anything. */
function listOf(list, name) {
  if (!Array.isArray(list)) return [];
  return list.filter((item) => typeof item?.[name] === "string");
}

function problemFrom(error, status, retryAfter) {
  const known = typeof error?.code === "string" && Object.hasOwn(PROBLEMS, error.code);
  const code = known ? error.code : (CODES[status] ?? "internal");
  return new Problem(code === "forbidden" && !key ? "no_key" : code, {
    fields: listOf(error?.fields, "problem").map(
      ({ field, problem }) => `${field}: ${problem}`,
    ),
    requestId: typeof error?.request_id === "string" ? error.request_id : "",
    retryAfter,
  });
}

/** Seconds of a Retry-After, which is a number or a date; null where there is none. */
function secondsOf(header) {
  if (!header) return null;
  const seconds = /^\d+$/.test(header)
    ? Number(header)
    : Math.ceil((Date.parse(header) - Date.now()) / 1000);
  return seconds > 0 ? Math.min(seconds, 3600) : null;
}

/** Send a request; a controller's reason to abort becomes the failure. */
async function call(path, signal, body) {
  const headers = key ? { "x-api-key": key } : {};
  if (body) headers["content-type"] = "application/json";
  try {
    const response = await fetch(`/api/${path}`, {
      method: body ? "POST" : "GET",
      headers,
      body: body && JSON.stringify(body),
      signal,
      cache: "no-store",
      credentials: "omit",
      redirect: "error", // the key must not follow to another host
    });
    if (response.ok) return response;
    const error = await response.json().then((reply) => reply?.error, () => null);
    const wait = secondsOf(response.headers.get("retry-after"));
    throw problemFrom(error, response.status, wait);
  } catch (failure) {
    throw asProblem(failure, signal, "offline");
  }
}

function asProblem(failure, signal, otherwise) {
  if (signal.aborted) return signal.reason;
  return failure instanceof Problem ? failure : new Problem(otherwise);
}

/** Run work(signal), which is aborted after SECONDS. */
async function inTime(work, controller = new AbortController()) {
  const late = () => controller.abort(new Problem("slow"));
  const timer = setTimeout(late, SECONDS * 1000);
  try {
    return await work(controller.signal);
  } finally {
    clearTimeout(timer);
  }
}

/** The reply's JSON. */
async function replyOf(response, signal) {
  try {
    return await response.json();
  } catch {
    throw signal.aborted ? signal.reason : new Problem("garbled");
  }
}

/**
 * Server-sent events of a stream, as [name, data], by the HTML standard's rules.
 * Chunks may end anywhere: within a character, a line end, a line or an event.
 */
async function* eventsOf(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let name = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      rest += decoder.decode(value, { stream: !done });
      // A \r at the end may be the first half of \r\n.
      const half = !done && rest.endsWith("\r") ? "\r" : "";
      const lines = rest.slice(0, rest.length - half.length).split(/\r\n|\r|\n/);
      rest = lines.pop() + half;
      for (const line of lines) {
        const [, field, text] = /^([^:]*)(?:: ?(.*))?$/s.exec(line);
        if (field === "event") name = text ?? "";
        else if (field === "data") data.push(text ?? "");
        else if (line === "") {
          if (data.length) yield [name, data.join("\n")];
          name = "";
          data = [];
        }
      }
      if (done) return;
      if (rest.length > CHARACTERS_OF_AN_EVENT) throw new Problem("garbled");
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Ask once; hands each event to take(name, data) until the answer is complete. */
async function generate(body, signal, take) {
  const response = await call("generate", signal, { ...body, stream: true });
  const type = response.headers.get("content-type") ?? "";
  if (type.startsWith("application/json")) {
    // A service that cannot stream sends the whole answer.
    const reply = await replyOf(response, signal);
    if (typeof reply?.answer !== "string") throw new Problem("garbled");
    take("start", reply);
    take("piece", { text: reply.answer });
    take("end", reply);
    return;
  }
  if (!type.startsWith("text/event-stream")) throw new Problem("garbled");
  try {
    for await (const [name, text] of eventsOf(response.body)) {
      let data;
      try {
        data = JSON.parse(text);
      } catch {
        throw new Problem("garbled");
      }
      if (name === "error") throw problemFrom(data?.error, 502, null);
      take(name, data ?? {});
      if (name === "end") return;
    }
  } catch (failure) {
    throw asProblem(failure, signal, "broken");
  }
  throw new Problem("broken");
}

// --- what is said and shown -----------------------------------------------------------

/** Let screen readers say a line once; earlier lines are not repeated. */
function announce(text) {
  const line = document.createElement("p");
  line.textContent = text;
  one("#announcements").append(line);
  setTimeout(() => line.remove(), MILLISECONDS_SPOKEN);
}

function isAboutTheKey(problem) {
  return problem.code === "forbidden" || problem.code === "no_key";
}

function wordsOf(problem) {
  const [what, advice, again = false] = PROBLEMS[problem.code];
  return { what, advice, again };
}

/** Show the seconds to wait, without saying each of them; then call ready(). */
function countDown(line, seconds, ready) {
  const until = Date.now() + seconds * 1000;
  const tick = () => {
    const left = Math.ceil((until - Date.now()) / 1000);
    if (left <= 0) {
      line.textContent = "You can try again now.";
      ready();
      return;
    }
    line.textContent = `You can try again in ${left} s.`;
    if (line.isConnected) setTimeout(tick, 250);
  };
  line.hidden = false;
  tick();
}

/** Characters as the service counts them. */
function charactersOf(text) {
  return [...text.trim()].length;
}

/**
 * Count a field's characters into a line, and keep far too long texts out of it, in
 * words: laying out megabytes would freeze the page. The browser keeps to maxLength as
 * well, but would cut a text without a word.
 */
function watchLength(field, line, complain) {
  const limit = Number(field.dataset.limit);
  let kept = field.value;
  const refuse = (text) => {
    if (text.length <= field.maxLength) return false;
    complain(
      `This text has ${number(text.length)} characters, and ${number(limit)} are ` +
        "possible. It was not taken over. Shorten it first.",
    );
    return true;
  };
  const count = () => {
    const characters = charactersOf(field.value);
    const over = characters - limit;
    line.textContent =
      `${number(characters)} of ${number(limit)} characters` +
      (over > 0 ? `: ${number(over)} too many` : "");
    line.classList.toggle("over", over > 0);
    field.setAttribute("aria-invalid", String(over > 0));
  };
  for (const [kind, source] of [["paste", "clipboardData"], ["drop", "dataTransfer"]]) {
    field.addEventListener(kind, (event) => {
      if (refuse(event[source]?.getData("text") ?? "")) event.preventDefault();
    });
  }
  field.addEventListener("input", () => {
    if (refuse(field.value)) field.value = kept;
    else complain("");
    kept = field.value;
    count();
  });
  count();
  return () => {
    kept = field.value;
    count();
  };
}

const complain = (text) => {
  one("#question-message").textContent = text;
};
const recount = watchLength(question, one("#question-count"), complain);

function setQuestion(text) {
  question.value = text;
  recount();
}

// --- versions -------------------------------------------------------------------------

let versionsKnown = false;
let choices = [{ label: "Live traffic", versions: [null], description: "" }];

function showChoices() {
  const chosen = chosenChoice()?.label;
  one("#choices").replaceChildren(
    ...choices.map((choice, place) => {
      const label = copyOf("#choice-template");
      const button = one("input", label);
      button.value = String(place);
      button.checked = choice.label === chosen || (!chosen && place === 0);
      one("span", label).textContent = choice.label;
      return label;
    }),
  );
  if (!chosenChoice()) one("#choices input").checked = true;
  describeChoice();
}

function chosenChoice() {
  const button = one("#choices input:checked");
  return button && choices[Number(button.value)];
}

function describeChoice() {
  one("#choice-description").textContent = chosenChoice().description;
}

/** Ask the service for its versions; false where it wants another key. */
async function loadVersions() {
  let reply;
  try {
    reply = await inTime(async (signal) =>
      replyOf(await call("versions", signal), signal),
    );
  } catch (problem) {
    versionsKnown = false;
    if (!(problem instanceof Problem)) throw problem;
    const { what } = wordsOf(problem);
    if (isAboutTheKey(problem)) {
      askForKey(what);
      return false;
    }
    complain(`${what} So the list of versions is missing.`);
    return true;
  }
  const versions = listOf(reply?.versions, "name");
  const live = Array.isArray(reply?.live) ? reply.live : [];
  const names = versions.map(({ name }) => name);
  const wanted = ["base", "tuned"];
  const pair = wanted.every((name) => names.includes(name)) ? wanted : names.slice(0, 2);
  choices = [
    {
      label: "Live traffic",
      versions: [null],
      description: live.length
        ? `Answered as for everybody: by ${live.join(" or ")}.`
        : "Answered as for everybody.",
    },
    ...versions.map(({ name, description }) => ({
      label: name,
      versions: [name],
      description: description ?? "",
    })),
  ];
  if (pair.length === 2) {
    choices.push({
      label: "Side by side",
      versions: pair,
      description: `${pair.join(" and ")} get the same question at the same time.`,
    });
  }
  versionsKnown = true;
  showChoices();
  return true;
}

one("#choices").addEventListener("change", describeChoice);

// --- questions and answers ------------------------------------------------------------

// Controllers of the answers that are on their way; the browser ends them itself when
// the page is left.
let running = null;
let asked = 0;

function setRunning(controllers) {
  running = controllers;
  one("#ask").setAttribute("aria-disabled", String(Boolean(controllers)));
  const stop = one("#stop");
  if (!controllers && document.activeElement === stop) question.focus();
  stop.hidden = !controllers;
}

/** Is an answer on its way? Then say so: one question at a time. */
function isBusy() {
  if (running) complain("An answer is still on its way. Wait for it, or stop it first.");
  return Boolean(running);
}

/** One answer in the page: fills itself, and knows how it ended. */
class AnswerCard {
  constructor(version, text, id) {
    this.version = version;
    this.question = text;
    this.element = copyOf("#answer-template");
    this.title = this.find("h4");
    this.title.id = id;
    this.element.setAttribute("aria-labelledby", id);
    this.title.textContent = version ?? "Live traffic";
    this.answer = "";
    this.spoken = "";
    this.requestId = "";
    this.wanted = this.stored = { thumb: "", comment: "" };
  }

  find(selector) {
    return one(selector, this.element);
  }

  async run(controller) {
    const body = { question: this.question, version: this.version };
    try {
      await inTime((signal) => generate(body, signal, this.take.bind(this)), controller);
      this.spoken = `${this.title.textContent} answered: ${this.answer}`;
      this.offerFeedback();
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      this.fail(problem);
    } finally {
      this.find(".waiting").hidden = true;
      this.element.setAttribute("aria-busy", "false");
    }
  }

  take(name, data) {
    if (name === "start") {
      this.requestId = String(data.request_id ?? "");
      if (data.version) {
        const live = this.version === null ? " (live traffic)" : "";
        this.title.textContent = `${data.version}${live}`;
      }
      this.showSources(listOf(data.sources, "id"));
    } else if (name === "piece") {
      const text = String(data.text ?? "");
      if (!text) return;
      this.find(".waiting").hidden = true;
      this.answer += text;
      this.find(".text").append(text);
    } else if (name === "end") {
      this.end(data);
    }
  }

  showSources(sources) {
    const items = sources.map(({ id }) => {
      const item = document.createElement("li");
      item.textContent = id;
      return item;
    });
    this.find(".sources ul").replaceChildren(...items);
    this.sourced = items.length > 0;
  }

  end(data) {
    this.find(".text").normalize();
    const facts = [];
    if (data.finish_reason === "length") facts.push("cut off at the length limit");
    if (Number.isFinite(data.tokens?.completion)) {
      facts.push(`${number(data.tokens.completion)} tokens`);
    }
    if (Number.isFinite(data.latency_ms)) {
      facts.push(`${(data.latency_ms / 1000).toFixed(1)} s`);
    }
    this.find(".facts").textContent = facts.join(" · ");
    this.find(".facts").hidden = !facts.length;
    this.find(".sources").hidden = !this.sourced;
    if (!this.answer.trim()) {
      this.answer = "(The model gave an empty answer.)";
      this.find(".text").textContent = this.answer;
    }
  }

  fail(problem) {
    const { what, advice, again } = wordsOf(problem);
    const box = this.find(".problem");
    this.spoken = `${what} ${advice}`;
    box.hidden = false;
    box.classList.toggle("quiet", problem.code === "stopped");
    one(".what", box).textContent = what;
    one(".advice", box).textContent = advice;
    one(".fields", box).hidden = !problem.fields.length;
    for (const text of problem.fields) {
      const item = document.createElement("li");
      item.textContent = text;
      one(".fields", box).append(item);
    }
    const id = problem.requestId || this.requestId;
    one(".request", box).hidden = !id || problem.code === "stopped";
    one(".request", box).textContent = `Request ${id}`;
    const button = one(".again", box);
    button.hidden = !again;
    button.addEventListener("click", () => {
      if (button.getAttribute("aria-disabled") === "true") return;
      ask(this.question, [this.version]);
      question.focus();
    });
    if (problem.retryAfter !== null) {
      button.setAttribute("aria-disabled", "true");
      countDown(one(".countdown", box), problem.retryAfter, () => {
        button.setAttribute("aria-disabled", "false");
        announce("You can ask again now.");
      });
    }
    this.problem = problem;
  }

  offerFeedback() {
    this.find(".actions").hidden = false;
    this.find(".copy").addEventListener("click", () => this.copy());
    if (!this.requestId) {
      this.find(".up").hidden = this.find(".down").hidden = true;
      return;
    }
    const form = this.find(".comment");
    const comment = one("textarea", form);
    watchLength(comment, one(".count", form), (text) => this.note(text, true));
    for (const thumb of ["up", "down"]) {
      this.find(`.${thumb}`).addEventListener("click", () => this.rate({ thumb }));
    }
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const text = comment.value.trim();
      const limit = Number(comment.dataset.limit);
      if (charactersOf(text) > limit) {
        this.say("The comment is too long. Shorten it first.", true);
        comment.focus();
      } else if (text) {
        this.rate({ comment: text });
      } else {
        this.say("The comment is empty. Your rating is stored without one.");
      }
    });
  }

  note(text, bad = false) {
    this.find(".note").textContent = text;
    this.find(".note").classList.toggle("bad", bad);
  }

  say(text, bad = false) {
    this.note(text, bad);
    announce(text);
  }

  /** Send a rating or a comment; what is changed meanwhile is sent afterwards. */
  async rate(change) {
    // The service keeps the last rating whole, so what was sent before goes along.
    this.wanted = { ...this.wanted, ...change };
    if (this.rating) return;
    this.rating = true;
    let sent = {};
    try {
      while (sent.thumb !== this.wanted.thumb || sent.comment !== this.wanted.comment) {
        sent = this.wanted;
        await this.sendRating(sent);
      }
    } finally {
      this.wanted = this.stored;
      this.rating = false;
    }
  }

  async sendRating({ thumb, comment }) {
    this.note("Sending …");
    const body = { request_id: this.requestId, thumb, comment: wellFormed(comment) };
    try {
      const reply = await inTime(async (signal) =>
        replyOf(await call("feedback", signal, body), signal),
      );
      if (reply?.stored !== true) throw new Problem("garbled");
      this.stored = { thumb, comment };
      for (const name of ["up", "down"]) {
        const pressed = String(name === thumb);
        this.find(`.${name}`).setAttribute("aria-pressed", pressed);
      }
      this.find(".comment").hidden = false;
      const words = thumb === "up" ? "helpful" : "not helpful";
      this.say(`Stored: ${words}${comment ? ", with your comment" : ""}. Thank you.`);
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      const advice = ADVICE_ON_RATING[problem.code] ?? "Try again in a while.";
      this.say(`Your rating is not stored. ${advice}`, true);
      if (isAboutTheKey(problem)) askForKey(wordsOf(problem).what);
      if (problem.retryAfter !== null) {
        const line = document.createElement("span");
        this.find(".note").append(" ", line);
        countDown(line, problem.retryAfter, () => {});
      }
    }
  }

  async copy() {
    try {
      await navigator.clipboard.writeText(this.answer);
      this.say("Copied.");
    } catch {
      // No permission, or a page without TLS: the reader can still copy by hand.
      getSelection().selectAllChildren(this.find(".text"));
      this.say("The answer is selected. Copy it with your keyboard or menu.");
    }
  }
}

/** Half a surrogate pair is no text: the service would refuse it. */
function wellFormed(text) {
  return text.replace(/\p{Surrogate}/gu, "\ufffd");
}

/** Ask each of the versions the same question, and say once what came of it. */
async function ask(given, versions) {
  if (isBusy()) return;
  const text = wellFormed(given);
  asked += 1;
  const exchange = copyOf("#exchange-template");
  one("h3", exchange).textContent = `Question ${asked}`;
  one("h3", exchange).id = `question-${asked}`;
  exchange.setAttribute("aria-labelledby", `question-${asked}`);
  one(".question", exchange).textContent = text;
  const cards = versions.map(
    (version, place) => new AnswerCard(version, text, `answer-${asked}-${place}`),
  );
  const columns = one(".columns", exchange);
  columns.classList.toggle("two", cards.length > 1);
  columns.append(...cards.map((card) => card.element));
  const list = one("#exchanges");
  list.prepend(exchange);
  while (list.children.length > EXCHANGES_KEPT) list.lastElementChild.remove();
  one("#history").hidden = false;
  complain("");
  announce("Asked. The answer is read out when it is complete.");

  const controllers = cards.map(() => new AbortController());
  setRunning(controllers);
  try {
    await Promise.all(cards.map((card, place) => card.run(controllers[place])));
  } finally {
    setRunning(null);
  }
  announce(cards.map((card) => card.spoken).join(" "));
  const problems = cards.map((card) => card.problem).filter(Boolean);
  const aboutTheKey = problems.find(isAboutTheKey);
  const unknown = problems.some((problem) => problem.code === "unknown_version");
  // What was not answered is put back to be changed, unless something new stands there.
  if (problems.length && !question.value.trim()) setQuestion(text);
  if (aboutTheKey) askForKey(wordsOf(aboutTheKey).what);
  else if (unknown || !(versionsKnown || problems.length)) loadVersions();
}

one("#ask-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = question.value.trim();
  const limit = Number(question.dataset.limit);
  const over = charactersOf(text) - limit;
  if (isBusy()) return;
  if (!text) {
    complain("The question is empty. Write one first.");
    question.focus();
  } else if (over > 0) {
    complain(
      `The question is ${number(over)} characters too long. Shorten it to ` +
        `${number(limit)} and ask again.`,
    );
    question.focus();
  } else {
    setQuestion("");
    ask(text, chosenChoice().versions);
  }
});

question.addEventListener("keydown", (event) => {
  // Enter that ends the input of a Chinese or Japanese word asks nothing. Safari sends
  // it after the word's end, with the code 229 of a key that an input method has taken.
  const composing = event.isComposing || event.keyCode === 229;
  if (event.key !== "Enter" || event.shiftKey || composing) return;
  event.preventDefault();
  if (!event.repeat) one("#ask-form").requestSubmit();
});

one("#stop").addEventListener("click", () => {
  for (const controller of running ?? []) controller.abort(new Problem("stopped"));
  question.focus();
});

one("#clear").addEventListener("click", () => {
  for (const exchange of [...one("#exchanges").children]) {
    if (!one('[aria-busy="true"]', exchange)) exchange.remove();
  }
  one("#announcements").replaceChildren();
  announce("The session's history is cleared.");
  one("#history").hidden = !one("#exchanges").children.length;
  question.focus();
});

keepKey(key);
showChoices();
loadVersions();
