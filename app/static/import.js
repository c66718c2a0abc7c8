// A conversation from a file that was exported as JSON: its newest branch becomes a new conversation.

import { post } from "./api.js";
import { h } from "./dom.js";

const PAGE = 20; // items of a request

// Resolves to the conversation that was made; null if no file was chosen.
export async function importJson() {
  const file = await chosen();
  if (!file) return null;
  const { title, messages } = parsed(await file.text());
  const items = branch(messages).flatMap((message) => message.items.map(withoutId));
  const made = await post("v1/conversations", { title: String(title ?? file.name).slice(0, 200), items: items.slice(0, PAGE) });
  for (let start = PAGE; start < items.length; start += PAGE)
    await post(`v1/conversations/${made.id}/items`, { items: items.slice(start, start + PAGE) });
  return made;
}

function chosen() {
  const input = h("input", { type: "file", accept: ".json,application/json" });
  return new Promise((resolve) => {
    input.onchange = () => resolve(input.files[0]);
    input.oncancel = () => resolve(null);
    input.click();
  });
}

function parsed(text) {
  try {
    const found = JSON.parse(text);
    if (Array.isArray(found.messages)) return found;
  } catch {
    // said below
  }
  throw new Error("This file is no conversation that was exported as JSON");
}

function branch(messages) {
  const path = [];
  for (let node = messages.at(-1); node; node = node.children?.at(-1)) if (Array.isArray(node.items)) path.push(node);
  return path;
}

const withoutId = ({ id: _, ...item }) => item;
