// Keys, each with what it does; the dialog that shows them is made from the same table.

import { isOpen } from "./dialogs.js";
import { $, h } from "./dom.js";

const LABELS = [
  ["Enter", "Sends the message"],
  ["Shift+Enter", "Starts a new line"],
  ["↑", "Edits your last message, if the field is empty"],
  ["Esc", "Stops the answer"],
  ["Ctrl+K", "Searches conversations"],
  ["Ctrl+Shift+O", "Begins a new conversation"],
  ["?", "Shows these keys"],
];

export function install({ stop, search, begin, editLast }) {
  $("keys-list").append(...LABELS.flatMap(([key, does]) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, does)]));
  $("show-keys").onclick = () => $("keys").showModal();
  document.addEventListener("keydown", (event) => {
    if (event.isComposing || isOpen()) return;
    const does = actionOf(event, { stop, search, begin, editLast });
    if (does?.() !== false && does) event.preventDefault();
  });
}

function actionOf(event, { stop, search, begin, editLast }) {
  const isControl = event.ctrlKey || event.metaKey;
  const inField = event.target.matches("input, textarea, select");
  if (event.key === "Escape") return stop;
  if (isControl && event.key.toLowerCase() === "k") return search;
  if (isControl && event.shiftKey && event.key.toLowerCase() === "o") return begin;
  if (event.key === "?" && !inField) return () => $("keys").showModal();
  if (event.key === "ArrowUp" && event.target === $("prompt") && !event.target.value) return editLast;
  return null;
}
