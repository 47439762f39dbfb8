/**
 * The gallery: thousands of images of which only those on the screen are elements of the page.
 *
 * What the server learns arrives by and by; nothing moves under the reader's hand: the order
 * changes when it is asked for.
 */

import { getJson } from "./api.js";
import { queueOf } from "./queue.js";

const POLL_MILLISECONDS = 1500;
const ROWS_BEYOND = 2;
/** What flies past is not loaded: faster than so many pixels a second, until it stands so long. */
const FAST = 1800, STILL_MILLISECONDS = 120;
/** Cells whose images are asked for in one frame: dozens at once would hold the next one up. */
const LOADED_AT_ONCE = 8;

/**
 * @typedef {{id: string, name: string, hasTruth: boolean, size: [number, number] | null,
 *   expected: number | null, truth: number | null, review: boolean | null, fault: string,
 *   state: "open" | "draft" | "accepted" | "changed"}} Item
 */

const STATE_WORDS = {
  open: "", draft: "in progress", accepted: "accepted", changed: "changed since accepted",
};

/** @param {number | null} dice @returns {string} */
export const asDice = (dice) => (dice === null || dice === undefined ? "–" : dice.toFixed(2));

export const FILTERS = {
  drawn: (item, drawn) => drawn.has(item.id),
  all: () => true,
  todo: (item) => item.state === "open" || item.state === "draft",
  done: (item) => item.state === "accepted" || item.state === "changed",
  review: (item) => item.review === true && item.state !== "accepted",
  fault: (item) => item.fault !== "",
};

/** Made once: a comparison that makes its own takes a third of a second for 3,000 names. */
const { compare } = new Intl.Collator(undefined, { numeric: true });
export const byName = (one, other) => compare(one.name, other.name);
const byScore = (key) => (one, other) =>
  (one[key] ?? 2) - (other[key] ?? 2) || byName(one, other);
export const ORDERS = { expected: byScore("expected"), true: byScore("truth"), name: byName };

export class Gallery {
  /** @param {(items: number, known: number) => void} onProgress */
  constructor(onProgress) {
    this.onProgress = onProgress;
    /** @type {Map<string, Item>} */
    this.items = new Map();
    /** @type {Item[]} as they are shown */
    this.shown = [];
    /** @type {Map<string, number>} the place in the draw of the images that score models */
    this.drawn = new Map();
    this.model = "";
    /** Called when another model is in use. */
    this.onModel = () => {};
    this.sort = "queue";
    this.filter = "all";
    this.words = "";
    this.hasLines = true;
    /**
     * What else is written into a cell: given the item, the line of its score, and the words.
     * @type {((item: Item, score: HTMLElement, words: string[]) => void)[]}
     */
    this.notes = [];
    this.stale = 0;
    this.revision = 0;
    this.edits = 0;
    this.focus = 0;
    /** @type {Map<number, HTMLElement>} cells by place */
    this.cells = new Map();
    this.scroller = document.getElementById("scroller");
    this.grid = document.getElementById("grid");
    this.resort = document.getElementById("resort");
    this.scroller.addEventListener("scroll", () => this.schedule(), { passive: true });
    new ResizeObserver(() => {
      if (this.scroller.clientWidth !== this.measured) this.clear();
      this.schedule();
    }).observe(this.scroller);
    this.grid.addEventListener("keydown", (event) => this.key(event));
    this.grid.addEventListener("focusin", (event) => {
      const place = Number(event.target.closest("li")?.dataset.place);
      if (Number.isFinite(place)) this.focus = place;
    });
    this.resort.addEventListener("click", () => this.arrange());
  }

  /** Ask for what is new, now and then for as long as the page lives. */
  async run() {
    for (;;) {
      try {
        await this.poll();
      } catch { /* the next one may be answered; the editor's lamp says what is lost */ }
      await new Promise((resolve) => { setTimeout(resolve, POLL_MILLISECONDS); });
    }
  }

  /** Ask which images were drawn at random; some of those that came later are. */
  async learnDraw() {
    const { drawn } = await getJson("/api/draw");
    this.drawn = new Map(drawn.map((id, place) => [id, place]));
  }

  /** Show images that came later. */
  async meet() {
    await this.learnDraw();
    await this.poll();
    this.arrange();
  }

  async poll() {
    const asked = `/api/images?since=${this.revision}&edits=${this.edits}`;
    const { revision, edits, model, images } = await getJson(asked);
    const isFirst = this.items.size === 0;
    this.revision = Math.max(1, revision);
    this.edits = edits;
    const isAnother = !isFirst && model !== this.model;
    this.model = model;
    for (const row of images) this.take(row);
    if (isFirst) this.arrange();
    else if (images.length) this.refresh();
    this.tellProgress();
    if (isAnother) this.onModel();
  }

  take([id, name, hasTruth, size, expected, truth, review, fault, state]) {
    const before = this.items.get(id);
    const item = { id, name, hasTruth, size, expected, truth, review, fault, state };
    if (before) {
      const key = { queue: "expected", expected: "expected", true: "truth" }[this.sort];
      if (key && before[key] !== item[key]) this.stale += 1;
      Object.assign(before, item);
    } else this.items.set(id, item);
  }

  tellProgress() {
    const known = [...this.items.values()].filter((item) => item.expected !== null || item.fault);
    this.onProgress(this.items.size, known.length);
    this.resort.hidden = this.stale === 0;
    this.resort.textContent = `Sort ${this.stale} new`;
  }

  /** Sort and filter anew. */
  arrange() {
    const words = this.words.toLowerCase();
    this.shown = [...this.items.values()]
      .filter((item) => FILTERS[this.filter](item, this.drawn)
        && item.name.toLowerCase().includes(words));
    if (this.sort === "queue") this.shown = queueOf(this.shown, this.drawn);
    else this.shown.sort(ORDERS[this.sort]);
    this.stale = 0;
    this.clear();
    this.layOut();
    this.tellProgress();
    const nothing = document.getElementById("nothing");
    nothing.hidden = this.shown.length > 0 || this.items.size === 0;
    nothing.textContent = "No image is like that.";
  }

  /** @param {Partial<{sort: string, filter: string, words: string}>} wish */
  choose(wish) {
    Object.assign(this, wish);
    this.scroller.scrollTop = 0;
    this.focus = 0;
    this.arrange();
  }

  /** @param {boolean} hasLines whether the masks are outlined */
  setLines(hasLines) {
    this.hasLines = hasLines;
    this.refresh();
  }

  /** @returns {Item | undefined} what comes after an image in this order and is not accepted yet */
  after(id) {
    const place = this.shown.findIndex((item) => item.id === id);
    const ahead = [...this.shown.slice(place + 1), ...this.shown.slice(0, Math.max(0, place))];
    return ahead.find((item) => item.state !== "accepted" && !item.fault) ?? ahead[0];
  }

  /** @param {string} id @param {string} state */
  setState(id, state) {
    const item = this.items.get(id);
    if (item) item.state = state;
    this.refresh();
  }

  clear() {
    for (const cell of this.cells.values()) leave(cell);
    this.cells.clear();
  }

  measure() {
    this.measured = this.scroller.clientWidth;
    const width = this.measured - 24;
    const wanted = width < 480 ? 150 : 190;
    this.columns = Math.max(2, Math.floor((width + 10) / (wanted + 10)));
    this.side = Math.floor((width + 10) / this.columns) - 10;
    this.rowHeight = Math.round(this.side * 0.78) + 46 + 10;
  }

  schedule() {
    if (!this.scheduled) this.scheduled = requestAnimationFrame(() => this.layOut());
  }

  /** Have exactly those cells that are on the screen, or nearly so. */
  layOut() {
    this.scheduled = 0;
    if (!this.scroller.clientWidth) return;
    this.measure();
    const rows = Math.ceil(this.shown.length / this.columns);
    this.grid.style.height = `${rows * this.rowHeight + 12}px`;
    const top = Math.floor(this.scroller.scrollTop / this.rowHeight) - ROWS_BEYOND;
    const seen = Math.ceil(this.scroller.clientHeight / this.rowHeight) + 2 * ROWS_BEYOND + 1;
    const first = Math.max(0, top) * this.columns;
    const last = Math.min(this.shown.length, Math.max(0, top + seen) * this.columns);
    for (const [place, cell] of this.cells) {
      if (place < first || place >= last) {
        leave(cell);
        this.cells.delete(place);
      }
    }
    for (let place = first; place < last; place += 1) {
      if (!this.cells.has(place)) this.cells.set(place, this.grid.appendChild(this.cell(place)));
    }
    this.loadSoon();
  }

  /** Load the images of the cells there are, now or when the scrolling is slow enough. */
  loadSoon() {
    const now = performance.now(), { scrollTop } = this.scroller, before = this.place;
    this.place = { now, scrollTop };
    clearTimeout(this.loading);
    const pixels = before ? Math.abs(scrollTop - before.scrollTop) : 0;
    if (pixels && (1000 * pixels) / (now - before.now) > FAST) {
      this.loading = setTimeout(() => this.load(), STILL_MILLISECONDS);
    } else this.load();
  }

  load() {
    let room = LOADED_AT_ONCE;
    for (const [place, cell] of this.cells) {
      if (cell.dataset.isLoaded) continue;
      if (room === 0) {
        this.schedule();
        return;
      }
      room -= 1;
      cell.dataset.isLoaded = "yes";
      this.fill(cell, this.shown[place]);
    }
  }

  cell(place) {
    const item = this.shown[place], cell = document.createElement("li");
    cell.dataset.place = String(place);
    cell.setAttribute("aria-setsize", String(this.shown.length));
    cell.setAttribute("aria-posinset", String(place + 1));
    const column = place % this.columns, row = Math.floor(place / this.columns);
    const x = 12 + column * (this.side + 10), y = 12 + row * this.rowHeight;
    cell.style.transform = `translate(${x}px, ${y}px)`;
    cell.style.width = `${this.side}px`;
    cell.style.height = `${this.rowHeight - 10}px`;
    const link = document.createElement("a");
    link.href = `#/image/${item.id}`;
    const image = document.createElement("img");
    image.alt = "";
    image.decoding = "async";
    image.draggable = false;
    const line = document.createElement("img");
    line.alt = "";
    line.decoding = "async";
    line.className = "line";
    line.draggable = false;
    const name = document.createElement("span");
    name.className = "name";
    name.textContent = item.name;
    const score = document.createElement("span");
    score.className = "score";
    link.append(image, line, name, score);
    cell.append(link);
    this.fill(cell, item);
    return cell;
  }

  /** Write into a cell what is known of its image. */
  fill(cell, item) {
    const link = cell.firstChild, score = link.lastChild;
    link.dataset.state = item.state;
    if (cell.dataset.isLoaded) {
      const [image, line] = link.querySelectorAll("img"), path = `/api/images/${item.id}`;
      setSource(image, item.fault ? "" : `${path}/thumbnail`);
      const wanted = this.hasLines && item.expected !== null;
      setSource(line, wanted ? `${path}/outline?${item.state}-${this.model}` : "");
    }
    link.toggleAttribute("data-review", item.review === true);
    link.toggleAttribute("data-fault", item.fault !== "");
    link.toggleAttribute("data-drawn", this.drawn.has(item.id));
    const known = item.expected !== null, hasTruth = item.truth !== null;
    const expected = known ? `expected ${asDice(item.expected)}` : "…";
    const both = `exp. ${asDice(item.expected)} · true ${asDice(item.truth)}`;
    score.textContent = item.fault ? "cannot be read" : known && hasTruth ? both : expected;
    const dice = known && `expected Dice ${asDice(item.expected)}`;
    const truth = hasTruth && `true Dice ${asDice(item.truth)}`;
    const words = [item.name, item.fault ? "cannot be read" : dice, truth, STATE_WORDS[item.state]];
    if (item.review) words.push("should be reviewed");
    if (this.drawn.has(item.id)) words.push("test image, drawn at random");
    for (const note of this.notes) note(item, score, words);
    link.setAttribute("aria-label", words.filter(Boolean).join(", "));
    link.title = item.fault || words.filter(Boolean).join(", ");
  }

  refresh() {
    for (const [place, cell] of this.cells) this.fill(cell, this.shown[place]);
  }

  key(event) {
    const steps = {
      ArrowRight: 1, ArrowLeft: -1, ArrowDown: this.columns, ArrowUp: -this.columns,
      Home: -this.focus, End: this.shown.length - 1 - this.focus,
    };
    const step = steps[event.key];
    if (step === undefined) return;
    event.preventDefault();
    this.goTo(this.focus + step);
  }

  /** @param {number} wanted the place of the image that gets the focus */
  goTo(wanted) {
    const place = Math.max(0, Math.min(this.shown.length - 1, wanted));
    const top = Math.floor(place / this.columns) * this.rowHeight;
    const { scrollTop, clientHeight } = this.scroller;
    if (top < scrollTop) this.scroller.scrollTop = top;
    if (top + this.rowHeight > scrollTop + clientHeight) {
      this.scroller.scrollTop = top + this.rowHeight + 12 - clientHeight;
    }
    this.layOut();
    this.cells.get(place)?.firstChild.focus({ preventScroll: true });
  }
}

/** @param {HTMLImageElement} image @param {string} source nothing: it shows nothing */
function setSource(image, source) {
  if ((image.getAttribute("src") ?? "") === source) return;
  if (source) image.src = source;
  else image.removeAttribute("src");
}

/** Take a cell away, and have the browser ask no more for what it would have shown. */
function leave(cell) {
  for (const image of cell.querySelectorAll("img")) if (!image.complete) setSource(image, "");
  cell.remove();
}
