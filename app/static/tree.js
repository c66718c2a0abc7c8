// A conversation as a tree of messages: the versions of a message are siblings, and one path through it is shown.
//
// A node is one message of the user's, or one answer with all of its items (thoughts, calls, text). `tip` is the id of
// its last item, which the next message names as its parent.

export class Node {
  children = [];
  chosen = null; // the child that is shown; null: the newest

  constructor({ role, parent = null, items = [], answer = null }) {
    Object.assign(this, { role, parent, items, answer });
    parent?.children.push(this);
  }

  get tip() {
    return this.items.at(-1)?.id ?? this.parent?.tip ?? "";
  }

  get text() {
    return this.items.filter(({ type }) => type === "message").map(textOf).join("\n\n");
  }

  get isRunning() {
    return ["queued", "in_progress"].includes(this.answer?.status);
  }

  // It ended early, and can be gone on with.
  get isCut() {
    const { status, finish_reason: reason } = this.answer ?? {};
    const isEarly = ["incomplete", "cancelled"].includes(status) || reason === "length";
    return isEarly && this.items.at(-1)?.type === "message" && this.text !== "" && !this.children.length;
  }

  get next() {
    return this.chosen ?? this.children.at(-1) ?? null;
  }

  // Itself and its other versions; the two ways to answer a message count, and the two ways to ask it.
  get versions() {
    return this.parent.children.filter(({ role }) => role === this.role);
  }
}

export const textOf = ({ content, output, summary }) => {
  const parts = content?.length ? content : (output ?? summary ?? "");
  if (typeof parts === "string") return parts;
  return parts.map((part) => part.text ?? part.refusal ?? (part.type === "input_image" ? "" : `[${part.type}]`)).join("");
};

// Addresses of a message's images.
export const imagesOf = ({ items }) =>
  items.flatMap(({ content }) => (Array.isArray(content) ? content.map(({ image_url: url }) => url).filter(Boolean) : []));

export class Tree {
  constructor() {
    this.root = new Node({ role: "root" });
    this.byItem = new Map();
    this.byAnswer = new Map();
  }

  // Of the pages of `GET /v1/conversations/{id}/tree`, oldest first.
  static of(pages) {
    const tree = new Tree();
    const answers = new Map(pages.flatMap((page) => page.answers).map((answer) => [answer.id, answer]));
    const items = pages.flatMap((page) => page.data);
    for (const found of items) tree.place(found, answers);
    for (const answer of answers.values()) {
      if (tree.byAnswer.has(answer.id) || answer.status === "completed") continue;
      tree.byAnswer.set(answer.id, new Node({ role: "assistant", parent: tree.parentOf(answer.parent_item), answer }));
    }
    if (items.length) tree.choose(tree.byItem.get(items.at(-1).item.id)); // the branch that was last written to
    return tree;
  }

  parentOf(item) {
    return this.byItem.get(item) ?? this.root;
  }

  place({ item, parent_item: parentItem, answer_id: answerId, is_output: isOutput }, answers) {
    const earlier = isOutput && this.byAnswer.get(answerId);
    if (earlier) earlier.items.push(item);
    const node = earlier || new Node({ role: roleOf(item), parent: this.parentOf(parentItem), items: [item] });
    if (isOutput) node.answer ??= answers.get(answerId) ?? null;
    if (isOutput && answerId) this.byAnswer.set(answerId, node);
    this.byItem.set(item.id, node);
  }

  get path() {
    const path = [];
    for (let node = this.root.next; node; node = node.next) path.push(node);
    return path;
  }

  get leaf() {
    return this.path.at(-1) ?? this.root;
  }

  get running() {
    return [...this.byAnswer.values()].find((node) => node.isRunning) ?? null;
  }

  // Shows the branch that the node is on.
  choose(node) {
    for (let each = node; each.parent; each = each.parent) each.parent.chosen = each;
  }

  remove(node) {
    const { parent } = node;
    parent.children = parent.children.filter((each) => each !== node);
    if (parent.chosen === node) parent.chosen = null;
  }
}

function roleOf(item) {
  if (item.type === "message") return item.role;
  return item.type.endsWith("_output") ? "tool" : "assistant";
}
