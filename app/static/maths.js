// Formulas, as MathML: `$…$`, `$$…$$`, `\(…\)` and `\[…\]`. Until the library is there, and where it cannot read one, its source.

import { $, h } from "./dom.js";

// Pandoc's rule, so that sums of money stay text: no space inside the dollars, no digit behind them.
const DOLLARS = /^\$(?![\s$])((?:\\[^]|[^$\\\n])*?[^\s\\$])\$(?!\d)/;
const DISPLAYED = /^(?:\$\$((?:\\[^]|[^$\\])+?)\$\$|\\\[([^]+?)\\\])/;
const INLINE = /^\\\(([^]+?)\\\)/;
const STARTS = /\$|\\[([]/;

const token = (found, text, isBlock) => ({ type: "formula", raw: found[0], text: text.trim(), isBlock });

function inline(source) {
  const displayed = DISPLAYED.exec(source);
  if (displayed) return token(displayed, displayed[1] ?? displayed[2], true);
  const found = INLINE.exec(source) ?? DOLLARS.exec(source);
  return found ? token(found, found[1], false) : undefined;
}

function block(source) {
  const found = /^ {0,3}/.exec(source)[0];
  const displayed = DISPLAYED.exec(source.slice(found.length));
  const rest = displayed && /^[ \t]*(?:\n|$)/.exec(source.slice(found.length + displayed[0].length));
  if (!rest) return undefined; // text goes on behind it: a part of a paragraph
  return token([source.slice(0, found.length + displayed[0].length + rest[0].length)], displayed[1] ?? displayed[2], true);
}

// Extensions of marked's lexer. A block ends the paragraph before it.
export const EXTENSIONS = [
  { name: "formula", level: "inline", start: (source) => source.search(STARTS), tokenizer: inline },
  { name: "formulaBlock", level: "block", start: (source) => source.search(/\n {0,3}(?:\$\$|\\\[)/), tokenizer: block },
];

export function formula({ text, raw, isBlock }) {
  const element = h(isBlock ? "div" : "span", { class: isBlock ? "formula block" : "formula" });
  const source = h("code", {}, raw.trim());
  const render = () => {
    try {
      element.replaceChildren();
      globalThis.temml.render(text, element, { displayMode: isBlock, throwOnError: true, trust: false });
    } catch {
      element.replaceChildren(source);
    }
  };
  render(); // its source, where the library is not there yet
  if (!globalThis.temml) $("temml").addEventListener("load", render, { once: true });
  return element;
}
