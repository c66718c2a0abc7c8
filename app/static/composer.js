// The field for the next message. What is typed is kept with its conversation until the service has taken it.

import { $, debounce } from "./dom.js";
import { move, read, write } from "./storage.js";

const GROWS = CSS.supports("field-sizing", "content"); // by itself, with its text

export class Composer {
  id = null;

  // `attachments`: images for the next message. `onsend` is given text and images.
  constructor(attachments, onsend) {
    this.attachments = attachments;
    this.field = $("prompt");
    this.form = $("ask");
    this.form.onsubmit = (event) => {
      event.preventDefault();
      if (this.hasContent && !this.isRunning) onsend(this.field.value, this.attachments.urls);
    };
    this.field.onkeydown = (event) => this.pressed(event);
    const keep = debounce(() => this.keep(), 200);
    this.field.oninput = () => {
      this.change();
      keep();
    };
    addEventListener("pagehide", () => !this.isSending && this.keep());
  }

  pressed(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return; // composing: Enter is the input method's
    event.preventDefault();
    this.form.requestSubmit();
  }

  open(id) {
    this.id = id;
    this.isSending = false;
    this.attachments.set([]);
    this.set(read(this.name, ""));
  }

  get hasContent() {
    return this.field.value.trim() !== "" || this.attachments.urls.length > 0;
  }

  get name() {
    return `draft:${this.id ?? "new"}`;
  }

  set(text) {
    this.field.value = text;
    this.change();
  }

  change() {
    $("send").disabled = !this.hasContent;
    if (GROWS) return;
    this.field.style.height = "auto";
    this.field.style.height = `${this.field.scrollHeight}px`;
  }

  keep() {
    if (!this.isSending || this.field.value) write(this.name, this.field.value);
  }

  // Emptied, but kept until the service has taken it: a reload before that brings it back.
  sending(text) {
    write(this.name, text);
    this.isSending = true;
    this.attachments.set([]);
    this.set("");
  }

  created(id) {
    move(this.name, `draft:${id}`);
    this.id = id;
  }

  clear() {
    this.set("");
    this.keep();
  }

  accepted() {
    this.isSending = false;
    this.keep();
  }

  refused(text, images) {
    this.isSending = false;
    if (images.length && !this.attachments.urls.length) this.attachments.set(images);
    if (text && !this.field.value) this.set(text);
    this.keep();
  }

  setRunning(isRunning) {
    const hadFocus = document.activeElement === $("send") || document.activeElement === $("stop");
    this.isRunning = isRunning;
    $("send").hidden = isRunning;
    $("stop").hidden = !isRunning;
    if (hadFocus) this.field.focus(); // a button that is hidden would lose it to the body
  }
}
