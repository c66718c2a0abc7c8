// Each model with its state and what it is doing, and a button that loads or unloads it.

import { adminPost } from "./api.js";
import { h } from "./dom.js";
import { isLoading, loadingText, showShare } from "./loading.js";

const STATES = { unloaded: "not loaded", loaded: "loaded", failed: "failed to load" };
const count = (number) => number.toLocaleString("en");

const FACTS = {
  Answering: ({ running }) => count(running),
  Waiting: ({ waiting }) => count(waiting),
  "Tokens/s": ({ kind, tokens_per_second: rate }) => (kind === "chat" ? rate.toFixed(1) : null),
  Cache: ({ cache_size: size, cache_used: used }) => (size ? `${Math.round((100 * used) / size)} %` : null),
  Context: ({ max_model_len: length }) => (length ? count(length) : null),
  Device: ({ device, dtype }) => [device, dtype].filter((each) => each && each !== "none").join(", ") || null,
};

export class AdminModels {
  views = new Map(); // by id

  constructor(onproblem) {
    this.onproblem = onproblem;
    this.list = h("ul", { class: "models" });
    this.status = h("p", { role: "status", class: "unseen" });
    this.element = h("section", { "aria-label": "Models" }, h("h3", {}, "Models"), this.list, this.status);
  }

  show(models) {
    const ids = new Set(models.map(({ id }) => id));
    for (const [id, { element }] of this.views) {
      if (ids.has(id)) continue;
      element.remove(); // it was deleted
      this.views.delete(id);
    }
    for (const model of models) {
      if (!this.views.has(model.id)) this.add(model.id);
      this.views.get(model.id).show(model);
    }
  }

  add(id) {
    const view = new ModelView(id, (action) => this.change(id, action));
    this.views.set(id, view);
    this.list.append(view.element);
  }

  async change(id, action) {
    this.onproblem(null);
    this.status.textContent = `${id}: ${action === "load" ? "loading" : "unloading"}`;
    try {
      const { status } = await adminPost(`v1/models/${encodeURIComponent(id)}/${action}`, {});
      this.status.textContent = `${id}: ${STATES[status.value]}`;
    } catch (error) {
      this.status.textContent = "";
      this.onproblem(error);
    }
  }
}

class ModelView {
  constructor(id, onaction) {
    this.state = h("span", { class: "state" });
    this.bar = h("progress", { hidden: true });
    this.facts = h("dl", { class: "facts" });
    this.button = h("button", { type: "button" });
    this.button.onclick = async () => {
      this.setBusy(true);
      await onaction(this.button.dataset.action);
      this.setBusy(false);
    };
    const head = h("div", { class: "row" }, h("h4", {}, id), this.state, this.button);
    this.element = h("li", {}, head, this.bar, this.facts);
    this.id = id;
  }

  // Not `disabled`, which would lose the focus.
  setBusy(isBusy) {
    this.isBusy = isBusy;
    this.button.setAttribute("aria-disabled", isBusy);
  }

  show(model) {
    const value = model.status.value;
    this.state.textContent = isLoading(model) ? loadingText(model) : model.is_stalled ? "stalled" : STATES[value];
    this.state.dataset.state = model.is_stalled ? "failed" : value;
    showShare(this.bar, model);
    this.showButton(value);
    this.showFacts(value === "loaded" ? model : null);
  }

  showButton(value) {
    if (this.isBusy) return;
    const action = value === "loaded" ? "unload" : "load";
    this.button.dataset.action = action;
    this.button.textContent = action === "load" ? "Load" : "Unload";
    this.button.setAttribute("aria-label", `${this.button.textContent} ${this.id}`);
  }

  showFacts(model) {
    const shown = model ? Object.entries(FACTS).map(([name, of]) => [name, of(model)]).filter(([, text]) => text !== null) : [];
    this.facts.replaceChildren(...shown.map(([name, text]) => h("div", {}, h("dt", {}, name), h("dd", {}, text))));
  }
}
