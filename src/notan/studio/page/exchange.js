/**
 * Bring and take: files dropped on the page or chosen become images of the gallery, one after the
 * other; masks and the corrected data set are links that the server answers with a file.
 */

import { getJson, sendFile } from "./api.js";

const MOST_NAMED = 200;
const DONE = new Set(["accepted", "changed"]);

/** @param {string} id @returns {any} an element of the page */
const $ = (id) => document.getElementById(id);

/** @param {number} count @param {string} word @returns {string} */
const several = (count, word) => `${count.toLocaleString()} ${word}${count === 1 ? "" : "s"}`;

/**
 * Give the files of what was dropped, those in folders too; hidden ones are left out.
 * @param {FileSystemEntry[]} entries @returns {AsyncGenerator<File>}
 */
async function* filesOf(entries) {
  const waiting = [...entries].reverse();
  while (waiting.length) {
    const entry = waiting.pop();
    if (entry.name.startsWith(".")) continue;
    if (entry.isFile) {
      yield await new Promise((resolve, reject) => { entry.file(resolve, reject); });
      continue;
    }
    const reader = entry.createReader(), inside = [];
    for (;;) { // it gives a hundred at a time, and none at the end
      const some = await new Promise((resolve, reject) => { reader.readEntries(resolve, reject); });
      if (!some.length) break;
      inside.push(...some);
    }
    waiting.push(...inside.reverse());
  }
}

export class Exchange {
  /** @param {import("./gallery.js").Gallery} gallery */
  constructor(gallery) {
    this.gallery = gallery;
    this.isBusy = false;
    this.isStopped = false;
  }

  /** Ask what may come and go, and wire the controls. */
  async start() {
    const { formats, suffixes, most_bytes: most } = await getJson("/api/exchange");
    this.suffixes = suffixes;
    this.most = most;
    this.formats = new Map(formats.map(([name, title, loses]) => [name, { title, loses }]));
    for (const [name, { title }] of this.formats) $("format").append(new Option(title, name));
    for (const id of ["choose-files", "choose-folder"]) {
      const input = $(`${id}-input`);
      $(id).addEventListener("click", () => input.click());
      input.addEventListener("change", () => {
        const files = [...input.files].filter((file) => !file.name.startsWith("."));
        input.value = "";
        this.bring(files);
      });
    }
    $("files").addEventListener("click", () => this.show());
    $("stop-bringing").addEventListener("click", () => { this.isStopped = true; });
    $("format").addEventListener("change", () => this.showFormat());
    window.addEventListener("hashchange", () => this.nameImage());
    this.nameImage();
    this.listenToDrops();
  }

  show() {
    this.showFormat();
    if (!$("exchange").open) $("exchange").showModal();
  }

  showFormat() {
    const count = [...this.gallery.items.values()].filter((item) => DONE.has(item.state)).length;
    const name = $("format").value;
    $("accepted-count").textContent = count
      ? `${several(count, "accepted mask")}, with ${count === 1 ? "its image" : "their images"}.`
      : "No mask is accepted yet. Accept one in the editor, then take it here.";
    $("format-loses").textContent = this.formats.get(name).loses;
    $("format-row").hidden = $("take-dataset").hidden = $("format-loses").hidden = count === 0;
    $("take-dataset").href = `/api/datasets/${name}`;
  }

  /** Have the links of the editor lead to the image that is open. */
  nameImage() {
    const id = location.hash.match(/^#\/image\/([0-9a-f]+)$/)?.[1];
    for (const what of ["mask", "cutout", "geojson"]) {
      if (id) $(`take-${what}`).href = `/api/images/${id}/${what}`;
    }
  }

  listenToDrops() {
    const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
    window.addEventListener("dragover", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      event.dataTransfer.dropEffect = "copy";
      $("dropping").hidden = false;
    });
    window.addEventListener("dragleave", (event) => {
      if (!event.relatedTarget) $("dropping").hidden = true;
    });
    window.addEventListener("drop", (event) => {
      $("dropping").hidden = true;
      if (!hasFiles(event)) return;
      event.preventDefault();
      const entries = [...event.dataTransfer.items]
        .map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
      this.bring(entries.length ? filesOf(entries) : [...event.dataTransfer.files]);
    });
  }

  /**
   * Send files, one at a time, and say what became of them.
   * @param {Iterable<File> | AsyncIterable<File>} files
   */
  async bring(files) {
    this.show();
    if (this.isBusy) {
      $("bring-said").textContent = "Wait until the files before these are there.";
      return;
    }
    this.isBusy = true;
    this.isStopped = false;
    $("bring-faults").replaceChildren();
    $("stop-bringing").hidden = false;
    this.counts = { added: 0, known: 0, others: 0, refused: 0 };
    try {
      for await (const file of files) {
        if (this.isStopped) break;
        $("bring-said").textContent = `${this.counted()} Sending ${file.name} …`;
        await this.send(file);
      }
    } catch (error) {
      this.name("", error.message);
    }
    $("stop-bringing").hidden = true;
    try {
      if (this.counts.added) await this.gallery.meet();
    } catch { /* the gallery asks again by itself */ }
    this.isBusy = false;
    $("bring-said").textContent = this.counted() || "There was no file.";
  }

  /** @param {File} file */
  async send(file) {
    const name = file.name.toLowerCase();
    if (!this.suffixes.some((suffix) => name.endsWith(suffix))) {
      this.counts.others += 1;
      return;
    }
    if (file.size > this.most) {
      this.name(file.name, `has more than ${Math.round(this.most / 1e6)} MB`);
      return;
    }
    try {
      const { is_new: isNew } = await sendFile(
        `/api/brought?name=${encodeURIComponent(file.name)}`, file,
      );
      this.counts[isNew ? "added" : "known"] += 1;
    } catch (error) {
      if (!error.status) throw error; // nobody is there to take the others
      this.name(file.name, error.message);
    }
  }

  /** Name a file that did not come, and why. */
  name(file, why) {
    this.counts.refused += 1;
    if (this.counts.refused > MOST_NAMED) return;
    const line = document.createElement("li"), words = document.createElement("b");
    words.textContent = file;
    line.append(words, `${file && ": "}${why.replace(/^the image that was sent:? /, "")}`);
    $("bring-faults").append(line);
  }

  /** @returns {string} what became of the files so far */
  counted() {
    const { added, known, others, refused } = this.counts;
    const words = [
      added && `${several(added, "image")} added`,
      known && `${known.toLocaleString()} here already`,
      others && `${several(others, "file")} of other kinds passed over`,
      refused && `${refused.toLocaleString()} not taken`,
    ].filter(Boolean);
    return words.length ? `${words.join(", ")}.` : "";
  }
}
