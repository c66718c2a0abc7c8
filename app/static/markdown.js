// Markdown as elements. HTML in it is shown as text, and images are links: a page of another site is never asked.
//
// A growing text is rendered once a frame. Only its last block can still change; what is before it is left alone.

import { codeBlock, highlight } from "./code.js";
import { h } from "./dom.js";
import { EXTENSIONS, formula } from "./maths.js";
import { marked } from "./vendor/marked/marked.esm.js";

marked.use({ extensions: EXTENSIONS, gfm: true, breaks: true });

const LINK = /^(https?:|mailto:)/i;
const DEFINITION = /^ {0,3}\[[^\]]+\]:/m;
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", mdash: "—", ndash: "–", hellip: "…" };

export class MarkdownView {
  constructor(element) {
    this.element = element;
    this.reset();
  }

  reset() {
    this.settled = ""; // the text of blocks that cannot change any more
    this.open = []; // the blocks after it: what they were made from, and their elements
    this.element.replaceChildren();
  }

  render(given, isComplete) {
    if (isComplete && given === this.complete) return;
    this.complete = isComplete ? given : null;
    const text = given.replace(/\r\n?/g, "\n");
    if (!text.startsWith(this.settled) || (isComplete && DEFINITION.test(text))) this.reset();
    const tokens = marked.lexer(text.slice(this.settled.length));
    this.show(tokens.filter(({ type }) => type !== "space" && type !== "def"), isComplete);
    this.settle(tokens, isComplete);
  }

  show(tokens, isComplete) {
    tokens.forEach((token, place) => {
      const old = this.open[place];
      const isLast = place === tokens.length - 1;
      if (old?.raw !== token.raw) this.open[place] = this.block(token, old);
      const { code, isHighlighted } = this.open[place];
      if (code && !isHighlighted && (isComplete || !isLast)) {
        this.open[place].isHighlighted = true;
        highlight(code).catch(() => {}); // it stays without colours
      }
    });
    for (const { element } of this.open.splice(tokens.length)) element.remove();
  }

  block(token, old) {
    const isSameCode = token.type === "code" && old?.code && old.code.language === languageOf(token);
    const code = token.type === "code" ? (isSameCode ? old.code : codeBlock(languageOf(token))) : null;
    const element = code ? code.element : blockOf(token);
    if (code) setText(code.code, token.text);
    if (!old) this.element.append(element);
    else if (old.element !== element) old.element.replaceWith(element);
    return { raw: token.raw, element, code };
  }

  settle(tokens, isComplete) {
    if (isComplete) return;
    const last = tokens.findLastIndex(({ type }) => type !== "space" && type !== "def");
    const settled = tokens.slice(0, Math.max(last, 0));
    this.settled += settled.map(({ raw }) => raw).join("");
    this.open.splice(0, settled.filter(({ type }) => type !== "space" && type !== "def").length);
  }
}

const languageOf = (token) => (token.lang ?? "").trim().split(/\s/)[0].toLowerCase();

// Appends where it can: a selection in it survives.
function setText(element, text) {
  const old = element.textContent;
  if (element.childNodes.length === 1 && text.startsWith(old)) element.firstChild.appendData?.(text.slice(old.length));
  if (element.textContent !== text) element.textContent = text;
}

const BLOCKS = {
  heading: ({ depth, tokens }) => h(`h${Math.min(depth + 2, 6)}`, {}, inlines(tokens)),
  paragraph: ({ tokens }) => h("p", {}, inlines(tokens)),
  text: ({ tokens, text }) => h("p", {}, tokens ? inlines(tokens) : decoded(text)),
  hr: () => h("hr"),
  formula,
  blockquote: ({ tokens }) => h("blockquote", {}, blocks(tokens)),
  list: ({ ordered, start, items }) =>
    h(ordered ? "ol" : "ul", ordered && start !== 1 ? { start } : {}, items.map(listItem)),
  table: (token) => h("div", { class: "table", tabIndex: 0, role: "group", "aria-label": "Table" }, table(token)),
  code(token) {
    const code = codeBlock(languageOf(token));
    code.code.textContent = token.text;
    highlight(code).catch(() => {});
    return code.element;
  },
};

const blockOf = (token) => (BLOCKS[token.type] ?? (({ raw }) => h("p", {}, raw.trimEnd())))(token);
const blocks = (tokens) => tokens.filter(({ type }) => type !== "space" && type !== "def").map(blockOf);

function listItem({ tokens, loose, task, checked }) {
  const box = task ? [h("input", { type: "checkbox", checked: Boolean(checked), disabled: true }), " "] : [];
  const shown = tokens.filter(({ type }) => type !== "space" && type !== "checkbox");
  const content = shown.map((each) => (each.type === "text" && !loose ? inlines(each.tokens ?? [each]) : blockOf(each)));
  return h("li", {}, box, content.flat());
}

function table({ header, rows, align }) {
  const cell = (tag) => (each, column) =>
    h(tag, align[column] ? { class: `to-${align[column]}` } : {}, inlines(each.tokens));
  const body = rows.map((row) => h("tr", {}, row.map(cell("td"))));
  return h("table", {}, h("thead", {}, h("tr", {}, header.map(cell("th")))), h("tbody", {}, body));
}

const INLINES = {
  strong: ({ tokens }) => h("strong", {}, inlines(tokens)),
  em: ({ tokens }) => h("em", {}, inlines(tokens)),
  del: ({ tokens }) => h("del", {}, inlines(tokens)),
  codespan: ({ text }) => h("code", {}, text),
  br: () => h("br"),
  formula,
  link: ({ href, tokens }) => link(href, inlines(tokens)),
  image: ({ href, text }) => link(href, `[image: ${text || href}]`),
  escape: ({ text }) => text,
  html: ({ raw }) => (/^<br\s*\/?>$/i.test(raw.trim()) ? h("br") : raw),
  text: ({ tokens, text }) => (tokens ? inlines(tokens) : decoded(text)),
};

const inlines = (tokens) => tokens.flatMap((token) => (INLINES[token.type] ?? (({ raw }) => raw))(token));
const link = (href, content) =>
  LINK.test(href) ? h("a", { href, target: "_blank", rel: "noopener noreferrer" }, content) : h("span", {}, content);

const decoded = (text) =>
  text.replace(/&(?:#(\d{1,7})|#x([\da-f]{1,6})|(\w+));/gi, (all, decimal, hex, name) => {
    if (name) return ENTITIES[name] ?? all;
    const point = decimal ? Number(decimal) : parseInt(hex, 16);
    return point <= 0x10ffff ? String.fromCodePoint(point) : all;
  });
