// Images that go with the next message: pasted, dropped or chosen, for models that see.

import { $, h, iconButton } from "./dom.js";

const KINDS = ["image/png", "image/jpeg", "image/webp", "image/gif"];
const MAX_BYTES = 3 * 2 ** 20; // of a file that is sent as it is; Base64 makes four bytes of three
const MAX_SIDE = 2048; // pixels of one that is drawn anew
const QUALITY = 0.9;
const BLIND = "This model takes no images.";

export class Attachments {
  urls = []; // data URLs

  // `canSee`: whether the chosen model does. `say`: shows a sentence. `onchange`: there are others now.
  constructor({ canSee, say, onchange }) {
    Object.assign(this, { canSee, say, onchange });
    const chooser = h("input", { type: "file", accept: "image/*", multiple: true, hidden: true, "aria-label": "Images" });
    chooser.onchange = () => this.add([...chooser.files]).then(() => (chooser.value = ""));
    $("attach").after(chooser);
    $("attach").onclick = () => chooser.click();
    $("prompt").addEventListener("paste", (event) => this.take(event, event.clipboardData));
    document.addEventListener("dragover", (event) => hasFiles(event.dataTransfer) && event.preventDefault());
    document.addEventListener("drop", (event) => this.take(event, event.dataTransfer));
  }

  take(event, data) {
    if (!hasFiles(data)) return;
    event.preventDefault();
    this.add([...data.files]);
  }

  async add(files) {
    const images = files.filter(({ type }) => type.startsWith("image/"));
    if (!images.length) return this.say("Only images can be sent.");
    if (!this.canSee()) return this.say(BLIND);
    for (const file of images) {
      try {
        this.set([...this.urls, await urlOf(file)]);
      } catch {
        this.say(`${file.name || "The image"} cannot be read.`);
      }
    }
  }

  set(urls) {
    this.urls = urls;
    const views = urls.map((url, place) => {
      const remove = iconButton("close", `Remove image ${place + 1}`, () => {
        this.set(this.urls.toSpliced(place, 1));
        $("prompt").focus();
      });
      return h("li", {}, h("img", { src: url, alt: `Image ${place + 1}` }), remove);
    });
    $("attachments").replaceChildren(...views);
    this.onchange();
  }

  show() {
    $("attach").hidden = !this.canSee();
  }
}

const hasFiles = (data) => [...(data?.types ?? [])].includes("Files") && data.files !== undefined;

async function urlOf(file) {
  if (KINDS.includes(file.type) && file.size <= MAX_BYTES) return dataUrl(file);
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, MAX_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = h("canvas", { width: Math.round(bitmap.width * scale), height: Math.round(bitmap.height * scale) });
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return canvas.toDataURL("image/jpeg", QUALITY);
}

function dataUrl(file) {
  const reader = new FileReader();
  return new Promise((resolve, reject) => {
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
