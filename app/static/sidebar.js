// The list of conversations: most recently used first, searched by their text, renamed and deleted.

import { get, post, remove, sentence } from "./api.js";
import { confirmed, typed } from "./dialogs.js";
import { $, debounce, h, iconButton } from "./dom.js";

const PAGE = 30;

export class Sidebar {
  known = []; // conversations, as far as they were listed
  hasMore = false;
  current = null;

  constructor({ onremoved, onopen, onchanged }) {
    Object.assign(this, { onremoved, onopen, onchanged });
    this.list = $("conversations");
    this.field = $("search");
    this.status = $("list-status");
    this.field.oninput = debounce(() => this.show(), 250);
    $("more").onclick = () => this.attempt(() => this.load(this.known.at(-1)?.id));
    this.list.onclick = ({ target }) => target.closest("a") && this.onopen();
  }

  refresh() {
    return this.attempt(() => this.load());
  }

  async attempt(task) {
    try {
      await task();
      this.status.textContent = "";
    } catch (error) {
      this.status.textContent = sentence(error);
    }
  }

  async load(after) {
    const page = await get(`v1/conversations?limit=${PAGE}${after ? `&after=${after}` : ""}`);
    this.known = [...(after ? this.known : []), ...page.data];
    this.hasMore = page.has_more;
    await this.show();
  }

  mark(id) {
    this.current = id;
    for (const link of this.list.querySelectorAll("a")) markLink(link, id);
  }

  // Used just now.
  touch(conversation) {
    this.known = [conversation, ...this.known.filter(({ id }) => id !== conversation.id)];
    if (!this.query) this.show();
  }

  find(id) {
    return this.known.find((each) => each.id === id);
  }

  get query() {
    return this.field.value.trim();
  }

  async show() {
    const { query } = this;
    if (!query) return this.fill(this.known.map((each) => this.row(each)), this.hasMore, "No conversations yet.");
    await this.attempt(async () => {
      const found = await this.found(query);
      if (query === this.query) this.fill(found, false, "Nothing was found.");
    });
  }

  fill(rows, hasMore, otherwise) {
    this.list.replaceChildren(...(rows.length ? rows : [h("li", { class: "none" }, otherwise)]));
    $("more").hidden = !hasMore;
  }

  // By title as far as they are listed, and by text; each once.
  async found(query) {
    const { data } = await get(`v1/conversations/search?limit=50&query=${encodeURIComponent(query)}`);
    const snippets = new Map();
    for (const { conversation_id: id, snippet } of data) if (id && !snippets.has(id)) snippets.set(id, snippet);
    const titled = this.known.filter(({ title }) => title?.toLowerCase().includes(query.toLowerCase()));
    for (const { id } of titled) if (!snippets.has(id)) snippets.set(id, "");
    const unknown = [...snippets.keys()].filter((id) => !this.find(id));
    const fetched = await Promise.all(unknown.map((id) => get(`v1/conversations/${id}`).catch(() => null)));
    const all = new Map([...this.known, ...fetched.filter(Boolean)].map((each) => [each.id, each]));
    return [...snippets].filter(([id]) => all.has(id)).map(([id, snippet]) => this.row(all.get(id), snippet));
  }

  row(conversation, snippet = "") {
    const name = nameOf(conversation);
    const link = h("a", { href: `#${conversation.id}`, title: name }, name);
    if (snippet) link.append(h("small", {}, snippet));
    markLink(link, this.current);
    return h(
      "li",
      {},
      link,
      iconButton("edit", `Rename ${name}`, () => this.rename(conversation)),
      iconButton("delete", `Delete ${name}`, () => this.delete(conversation)),
    );
  }

  async rename(conversation) {
    const title = await typed("Rename the conversation", "Title", conversation.title ?? "", "Rename");
    if (!title) return;
    await this.attempt(async () => {
      const renamed = await post(`v1/conversations/${conversation.id}`, { title });
      this.known = this.known.map((each) => (each.id === renamed.id ? renamed : each));
      this.onchanged(null);
      await this.show();
    });
  }

  async delete(conversation) {
    const text = `“${nameOf(conversation)}” and its answers are deleted from the service, for good.`;
    if (!(await confirmed("Delete the conversation?", text, "Delete"))) return;
    await this.attempt(async () => {
      await remove(`v1/conversations/${conversation.id}`);
      this.known = this.known.filter(({ id }) => id !== conversation.id);
      this.onremoved(conversation.id);
      this.onchanged(conversation.id);
      await this.show();
    });
  }
}

export const nameOf = (conversation) =>
  conversation?.title ||
  (conversation ? `Conversation of ${new Date(conversation.created_at * 1000).toLocaleDateString()}` : "New conversation");

function markLink(link, id) {
  if (link.hash === `#${id}`) link.setAttribute("aria-current", "page");
  else link.removeAttribute("aria-current");
}
