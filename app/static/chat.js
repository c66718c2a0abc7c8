// The chat page: puts its parts together. The conversation's id is in location.hash, so that a reload, a bookmark or
// "back" shows it.

import { forgetKey, hasKey, sentence } from "./api.js";
import { Composer } from "./composer.js";
import { Conversation } from "./conversation.js";
import { $, icon } from "./dom.js";
import { exportJson, exportMarkdown } from "./export.js";
import { MessageView } from "./message.js";
import { Models } from "./models.js";
import * as scrolling from "./scrolling.js";
import { Settings } from "./settings.js";
import * as shortcuts from "./shortcuts.js";
import { nameOf, Sidebar } from "./sidebar.js";
import { forget, move, write } from "./storage.js";

for (const element of document.querySelectorAll("[data-icon]")) element.prepend(icon(element.dataset.icon));

const models = new Models((id) => settings.chooseModel(id));
const settings = new Settings(models);
const composer = new Composer((text) => {
  composer.sending(text);
  conversation.ask(text);
});
const sidebar = new Sidebar({ onopen: () => drawer(false), onremoved: removed });
const views = new WeakMap(); // of nodes

const actions = {
  keepPlace: scrolling.keepPlace,
  again: (node) => conversation.again(node),
  edit: (node, text) => conversation.ask(text, node.parent),
  choose: (node) => conversation.choose(node),
  limitOf: (node) => models.list.find(({ id }) => id === node.answer?.model)?.max_model_len,
};

function viewOf(node) {
  if (!views.has(node)) views.set(node, new MessageView(node, actions));
  return views.get(node);
}

const conversation = new Conversation(
  {
    show({ isAsked = false } = {}) {
      const path = conversation.tree.path.filter((node) => node.role !== "root");
      const shown = path.map((node) => viewOf(node));
      for (const view of shown) view.render();
      reconcile($("log"), shown.map(({ element }) => element));
      if (!isAsked) return;
      scrolling.toEnd();
      if (document.activeElement === document.body) $("scroll").focus(); // its button is gone
    },
    update(node, { isEnd = false } = {}) {
      if (!isEnd) return viewOf(node).change();
      scrolling.keepPlace(() => viewOf(node).render());
      if (!node.isRunning) $("announcement").textContent = "The answer is complete.";
    },
    say(text, isProblem = false) {
      scrolling.keepPlace(() => ($("status").textContent = text));
      $("status").classList.toggle("problem", isProblem);
    },
    setRunning(node) {
      $("announcement").textContent = "";
      document.body.toggleAttribute("data-running", node !== null);
      composer.setRunning(node !== null);
      if (node === null && models.list.some(({ max_model_len: limit }) => !limit)) refreshModels(); // one may be loaded now
    },
    created(made) {
      history.replaceState(null, "", `#${made.id}`);
      move("settings:new", `settings:${made.id}`);
      settings.id = made.id;
      composer.created(made.id);
      sidebar.mark(made.id);
      sidebar.touch(made);
      titled();
    },
    loaded() {
      const last = conversation.tree.path.findLast(({ role }) => role === "user");
      if (last?.text === composer.field.value) composer.clear(); // the service had taken it, just before a reload
      scrolling.toEnd();
    },
    accepted() {
      composer.accepted();
      const known = sidebar.find(conversation.id);
      if (known) sidebar.touch(known);
    },
    refused(text) {
      this.show();
      composer.refused(text);
    },
  },
  settings,
);

function reconcile(parent, elements) {
  elements.forEach((element, place) => {
    if (parent.children[place] !== element) parent.insertBefore(element, parent.children[place] ?? null);
  });
  while (parent.children.length > elements.length) parent.lastChild.remove();
}

function idOfAddress() {
  try {
    return decodeURIComponent(location.hash.slice(1)) || null;
  } catch {
    return null; // not an address of ours
  }
}

function open({ isTemporary = false } = {}) {
  const id = idOfAddress();
  settings.open(id);
  composer.open(id);
  sidebar.mark(id);
  document.body.toggleAttribute("data-temporary", isTemporary);
  $("temporary").setAttribute("aria-pressed", isTemporary);
  conversation.open(id, { isTemporary });
  titled();
}

const openIfChanged = () => idOfAddress() !== conversation.id && open();

function begin({ isTemporary = false } = {}) {
  history.pushState(null, "", location.pathname);
  open({ isTemporary });
  drawer(false);
  $("prompt").focus();
}

function titled() {
  const name = conversation.isTemporary ? "Temporary conversation" : conversation.id ? nameOf(sidebar.find(conversation.id)) : "";
  document.title = name ? `${name} – Parley` : "Parley";
}

function removed(id) {
  write(`settings:${id}`, null);
  write(`draft:${id}`, null);
  if (id === conversation.id) begin();
}

function drawer(isOpen) {
  document.body.toggleAttribute("data-drawer", isOpen);
  $("menu").setAttribute("aria-expanded", isOpen);
}

async function refreshModels() {
  try {
    await models.load();
    settings.models.choose(settings.model?.id);
    settings.fill();
  } catch (error) {
    conversation.view.say(sentence(error), true);
  }
}

function exportAs(write) {
  $("export").open = false;
  if (conversation.tree.path.length) write(nameOf(sidebar.find(conversation.id)));
}

function editLast() {
  const last = conversation.tree.path.findLast(({ role }) => role === "user");
  if (!last || conversation.running) return false;
  viewOf(last).edit();
  return true;
}

$("menu").onclick = () => drawer(!document.body.hasAttribute("data-drawer"));
$("veil").onclick = () => drawer(false);
$("new").onclick = () => begin();
$("temporary").onclick = () => begin({ isTemporary: !conversation.isTemporary });
$("open-settings").onclick = () => settings.show();
$("export-markdown").onclick = () => exportAs((title) => exportMarkdown(title, conversation.tree.path));
$("export-json").onclick = () => exportAs((title) => exportJson(title, conversation.id, conversation.tree));
$("stop").onclick = () => conversation.stop();
$("forget").onclick = () => {
  forgetKey();
  forget();
  location.assign(location.pathname);
};
$("forget").hidden = !hasKey();
addEventListener("parley:key", () => {
  $("forget").hidden = false;
  sidebar.refresh(); // the first attempts may have been refused
  refreshModels();
});
document.addEventListener("click", ({ target }) => $("export").contains(target) || ($("export").open = false));
addEventListener("hashchange", openIfChanged);
addEventListener("popstate", openIfChanged);

scrolling.install();
shortcuts.install({
  stop: () => (document.body.hasAttribute("data-drawer") ? drawer(false) : conversation.running ? conversation.stop() : false),
  search: () => {
    drawer(getComputedStyle($("menu")).display !== "none");
    $("search").focus();
  },
  begin: () => begin(),
  editLast,
});
refreshModels();
open();
sidebar.refresh().then(titled);
