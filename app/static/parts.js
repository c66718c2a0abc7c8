// The parts of an answer: text, thoughts and calls, the last two folded.

import { codeBlock } from "./code.js";
import { h } from "./dom.js";
import { MarkdownView } from "./markdown.js";
import { textOf } from "./tree.js";

class TextPart {
  element = h("div", { class: "text" });
  markdown = new MarkdownView(this.element);

  show(item, { isRunning }) {
    this.markdown.render(textOf(item), !isRunning);
  }
}

class ThoughtPart {
  constructor() {
    this.title = h("summary", {});
    this.body = h("div", { class: "thought" });
    this.element = h("details", {}, this.title, this.body);
    this.markdown = new MarkdownView(this.body);
  }

  show(item, { isRunning, isLast, thoughtMs }) {
    const title = thoughtMs === undefined ? "Thoughts" : `Thought for ${seconds(thoughtMs)}`;
    this.title.textContent = isRunning && isLast ? "Thinking …" : title;
    this.markdown.render(textOf(item), !isRunning);
  }
}

// A call of a tool or its result, and whatever else an item may be: its name, and all of it when unfolded.
class CallPart {
  constructor() {
    this.title = h("summary", {});
    this.block = codeBlock("json");
    this.element = h("details", {}, this.title, this.block.element);
  }

  show(item) {
    this.title.textContent = titleOf(item);
    const given = item.arguments ?? item.input ?? item.output;
    const text = typeof given === "string" ? given : JSON.stringify(given ?? item, null, 2);
    if (this.block.code.textContent !== text) this.block.code.textContent = text;
  }
}

function titleOf({ type, name }) {
  if (type.endsWith("_output")) return "Result";
  return name ? `Called ${name}` : type.replaceAll("_", " ");
}

export const seconds = (ms) => `${(ms / 1000).toFixed(ms < 10_000 ? 1 : 0)} s`;

const KINDS = { message: TextPart, reasoning: ThoughtPart };

export class Parts {
  shown = [];

  constructor() {
    this.element = h("div", { class: "parts" });
  }

  show(node) {
    node.items.forEach((item, place) => {
      if (this.shown[place]?.type !== item.type) this.replace(place, item.type);
      const isLast = place === node.items.length - 1;
      this.shown[place].part.show(item, { isRunning: node.isRunning, isLast, thoughtMs: node.thoughtMs });
    });
    for (const { part } of this.shown.splice(node.items.length)) part.element.remove();
  }

  replace(place, type) {
    const part = new (KINDS[type] ?? CallPart)();
    const old = this.shown[place]?.part.element;
    if (old) old.replaceWith(part.element);
    else this.element.append(part.element);
    this.shown[place] = { type, part };
  }
}
