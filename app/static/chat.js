// The chat page: one conversation at a time, its id in location.hash, so that a refresh, a bookmark or "back" shows it.
//
// Answers are read with EventSource, which reconnects by itself. Where it cannot go on, `fetch` reads the same stream:
// after a refusal, whose reason EventSource does not tell (a refused question has left nothing behind, so it is asked
// once more); after a token that has expired; and for an answer that was being written when the page was opened,
// because that takes a Last-Event-ID header, which EventSource lets no page set.

const $ = (id) => document.getElementById(id);
const [log, scroll, form, field, status] = ["log", "scroll", "ask", "prompt", "status"].map($);
const LOST = "The connection is lost. Trying again …";
const WAITING = "Still waiting for the first word. A model that has not been used yet is loaded first.";
const STOPPED = "Stopped: you ended the answer here.";
const STOPPED_EARLY = "Stopped before the answer began.";

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const conversation = () => decodeURIComponent(location.hash.slice(1));
const remember = (id) => history.replaceState(null, "", `#${encodeURIComponent(id)}`);

function say(text, problem = false) {
  keepingPlace(() => (status.textContent = text));
  status.classList.toggle("problem", problem);
}

function sentence(error) {
  const text = error instanceof TypeError ? "The service cannot be reached" : error.message;
  return /[.!?…]$/.test(text) ? text : `${text}.`;
}

// The service

const key = () => sessionStorage.getItem("parley-key");
let asking = null; // several calls that are refused together share one prompt

async function api(path, options = {}) {
  for (;;) {
    const used = key();
    const headers = { ...options.headers, ...(used && { Authorization: `Bearer ${used}` }) };
    const response = await fetch(path, { ...options, headers });
    if (response.ok) return response;
    const message = (await response.json().catch(() => null))?.error?.message;
    const problem = new Error(message ?? `The service answered ${response.status} ${response.statusText}`.trim());
    problem.status = response.status;
    if (response.status !== 401) throw problem;
    if (used === key()) await (asking ??= askKey(used ? problem : null).finally(() => (asking = null)));
  }
}

const json = async (path, options) => (await api(path, options)).json();

function askKey(problem) {
  const door = $("door");
  $("door-problem").textContent = problem ? sentence(problem) : "";
  $("key").value = "";
  door.returnValue = "";
  door.showModal();
  return new Promise((resolve, reject) => {
    door.onsubmit = () => {
      sessionStorage.setItem("parley-key", $("key").value.trim());
      $("forget").hidden = false;
      resolve();
      if (!$("model").textContent) showModel().catch(() => {}); // its first try may have been cancelled
    };
    door.onclose = () => reject(new Error("This service asks for an API key"));
  });
}

async function showModel() {
  for (;;) {
    const { model_name: name } = await json("chat");
    $("model").textContent = name ?? "starting …";
    if (name) return;
    await pause(2000);
  }
}

// Messages

const NAMES = { user: "You", system: "System", tool: "Tool" };

class Message {
  lastId = null; // of the stream's last event: what a later reader goes on from

  constructor(role, text = "", model = $("model").textContent) {
    this.element = document.createElement("article");
    this.element.className = role;
    const [who, body, note] = ["h2", "div", "div"].map((tag) => document.createElement(tag));
    who.className = "who";
    who.textContent = NAMES[role] ?? (model || "Answer");
    body.className = "text";
    note.className = "note";
    this.element.append(who, body, note);
    Object.assign(this, { body, noteElement: note, text });
    log.append(this.element);
    this.render();
  }

  set busy(on) {
    this.element.setAttribute("aria-busy", on); // also keeps screen readers from reading every piece
  }

  note(text) {
    keepingPlace(() => (this.noteElement.textContent = text));
  }

  append(text) {
    this.text += text;
    this.frame ??= requestAnimationFrame(() => this.render());
  }

  render() {
    this.frame = null;
    keepingPlace(() => renderBlocks(this.body, this.text));
  }

  end(status, reason) {
    this.busy = false;
    this.render();
    if (status === "cancelled" || reason === "cancelled") this.note(STOPPED);
    else if (status === "incomplete") this.note("Incomplete: the answer broke off here.");
    else if (reason === "length") this.note("Cut off: the longest answer allowed was reached.");
  }

  // One event of the stream; true when it was the last one.
  take({ type, data, lastEventId }) {
    this.lastId = lastEventId || this.lastId;
    if (type === "message") {
      if (!this.text) this.onbegin?.();
      clearTimeout(this.patience);
      say("");
      this.append(data);
      return false;
    }
    const facts = JSON.parse(data);
    if (type === "done") {
      remember(facts.conversation_id);
      this.end("completed", facts.finish_reason);
      return true;
    }
    this.end("incomplete");
    throw new Error(facts.error.message);
  }
}

// Fenced code becomes <pre>, all else <p>. Only what changed is touched: a selection survives the next piece.
function renderBlocks(body, text) {
  const blocks = text.split(/^[ \t]*```.*(?:\n|$)/m).map((each, nth) => [nth % 2 ? "pre" : "p", each.replace(/^\n+|\n+$/g, "")]);
  const shown = blocks.filter(([tag, each]) => each || tag === "pre");
  shown.forEach(([tag, each], nth) => {
    let block = body.children[nth];
    if (block?.localName !== tag) {
      block?.remove();
      block = document.createElement(tag);
      body.insertBefore(block, body.children[nth] ?? null);
    }
    const old = block.textContent;
    if (block.firstChild && each.startsWith(old)) block.firstChild.appendData(each.slice(old.length));
    else if (old !== each) block.textContent = each;
  });
  while (body.children.length > shown.length) body.lastChild.remove();
}

// Follows the end of the conversation only for readers who are at its end.
function keepingPlace(change) {
  const atEnd = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 48;
  change();
  if (atEnd) scroll.scrollTop = scroll.scrollHeight;
}

// Reading an answer

// Resolves to true at the answer's end (or when the reader stops), to false where the browser gave up.
function byEventSource(url, answer, signal) {
  return new Promise((resolve, reject) => {
    const source = new EventSource(url);
    const over = (end) => (source.close(), end());
    const take = (event) => {
      try {
        if (answer.take(event)) over(() => resolve(true));
      } catch (error) {
        over(() => reject(error));
      }
    };
    signal.addEventListener("abort", () => over(() => resolve(true)));
    source.onopen = () => say("");
    source.onmessage = take;
    source.addEventListener("done", take);
    source.addEventListener("error", (event) => {
      if (event.data) take(event); // an event of ours with that name; one without data is the browser's
      else if (source.readyState === EventSource.CLOSED) over(() => resolve(false));
      else say(LOST);
    });
  });
}

async function byFetch(url, answer, signal) {
  for (;;) {
    try {
      const response = await api(url, { signal, headers: answer.lastId ? { "Last-Event-ID": answer.lastId } : {} });
      if (response.status === 204) return answer.end("completed");
      say("");
      for await (const event of events(response.body)) if (answer.take(event)) return;
    } catch (error) {
      const passing = error instanceof TypeError || error.status === 503; // away, or about to restart
      if (!passing || !answer.lastId) throw error;
    }
    say(LOST);
    await pause(1000);
  }
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = "", part; !(part = await reader.read()).done; ) {
    const blocks = (rest + part.value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const event = { type: "message", lastEventId: "" };
      for (const [, name, value] of block.matchAll(/^(\w+): ?(.*)$/gm)) {
        if (name === "data") event.data = event.data === undefined ? value : `${event.data}\n${value}`;
        if (name === "event") event.type = value;
        if (name === "id") event.lastEventId = value;
      }
      if (event.data !== undefined) yield event;
    }
  }
}

// What the page does: one thing at a time, and the next one ends the one before

let activity = new AbortController();

async function run(task) {
  activity.abort();
  const mine = (activity = new AbortController());
  say("");
  try {
    await task(mine.signal);
  } catch (error) {
    if (!mine.signal.aborted) say(sentence(error), true);
  } finally {
    if (activity === mine) busy(false);
  }
}

function busy(on) {
  $("send").hidden = on;
  $("stop").hidden = !on;
}

async function ask(signal) {
  const query = new URLSearchParams([...new FormData(form)].filter(([, value]) => value !== ""));
  if (conversation()) query.set("conversation_id", conversation());
  const question = new Message("user", field.value);
  const answer = new Message("assistant");
  field.value = "";
  scroll.scrollTop = scroll.scrollHeight;
  try {
    await read(answer, signal, async () => {
      const url = `chat/stream?${query}`;
      const token = key() && (await json("chat/token", { method: "POST", signal })).token;
      if (!conversation()) answer.onbegin = () => learn(answer, signal);
      const over = await byEventSource(token ? `${url}&token=${encodeURIComponent(token)}` : url, answer, signal);
      if (!over) await byFetch(url, answer, signal);
    });
  } catch (error) {
    if (!answer.lastId && !signal.aborted) {
      field.value ||= question.text; // refused: nothing was stored
      question.element.remove();
      answer.element.remove();
    }
    throw error;
  }
}

// The rest of an answer that was begun earlier. The prompt is not looked at: the header says which answer.
const resume = (answer) => (signal) => read(answer, signal, () => byFetch("chat/stream?prompt=-", answer, signal));

let reading = null;

async function read(answer, signal, task) {
  busy(true);
  reading = answer;
  answer.note("");
  answer.busy = true;
  answer.patience = setTimeout(say, 3000, WAITING);
  try {
    await task();
  } finally {
    clearTimeout(answer.patience);
    answer.busy = false;
    if (signal.aborted && !answer.lastId) answer.note(STOPPED_EARLY);
  }
}

// An answer that has begun ends on the server, and its stream with it; one that has not is given up by leaving.
async function stop() {
  const id = reading?.lastId?.split(":")[0];
  if (!id) return activity.abort();
  $("stop").disabled = true;
  await api(`chat/stop/${id}`, { method: "POST" }).catch((error) => say(sentence(error), true));
  $("stop").disabled = false;
}

// The stream names its conversation only at the end, and a refresh may come before: the latest one it is, or none.
async function learn(answer, signal) {
  const { data } = await json("chat/get/messages/?limit=2", { signal }).catch(() => ({ data: [] }));
  if (!signal.aborted && !conversation() && data.some(({ id }) => answer.lastId.startsWith(id))) remember(data[0].conversation_id);
}

async function load(signal) {
  log.replaceChildren();
  busy(false);
  let page = { last_id: null, has_more: Boolean(conversation()) };
  let last = null;
  while (page.has_more) {
    const query = new URLSearchParams({ conversation_id: conversation(), ...(page.last_id && { after: page.last_id }) });
    page = await json(`chat/get/messages/?${query}`, { signal });
    for (const stored of page.data) last = show(stored);
  }
  scroll.scrollTop = scroll.scrollHeight;
  if (last?.lastId) await resume(last)(signal);
}

function show({ id, role, content, status, finish_reason, model }) {
  const parts = Array.isArray(content) ? content.map((part) => part.text ?? `[${part.type}]`).join("") : content;
  const message = new Message(role, parts ?? "", model);
  if (status === "in_progress") message.lastId = `${id}:${[...message.text].length}`; // offsets count code points
  else message.end(status, finish_reason);
  return message;
}

form.onsubmit = (event) => {
  event.preventDefault();
  if (field.value.trim() && $("stop").hidden) run(ask);
};
field.onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return; // composing: Enter belongs to the input method
  event.preventDefault();
  form.requestSubmit();
};
form.addEventListener("invalid", (event) => ($("settings").open ||= event.target !== field), true);
$("stop").onclick = () => {
  stop();
  say("");
  field.focus();
};
$("new").onclick = () => {
  if (conversation()) location.hash = "";
  else run(load);
  field.focus();
};
$("cancel").onclick = () => $("door").close();
$("forget").onclick = () => {
  sessionStorage.removeItem("parley-key");
  location.reload();
};
$("forget").hidden = !key();
window.onhashchange = () => run(load);
run(load);
showModel().catch((error) => say(sentence(error), true));
