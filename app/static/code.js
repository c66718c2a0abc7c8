// Code: a block with its language, a button that copies it, and colours once it is complete.

import { h } from "./dom.js";

let library; // loaded with the first block

export function codeBlock(language) {
  const code = h("code", {});
  const copy = copyButton("Copy code", () => code.textContent);
  const label = h("span", {}, language || "text");
  const element = h("figure", { class: "code" }, h("figcaption", {}, label, copy), h("pre", { tabIndex: 0 }, code));
  return { element, code, language };
}

export async function highlight({ code, language }) {
  if (!language) return;
  library ??= import("./vendor/highlight/highlight.min.js");
  const { default: hljs } = await library;
  if (!hljs.getLanguage(language)) return;
  const found = hljs.highlight(code.textContent, { language, ignoreIllegals: true });
  code.replaceChildren(...found._emitter.rootNode.children.map(nodeOf)); // its tree: `value` would be HTML to be parsed
}

const nodeOf = (token) =>
  typeof token === "string"
    ? document.createTextNode(token)
    : h("span", { class: `hl-${(token.scope ?? "").split(/[.:]/)[0]}` }, token.children.map(nodeOf));

export function copyButton(label, textOf, content = "Copy") {
  const button = h("button", { type: "button", class: "quiet", "aria-label": label, title: label }, content);
  button.onclick = async () => {
    const before = [...button.childNodes];
    button.replaceChildren((await copied(textOf())) ? "Copied" : "Copying failed");
    setTimeout(() => button.replaceChildren(...before), 1500);
  };
  return button;
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copiedBySelection(text); // the clipboard's API exists over TLS and on loopback only
  }
}

function copiedBySelection(text) {
  const focused = document.activeElement;
  const field = h("textarea", { value: text, class: "unseen" });
  (focused?.closest("dialog") ?? document.body).append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  focused?.focus();
  return done;
}
