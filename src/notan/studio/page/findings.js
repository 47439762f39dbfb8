/**
 * What the data doctor found: at the images it is about, as an order and as filters of the gallery.
 */

import { getJson } from "./api.js";
import { FILTERS, ORDERS, byName } from "./gallery.js";

const POLL_MILLISECONDS = 3000;
const RANKS = { error: 0, warning: 1, note: 2 };

/** @param {string} id @returns {any} an element of the page */
const $ = (id) => document.getElementById(id);

const inWords = (kind) => kind.replaceAll("-", " ");

export class Findings {
  /** @param {import("./gallery.js").Gallery} gallery */
  constructor(gallery) {
    this.gallery = gallery;
    /** @type {Map<string, [string, string, string][]>} severity, kind, message by image */
    this.found = new Map();
  }

  /** Ask until the doctor has said all, however long that takes. */
  async start() {
    window.addEventListener("hashchange", () => this.tellOfImage());
    for (;;) {
      try {
        const told = await getJson("/api/findings");
        if (told.state !== "looking") {
          this.take(told);
          return;
        }
      } catch { /* the next one may be answered */ }
      await new Promise((resolve) => { setTimeout(resolve, POLL_MILLISECONDS); });
    }
  }

  take({ state, said, kinds, images }) {
    if (state === "failed") {
      $("doctor-fault").textContent = ` · the data doctor: ${said}`;
      return;
    }
    this.found = new Map(Object.entries(images));
    if (!this.found.size) return;
    const rank = (item) => RANKS[this.found.get(item.id)?.[0][0]] ?? 3;
    ORDERS.findings = (one, other) => rank(one) - rank(other) || byName(one, other);
    $("sort").append(new Option("doctor's findings first", "findings"));
    const group = document.createElement("optgroup");
    group.label = "found by the doctor";
    for (const [severity, kind, count] of kinds) {
      const name = `found-${severity}-${kind}`;
      FILTERS[name] = (item) => (this.found.get(item.id) ?? [])
        .some(([hers, its]) => hers === severity && its === kind);
      group.append(new Option(`${inWords(kind)} (${count})`, name));
    }
    $("filter").append(group);
    this.gallery.notes.push((item, score, words) => {
      const found = this.found.get(item.id);
      if (!found) return;
      const [severity, kind] = found[0];
      if (severity !== "note") {
        score.parentNode.dataset.finding = severity;
        score.parentNode.dataset.says = inWords(kind);
      }
      words.push(...found.map(([hers, its]) => `doctor's ${hers}: ${inWords(its)}`));
    });
    this.gallery.refresh();
    this.tellOfImage();
  }

  /** Say in the editor what was found about the image that is open. */
  tellOfImage() {
    const id = location.hash.match(/^#\/image\/([0-9a-f]+)$/)?.[1];
    const found = this.found.get(id) ?? [];
    $("doctor").hidden = found.length === 0;
    $("doctor-says").replaceChildren(...found.map(([severity, kind, message]) => {
      const line = document.createElement("li"), words = document.createElement("b");
      line.dataset.severity = severity;
      words.textContent = `${inWords(kind)}: `;
      line.append(words, message);
      return line;
    }));
  }
}
