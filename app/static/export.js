// A conversation as a file: Markdown of the branch that is shown, JSON of all branches.

import { h } from "./dom.js";

const NAMES = { user: "You", system: "System", developer: "System", tool: "Tool" };

export function exportMarkdown(title, path) {
  const messages = path.map((node) => `## ${NAMES[node.role] ?? node.answer?.model ?? "Answer"}\n\n${node.text.trim()}\n`);
  save(`${fileName(title)}.md`, "text/markdown", [`# ${title}\n`, ...messages].join("\n"));
}

export function exportJson(title, id, tree) {
  const data = { title, conversation_id: id, messages: tree.root.children.map(plain) };
  save(`${fileName(title)}.json`, "application/json", JSON.stringify(data, null, 2));
}

const plain = ({ role, items, answer, children }) => ({ role, items, answer, children: children.map(plain) });

const fileName = (title) => title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60) || "conversation";

function save(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
