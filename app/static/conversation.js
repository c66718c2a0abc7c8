// The conversation that is shown: asks, answers again, edits, stops. One thing at a time, the next ends the one before;
// a stored answer goes on without its reader.

import * as answers from "./answers.js";
import { get, isAway, newId, post, sentence } from "./api.js";
import { pause } from "./dom.js";
import { imagesOf, Node, Tree } from "./tree.js";

const LOST = "The connection is lost. Trying again …";
const LEFT = "The service cannot be reached: the answer may go on there.";
const WAITING_MS = 5000;
const POLL_MS = 2000;
const TITLE = 60;

const titleOf = (text) => {
  const line = text.trim().split("\n")[0];
  return line.length > TITLE ? `${line.slice(0, TITLE).trimEnd()}…` : line;
};

const messageOf = (text, images) => ({
  type: "message",
  id: `msg_${newId()}`, // known before the service answers: edits and new answers name it
  role: "user",
  content: contentOf(text, images),
});

const contentOf = (text, images) => [
  ...images.map((url) => ({ type: "input_image", image_url: url, detail: "auto" })),
  ...(text || !images.length ? [{ type: "input_text", text }] : []),
];

export class Conversation {
  id = null;
  isTemporary = false;
  tree = new Tree();
  running = null; // the answer that is read
  activity = new AbortController();

  // `view`: show, update, say, wait, setRunning, created, loaded, accepted, refused. `settings`: the fields of a request.
  constructor(view, settings) {
    Object.assign(this, { view, settings });
  }

  async run(task) {
    this.activity.abort();
    const mine = (this.activity = new AbortController());
    this.view.say("");
    try {
      await task(mine.signal);
    } catch (error) {
      if (!mine.signal.aborted) this.view.say(sentence(error), true);
    } finally {
      if (this.activity === mine) this.setRunning(null);
    }
  }

  // Nothing of the answer is there yet.
  get isAwaited() {
    return this.running !== null && !this.running.items.length;
  }

  setRunning(node) {
    this.running = node;
    this.view.setRunning(node);
  }

  open(id, { isTemporary = false } = {}) {
    Object.assign(this, { id, isTemporary, tree: new Tree() });
    return this.run(async (signal) => {
      this.setRunning(null);
      this.view.show();
      if (!id) return;
      await this.load(signal);
      if (!signal.aborted) this.view.loaded();
      await this.follow(signal);
    });
  }

  async load(signal) {
    const { id } = this;
    const pages = [];
    do {
      const after = pages.length ? `&after=${encodeURIComponent(pages.at(-1).last_id)}` : "";
      pages.push(await get(`v1/conversations/${encodeURIComponent(id)}/tree?limit=100${after}`, { signal }));
    } while (pages.at(-1).has_more);
    if (signal.aborted) return;
    this.tree = Tree.of(pages);
    this.view.show();
  }

  // Reads the rest of an answer that is being written. Those that were asked for otherwise have no stream to join.
  async follow(signal) {
    while (this.tree.running) {
      const node = this.tree.running;
      this.tree.choose(node);
      this.setRunning(node);
      this.view.show();
      if (answers.isResponse(node)) return this.read(node, signal, (report) => answers.resume(node, signal, report));
      await pause(POLL_MS);
      await this.load(signal);
    }
  }

  ask(text, images = [], parent = this.tree.leaf) {
    const question = new Node({ role: "user", parent, items: [messageOf(text, images)] });
    return this.answer(question, { isNew: true });
  }

  again(answer) {
    return this.answer(answer.parent, { isNew: false });
  }

  // Goes on with an answer that ended early, in one that comes behind it.
  proceed(answer) {
    return this.answer(answer, { isNew: false });
  }

  answer(question, { isNew }) {
    const node = new Node({ role: "assistant", parent: question, answer: { status: "queued", model: this.settings.model?.id } });
    this.tree.choose(node);
    return this.run(async (signal) => {
      this.setRunning(node);
      this.view.show({ isAsked: true });
      try {
        if (!this.id && !this.isTemporary) await this.create(question.text || "An image", signal);
        const body = this.body(question, isNew);
        await this.read(node, signal, (report) => answers.ask(node, body, signal, report));
      } catch (error) {
        if (!node.answer.id) this.giveBack(node, question, isNew, signal);
        throw error;
      }
    });
  }

  async create(text, signal) {
    const made = await post("v1/conversations", { title: titleOf(text) }, { signal });
    this.id = made.id;
    this.view.created(made);
  }

  body(question, isNew) {
    const fields = { ...this.settings.fields, stream: true, ...(question.role === "assistant" && { continue_final_message: true }) };
    if (this.isTemporary) return { ...fields, store: false, input: inputUpTo(question) };
    const [parent, input] = isNew ? [question.parent.tip, question.items] : [question.tip, []];
    return { ...fields, background: true, conversation: this.id, parent_item: parent, input };
  }

  async read(node, signal, task) {
    const patience = setTimeout(() => node.items.length || this.view.wait(), WAITING_MS);
    let isFirst = true;
    const report = {
      signal,
      lost: (error) => this.view.say(error instanceof TypeError ? LOST : `${sentence(error)} Trying again …`),
      found: () => this.view.say(""),
      accepted: () => this.view.accepted(node),
      changed: () => {
        if (node.items.length && isFirst) {
          isFirst = false;
          clearTimeout(patience);
          this.view.say("");
        }
        this.view.update(node);
      },
    };
    try {
      await task(report);
      this.view.say("");
    } catch (error) {
      if (node.answer.id && node.isRunning && !signal.aborted) node.answer.status = "incomplete";
      throw error;
    } finally {
      clearTimeout(patience);
      this.view.update(node, { isEnd: true });
    }
  }

  // Refused, or stopped before it began: the question goes back to where it was typed.
  giveBack(node, question, isNew, signal) {
    if (this.running !== node) return; // another conversation is shown; the draft is kept with its own
    this.tree.remove(isNew ? question : node);
    this.view.refused(isNew ? question.text : "", isNew ? imagesOf(question) : []);
    if (signal.aborted && this.id) this.cancelUnseen(this.id);
  }

  // A question that was stopped on its way may have arrived.
  async cancelUnseen(id) {
    try {
      const { answers: found } = await get(`v1/conversations/${id}/tree?limit=100`);
      const running = found.find(({ status }) => ["queued", "in_progress"].includes(status));
      if (running) await answers.stop({ answer: running });
      if (running && this.id === id && !this.running) await this.open(id);
    } catch {
      // it has not arrived where nothing can be asked
    }
  }

  async stop() {
    const node = this.running;
    if (!node) return;
    if (!node.answer.id) return this.activity.abort();
    if (this.isTemporary) return this.leave(node, "cancelled");
    try {
      await answers.stop(node);
    } catch (error) {
      if (!isAway(error)) return this.view.say(sentence(error), true);
      this.leave(node, "incomplete");
      this.view.say(LEFT, true);
    }
  }

  leave(node, status) {
    node.answer.status = status;
    this.activity.abort();
    this.view.update(node, { isEnd: true });
  }

  choose(node) {
    this.tree.choose(node);
    this.view.show();
  }

  // Something was written to it elsewhere.
  changedElsewhere() {
    if (this.running) return;
    this.run(async (signal) => {
      await this.load(signal);
      await this.follow(signal);
    });
  }
}

// The messages up to a question, as input of a request whose conversation the service does not keep.
function inputUpTo(question) {
  const path = [];
  for (let node = question; node.parent; node = node.parent) path.unshift(node);
  return path
    .map((node) => ({ role: node.role, text: node.text, images: node.role === "user" ? imagesOf(node) : [] }))
    .filter(({ text, images }) => text || images.length)
    .map(({ role, text, images }) => ({ type: "message", role, content: images.length ? contentOf(text, images) : text }));
}
