// The view of administrators: models, what they are doing, and what was used today. Loaded when it is first opened.

import { AdminModels } from "./admin-models.js";
import { AdminUsage } from "./admin-usage.js";
import { adminGet, enterAdminKey, NoKeyError, sentence } from "./api.js";
import { h, pause } from "./dom.js";

const POLL_MS = 1000;
const USAGE_POLLS = 10; // usage is stored, and read less often

class AdminView {
  constructor() {
    this.problem = h("p", { class: "problem", role: "alert" });
    this.enter = h("button", { type: "button", hidden: true, onclick: () => this.enterKey() }, "Enter an admin key");
    this.models = new AdminModels((error) => this.say(error));
    this.usage = new AdminUsage();
    this.content = h("div", {}, this.models.element, this.usage.element);
    const close = h("div", { class: "row" }, this.enter, h("button", { class: "main" }, "Close"));
    const form = h("form", { method: "dialog" }, h("h2", { id: "admin-title" }, "Administration"), this.problem, this.content, close);
    this.dialog = h("dialog", { id: "admin", tabIndex: -1, "aria-labelledby": "admin-title" }, form);
    document.head.append(h("link", { rel: "stylesheet", href: "static/admin.css" }));
    document.body.append(this.dialog);
  }

  async show() {
    this.dialog.showModal();
    this.dialog.focus(); // not the table, which comes first until there are models
    const mine = (this.showing = {});
    for (let polls = 0; this.dialog.open && this.showing === mine; polls++) {
      if (!document.hidden) await this.refresh(polls % USAGE_POLLS === 0);
      await pause(POLL_MS);
    }
  }

  async refresh(isWhole) {
    try {
      this.models.show((await adminGet("admin/status")).data);
      if (this.isRefused) this.say(null);
      if (isWhole) await this.usage.load();
    } catch (error) {
      if (error instanceof NoKeyError) return this.dialog.close();
      this.say(error, true);
    }
  }

  // `isRefused`: nothing can be shown; it is tried again.
  say(error, isRefused = false) {
    const text = error ? sentence(error) : "";
    if (this.problem.textContent !== text) this.problem.textContent = text;
    this.isRefused = isRefused;
    this.content.hidden = isRefused && error.status === 404; // no administrator: there is nothing for this key
    this.enter.hidden = !this.content.hidden;
  }

  async enterKey() {
    await enterAdminKey().catch(() => {}); // none was given
    await this.refresh(true);
  }
}

let view;

export const show = () => (view ??= new AdminView()).show();
