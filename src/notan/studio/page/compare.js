/**
 * Two models side by side: a divider in the editor, and the gallery by how much they differ.
 *
 * To the left of the divider is the first model's mask at the threshold of the slider, to the right
 * the second one's. The view draws both as it draws any mask; here is only what cuts between them.
 */

import { getJson, getPacked } from "./api.js";
import { ORDERS, asDice, byName } from "./gallery.js";
import { unpack } from "./raster.js";

const POLL_MILLISECONDS = 2000;
const STEPS = {
  ArrowLeft: -2, ArrowDown: -2, ArrowRight: 2, ArrowUp: 2, PageDown: -10, PageUp: 10, Home: -100,
  End: 100,
};

/** @param {string} id @returns {any} an element of the page */
const $ = (id) => document.getElementById(id);

ORDERS.difference = (one, other) =>
  (other.difference ?? -1) - (one.difference ?? -1) || byName(one, other);

export class Compare {
  /** @param {import("./gallery.js").Gallery} gallery @param {import("./view.js").View} view */
  constructor(gallery, view) {
    this.gallery = gallery;
    this.view = view;
    this.revision = 0;
    /** Why the second model has no mask of the image that is open. */
    this.fault = "";
    /** Of the stage's width, in percent. */
    this.place = 50;
    /** @type {{id: string, mask: Uint8Array} | null} the second model's mask of an image */
    this.other = null;
    /** The right side's tiles; the view keeps those of the left one. */
    this.tiles = new Map();
    /** @type {Map<string, any[]>} what is known of images, by id */
    this.known = new Map();
  }

  /** Ask whether there is a second model, and if so wire everything. */
  async start() {
    const { names } = await this.poll();
    if (!names) return;
    $("sort").append(new Option("most different first", "difference"));
    $("swipe-choice").hidden = false;
    this.name(names);
    this.gallery.notes.push((item, score, words) => this.note(item, score, words));
    const { view } = this, drawOverlay = view.drawOverlay.bind(view);
    view.drawOverlay = (context) => (view.look.layer === "swipe"
      ? this.draw(context, drawOverlay) : drawOverlay(context));
    for (const radio of document.querySelectorAll("[name=layer]")) {
      radio.addEventListener("change", () => this.show());
    }
    window.addEventListener("hashchange", () => this.show());
    this.listen();
    this.run();
  }

  async run() {
    for (;;) {
      await new Promise((resolve) => { setTimeout(resolve, POLL_MILLISECONDS); });
      try {
        this.name((await this.poll()).names);
      } catch { /* the next one may be answered; the editor's lamp says what is lost */ }
    }
  }

  /** @param {[string, string]} names of both models; the first one's may change */
  name(names) {
    this.names = names;
    $("swipe-a").textContent = `A: ${names[0]}`;
    $("swipe-b").textContent = `B: ${this.fault || names[1]}`;
  }

  async poll() {
    const { names, revision, images } = await getJson(`/api/compare?since=${this.revision}`);
    this.revision = revision;
    for (const [id, ...known] of images) this.known.set(id, known);
    for (const [id, [difference]] of this.known) {
      const item = this.gallery.items.get(id);
      if (!item || item.difference === difference) continue;
      item.difference = difference;
      if (this.gallery.sort === "difference") this.gallery.stale += 1;
    }
    if (images.length) this.gallery.refresh();
    return { names };
  }

  /** Write into a cell how much the models differ. */
  note(item, score, words) {
    const known = this.known.get(item.id);
    if (!known) return;
    const [difference, expected, truth, fault] = known;
    const differ = fault ? "the second model cannot" : `models differ by ${asDice(difference)}`;
    words.push(differ);
    if (!fault) words.push(`second: expected Dice ${asDice(expected)}`);
    if (truth !== null) words.push(`second: true Dice ${asDice(truth)}`);
    if (this.gallery.sort === "difference") score.textContent = differ;
  }

  /** Show or hide the divider, as the layer says, and fetch what it needs. */
  async show() {
    const isOn = document.querySelector("[name=layer]:checked").value === "swipe";
    const id = location.hash.match(/^#\/image\/([0-9a-f]+)$/)?.[1];
    $("swipe").hidden = !isOn || !id;
    this.move(this.place);
    if (!isOn || !id || this.other?.id === id) return;
    this.other = null;
    this.fault = "";
    try {
      const packed = await getPacked(`/api/images/${id}/other`);
      const { height, width } = await getJson(`/api/images/${id}`);
      this.other = { id, mask: unpack(packed, height * width) };
    } catch (error) {
      this.fault = error.message;
    }
    this.name(this.names);
    this.tiles.clear();
    this.view.draw();
  }

  /** Draw both masks, each on its side of the divider. */
  draw(context, drawOverlay) {
    const { view } = this, { look, tiles, truth } = view;
    if (!tiles.size) this.tiles.clear(); // the look, the threshold or the zoom changed
    const at = view.toImage((this.place / 100) * view.width, 0).x;
    const { width, height } = view.raster;
    const side = (left, right, layer) => {
      context.save();
      context.beginPath();
      context.rect(left, 0, Math.max(0, right - left), height);
      context.clip();
      look.layer = layer;
      drawOverlay(context);
      context.restore();
    };
    side(0, Math.min(width, at), "model");
    if (this.other && this.other.mask.length === width * height
      && location.hash.endsWith(this.other.id)) {
      view.tiles = this.tiles;
      view.truth = this.other.mask;
      side(Math.max(0, at), width, "truth");
      view.tiles = tiles;
      view.truth = truth;
    }
    look.layer = "swipe";
  }

  /** @param {number} place of the divider, in percent of the stage's width */
  move(place) {
    this.place = Math.max(0, Math.min(100, place));
    const swipe = $("swipe");
    swipe.style.left = `${this.place}%`;
    swipe.setAttribute("aria-valuenow", String(Math.round(this.place)));
    $("swipe-a").hidden = swipe.hidden || this.place < 12;
    $("swipe-b").hidden = swipe.hidden || this.place > 88;
    this.view.draw();
  }

  listen() {
    const swipe = $("swipe"), stage = $("stage");
    const follow = (event) => {
      const box = stage.getBoundingClientRect();
      this.move((100 * (event.clientX - box.left)) / box.width);
    };
    swipe.addEventListener("pointerdown", (event) => {
      swipe.setPointerCapture(event.pointerId);
      swipe.focus({ preventScroll: true });
      event.preventDefault();
    });
    swipe.addEventListener("pointermove", (event) => {
      if (swipe.hasPointerCapture(event.pointerId)) follow(event);
    });
    swipe.addEventListener("keydown", (event) => {
      const step = STEPS[event.key];
      if (step === undefined) return;
      event.preventDefault();
      event.stopPropagation();
      this.move(this.place + step * (event.shiftKey ? 5 : 1));
    });
  }
}
