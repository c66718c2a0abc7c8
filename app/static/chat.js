// The chat page: puts its parts together. The conversation's id is in location.hash, so that a reload, a bookmark or
// "back" shows it.

import { forgetKey, hasKey, sentence } from "./api.js";
import { Attachments } from "./attachments.js";
import { Composer } from "./composer.js";
import { Conversation } from "./conversation.js";
import { $, icon } from "./dom.js";
import { exportJson, exportMarkdown } from "./export.js";
import { importJson } from "./import.js";
import { isLoading, stageOf } from "./loading.js";
import { MessageView } from "./message.js";
import { Models } from "./models.js";
import * as scrolling from "./scrolling.js";
import { Settings } from "./settings.js";
import * as shortcuts from "./shortcuts.js";
import { nameOf, Sidebar } from "./sidebar.js";
import { forget, move, write } from "./storage.js";
import * as tabs from "./tabs.js";
import { imagesOf } from "./tree.js";

for (const element of document.querySelectorAll("[data-icon]")) element.prepend(icon(element.dataset.icon));

const models = new Models({
  onchosen(id) {
    settings.chooseModel(id);
    attachments.show();
  },
  onlist() {
    models.choose(settings.model?.id);
    settings.fill();
    attachments.show();
    if (conversation.isAwaited && isLoading(settings.model)) conversation.view.wait();
  },
  isAwaited: () => conversation.isAwaited && settings.model?.status?.value !== "loaded",
});
const settings = new Settings(models);
const attachments = new Attachments({
  canSee: () => settings.canSee,
  say: (text) => conversation.view.say(text, true),
  onchange: () => composer.change(),
});
const composer = new Composer(attachments, (text, images) => {
  composer.sending(text);
  conversation.ask(text, images);
});
const sidebar = new Sidebar({ onopen: () => drawer(false), onremoved: removed, onchanged: tabs.changed });
const views = new WeakMap(); // of nodes
const ENDS = { completed: "The answer is complete.", cancelled: "The answer was stopped." }; // for screen readers

const actions = {
  keepPlace: scrolling.keepPlace,
  again: (node) => conversation.again(node),
  proceed: (node) => conversation.proceed(node),
  edit: (node, text) => conversation.ask(text, imagesOf(node), node.parent),
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
      if (!node.isRunning) $("announcement").textContent = ENDS[node.answer?.status] ?? "The answer has ended early.";
    },
    wait() {
      const model = settings.model;
      const text = isLoading(model) ? `${model.id} is being loaded: ${stageOf(model)} …` : "Still waiting for the first word …";
      if ($("status").textContent !== text) this.say(text);
    },
    say(text, isProblem = false) {
      scrolling.keepPlace(() => ($("status").textContent = text));
      $("status").classList.toggle("problem", isProblem);
    },
    setRunning(node) {
      if (node) $("announcement").textContent = ""; // else the end of the last one is still to be read out
      document.body.toggleAttribute("data-running", node !== null);
      composer.setRunning(node !== null);
      if (models.list.some(({ max_model_len: limit }) => !limit)) models.follow(); // one may be loaded, or was
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
      tabs.changed(conversation.id);
    },
    refused(text, images) {
      this.show();
      composer.refused(text, images);
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
  } catch (error) {
    conversation.view.say(sentence(error), true);
  }
}

function exportAs(write) {
  $("export").open = false;
  if (conversation.tree.path.length) write(nameOf(sidebar.find(conversation.id)));
}

async function importFile() {
  $("export").open = false;
  try {
    const made = await importJson();
    if (!made) return;
    tabs.changed(made.id);
    await sidebar.refresh();
    location.hash = made.id;
  } catch (error) {
    conversation.view.say(sentence(error), true);
  }
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
$("open-admin").onclick = async () => {
  (await import("./admin.js")).show();
};
$("open-settings").onclick = () => settings.show();
$("export-markdown").onclick = () => exportAs((title) => exportMarkdown(title, conversation.tree.path));
$("export-json").onclick = () => exportAs((title) => exportJson(title, conversation.id, conversation.tree));
$("import-json").onclick = importFile;
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
tabs.onChanged((id) => {
  sidebar.refresh().then(titled);
  if (id && id === conversation.id) conversation.changedElsewhere();
});
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
