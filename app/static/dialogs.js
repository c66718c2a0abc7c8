// Questions to the user, each in a dialog of its own.

import { $, h } from "./dom.js";

export const isOpen = () => document.querySelector("dialog[open]") !== null;

// The key the service asks for; rejects where none is given.
export function askKey(problem) {
  const [door, field] = [$("door"), $("key")];
  $("door-problem").textContent = problem ?? "";
  field.value = "";
  door.showModal();
  return new Promise((resolve, reject) => {
    door.onsubmit = () => resolve(field.value.trim());
    door.onclose = () => reject(new Error("This service asks for an API key"));
    $("cancel").onclick = () => door.close();
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
