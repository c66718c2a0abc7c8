// Questions to the user, each in a dialog of its own.

import { h } from "./dom.js";

export class NoKeyError extends Error {}

export const isOpen = () => document.querySelector("dialog[open]") !== null;

// The key the service asks for; rejects where none is given.
export function askKey(problem) {
  const field = h("input", {
    id: "key",
    type: "password",
    required: true,
    pattern: "\\s*[!-~]+\\s*",
    title: "Letters, digits and signs, without spaces",
    autocomplete: "off",
  });
  const cancel = h("button", { id: "cancel", type: "button", onclick: () => door.close() }, "Cancel");
  const form = h(
    "form",
    { method: "dialog" },
    h("h2", { id: "door-title" }, "This service asks for an API key"),
    h("p", { id: "door-problem", role: "alert" }, problem ?? ""),
    h("label", {}, "API key ", field),
    h("p", {}, h("small", {}, "Kept in this tab only, until it is closed.")),
    h("div", { class: "row" }, cancel, h("button", { class: "main" }, "Continue")),
  );
  const door = h("dialog", { id: "door", "aria-labelledby": "door-title" }, form);
  document.body.append(door);
  door.showModal();
  return new Promise((resolve, reject) => {
    form.onsubmit = () => resolve(field.value.trim());
    door.onclose = () => {
      door.remove();
      reject(new NoKeyError("This service asks for an API key")); // the first answer counts
    };
  });
}

export const confirmed = async (title, text, action) =>
  (await asked(title, [h("p", {}, text)], action, "danger")) !== null;

// What was typed; null if the dialog was left.
export function typed(title, label, value, action) {
  const field = h("input", { value, required: true, maxLength: 200 });
  const answer = asked(title, [h("label", {}, label, field)], action, "main", () => field.value.trim());
  field.select();
  return answer;
}

function asked(title, content, action, kind, answerOf = () => true) {
  const leave = h("button", { type: "button", onclick: () => dialog.close() }, "Cancel");
  const form = h("form", { method: "dialog" }, content, h("div", { class: "row" }, leave, h("button", { class: kind }, action)));
  const dialog = h("dialog", { "aria-label": title }, h("h2", {}, title), form);
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    form.onsubmit = () => resolve(answerOf());
    dialog.onclose = () => {
      dialog.remove();
      resolve(null); // the first answer counts
    };
  });
}
