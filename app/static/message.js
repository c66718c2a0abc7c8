// One message as it is shown: its text, how it ended, and what can be done with it.

import { copyButton } from "./code.js";
import { h, icon, iconButton } from "./dom.js";
import { Parts, seconds } from "./parts.js";
import { imagesOf } from "./tree.js";

const NAMES = { user: "You", system: "System", developer: "System", tool: "Tool" };
const CUT_OFF = "Cut off: the longest answer allowed was reached.";
const ENDS = {
  cancelled: "Stopped: you ended the answer here.",
  incomplete: "Incomplete: the answer broke off here.",
  failed: "The answer failed.",
};

export class MessageView {
  constructor(node, actions) {
    Object.assign(this, { node, actions });
    this.who = h("h2", { class: "who" });
    this.parts = node.role === "assistant" || node.role === "tool" ? new Parts() : null;
    this.body = this.parts?.element ?? h("div", { class: "text plain" });
    this.pictures = node.role === "user" ? imagesOf(node).map(picture) : [];
    this.note = h("p", { class: "note" });
    this.foot = h("div", { class: "foot" });
    this.element = h("article", { class: node.role }, this.who, this.pictures, this.body, this.note, this.foot);
    this.render();
  }

  // Once a frame at most.
  change() {
    this.frame ??= requestAnimationFrame(() => this.actions.keepPlace(() => this.render()));
  }

  render() {
    cancelAnimationFrame(this.frame);
    this.frame = null;
    const { node } = this;
    this.who.textContent = NAMES[node.role] ?? (node.answer?.model || "Answer");
    this.element.setAttribute("aria-busy", node.isRunning); // also keeps screen readers from reading every piece
    this.element.classList.toggle("waiting", node.isRunning && !node.items.length);
    if (this.parts) this.parts.show(node);
    else if (this.body.textContent !== node.text) this.body.textContent = node.text;
    if (!this.parts) this.body.hidden = !node.text;
    this.note.textContent = noteOf(node);
    if (!node.isRunning || !this.foot.hasChildNodes()) this.renderFoot();
  }

  renderFoot() {
    const focused = this.foot.contains(document.activeElement) && document.activeElement.title;
    this.foot.replaceChildren(...(this.node.isRunning ? [] : [...this.versions(), ...this.buttons(), ...this.facts()]));
    if (focused) [...this.foot.querySelectorAll("button")].find(({ title }) => title === focused)?.focus();
  }

  versions() {
    const all = this.node.versions;
    if (all.length < 2) return [];
    const place = all.indexOf(this.node);
    const step = (name, label, to) =>
      iconButton(name, label, () => this.actions.choose(all[to]), { disabled: !all[to] });
    return [
      step("left", "Earlier version", place - 1),
      h("span", { class: "count" }, `${place + 1} of ${all.length}`),
      step("right", "Later version", place + 1),
    ];
  }

  buttons() {
    const copy = copyButton(this.node.role === "user" ? "Copy message" : "Copy answer", () => this.node.text, icon("copy"));
    copy.classList.add("icon");
    if (this.node.role === "user") return [copy, iconButton("edit", "Edit message", () => this.edit())];
    if (this.node.role !== "assistant") return this.node.text ? [copy] : []; // of a tool
    const isBroken = ["incomplete", "failed"].includes(this.node.answer?.status) && this.node.answer.finish_reason !== "length";
    const again = () => this.actions.again(this.node);
    const proceed = h("button", { type: "button", class: "again", onclick: () => this.actions.proceed(this.node) }, "Continue");
    const more = this.node.isCut ? [proceed] : [];
    return isBroken
      ? [h("button", { type: "button", class: "again", onclick: again }, "Try again"), ...more, copy]
      : [...more, ...(this.node.text ? [copy] : []), iconButton("again", "Answer again", again)];
  }

  facts() {
    const facts = factsOf(this.node, this.actions.limitOf(this.node));
    return facts.length ? [h("span", { class: "facts" }, facts.join(" · "))] : [];
  }

  edit() {
    const field = h("textarea", { value: this.node.text, "aria-label": "Edited message" });
    const leave = () => {
      editor.replaceWith(this.body);
      this.foot.hidden = false;
      this.element.classList.remove("edited");
      this.foot.querySelector("[title='Edit message']")?.focus();
    };
    const isWhole = () => field.value.trim() || this.pictures.length;
    const send = () => isWhole() && (leave(), this.actions.edit(this.node, field.value));
    const cancel = h("button", { type: "button", onclick: leave }, "Cancel");
    const row = h("div", { class: "row" }, cancel, h("button", { type: "button", class: "main", onclick: send }, "Send"));
    const editor = h("div", { class: "editor" }, field, row);
    field.onkeydown = (event) => {
      if (event.key === "Escape") event.stopPropagation();
      if (event.key === "Escape") leave();
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      send();
    };
    this.element.classList.add("edited");
    this.foot.hidden = true;
    this.body.replaceWith(editor);
    field.focus();
  }
}

// Images of other sites are links: the page asks its own service only.
const picture = (url, place) =>
  url.startsWith("data:image/")
    ? h("img", { class: "picture", src: url, alt: `Image ${place + 1} of the message` })
    : h("a", { href: url, target: "_blank", rel: "noopener noreferrer" }, `[image: ${url}]`);

function noteOf({ answer, problem }) {
  if (problem) return problem;
  if (answer?.finish_reason === "length") return CUT_OFF;
  return answer?.error?.message ?? ENDS[answer?.status] ?? "";
}

const count = (number) => number.toLocaleString("en");

function factsOf({ answer, firstAt, endedAt }, limit) {
  const usage = answer?.usage;
  if (!usage) return [];
  const facts = [`${count(usage.output_tokens)} tokens`];
  const ms = endedAt - firstAt;
  if (ms > 0 && usage.output_tokens > 1) facts.push(`${((usage.output_tokens - 1) / (ms / 1000)).toFixed(1)} tokens/s`);
  else if (answer.completed_at) facts.push(seconds((answer.completed_at - answer.created_at) * 1000));
  facts.push(`context ${count(usage.total_tokens)}${limit ? ` of ${count(limit)}` : ""}`);
  return facts;
}
