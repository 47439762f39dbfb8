/**
 * The page's side of an image's journal: what can be undone, what is still on its way to the disk,
 * and the lamp that says so. Entries go one after the other; each counts when the server says that
 * it is on the disk, and is sent again until it does.
 */

import { Refusal, deflateToText, inflateText, newId, sendJson } from "./api.js";
import { unpack } from "./raster.js";

/** Of changes that are held for undoing; the oldest are let go, and the server still has them. */
const MOST_BYTES = 192 * 2 ** 20;
const RETRY_MILLISECONDS = [500, 1000, 2000, 4000];
/** Of answers that no repetition mends. A studio that was started anew asks for its new address
 * first (401), and then this page goes on. */
const FINAL_STATUSES = new Set([400, 404, 409, 413, 422]);

/** @typedef {import("./raster.js").Change} Change */
/** @typedef {{lamp: "saved" | "saving" | "failed", message: string}} LampState */

export class Journal {
  /**
   * @param {string} image its id
   * @param {import("./raster.js").Raster} raster
   * @param {(state: LampState) => void} onLamp
   * @param {(state: string) => void} onState told what the image is now: draft, accepted, ...
   */
  constructor(image, raster, onLamp, onState) {
    this.path = `/api/images/${image}`;
    this.raster = raster;
    this.onLamp = onLamp;
    this.onState = onState;
    /** @type {Change[]} */
    this.applied = [];
    /** @type {Change[]} */
    this.undone = [];
    /** What the correction begins with; null: it was begun. */
    this.origin = "model";
    this.version = 0;
    this.queue = [];
    this.draining = Promise.resolve();
    this.isSending = false;
    this.isClosed = false;
    this.failure = "";
  }

  /**
   * Take what the server holds: the raster as it stands, and what can be undone.
   * @param {any} held the journal of the answer
   */
  async load(held) {
    this.origin = null;
    this.version = held.version;
    const packed = await inflateText(held.raster);
    this.raster.data.set(unpack(packed, this.raster.data.length));
    const read = ({ tool, tiles, bits, goes_on: goesOn }) =>
      inflateText(bits).then((planes) => ({ tool, tiles, planes, goesOn }));
    this.applied = await Promise.all(held.applied.map(read));
    this.undone = await Promise.all(held.undone.map(read));
    for (const change of this.applied) this.raster.flip(change);
  }

  get isBegun() {
    return this.origin === null || this.queue.length > 0;
  }

  /** @param {Change} change that the raster shows already @param {number} seconds that it took */
  add(change, seconds) {
    this.applied.push(change);
    this.undone.length = 0;
    this.letGo();
    this.send({
      op: "stroke", tool: change.tool, tiles: change.tiles, planes: change.planes,
      goes_on: Boolean(change.goesOn), seconds: Math.min(3600, Math.round(seconds * 1000) / 1000),
    });
  }

  /** @returns {Change | undefined} what was taken back, or the last part of it */
  undo() {
    return this.step("undo", this.applied, this.undone);
  }

  /** @returns {Change | undefined} what was done again */
  redo() {
    return this.step("redo", this.undone, this.applied);
  }

  step(op, from, to) {
    if (!from.length) return undefined;
    let change;
    do { // all parts of a long stroke; the first of them is the last to be taken back
      change = from.pop();
      to.push(change);
      this.raster.flip(change);
    } while (from.length && (op === "undo" ? change : from.at(-1)).goesOn);
    this.send({ op });
    return change;
  }

  /** Say that the mask is right; resolves when it is in the corrections folder. */
  accept() {
    return new Promise((resolve, reject) => {
      this.send({ op: "accept", checksum: this.raster.checksum(), resolve, reject });
    });
  }

  letGo() {
    let bytes = this.applied.reduce((sum, change) => sum + change.planes.length, 0);
    const next = () => this.applied.findIndex((change, place) => place && !change.goesOn);
    while (bytes > MOST_BYTES && next() > 0) { // whole strokes, as the server takes them back
      for (const change of this.applied.splice(0, next())) bytes -= change.planes.length;
    }
  }

  send(entry) {
    this.queue.push({ ...entry, id: newId() });
    if (!this.isSending) this.draining = this.drain();
  }

  /** Whether everything is on the disk. */
  get isSaved() {
    return this.queue.length === 0;
  }

  /** Resolve when nothing is on its way any more. */
  async idle() {
    await this.draining;
  }

  async drain() {
    this.isSending = true;
    let attempt = 0;
    while (this.queue.length && !this.isClosed) {
      if (!this.failure) this.onLamp({ lamp: "saving", message: "" });
      try {
        await this.sendFirst(this.queue[0]);
        this.failure = "";
        attempt = 0;
      } catch (error) {
        this.failure = error.message;
        this.onLamp({ lamp: "failed", message: error.message });
        if (FINAL_STATUSES.has(error.status)) {
          this.queue.splice(0).forEach((entry) => entry.reject?.(error));
          this.isClosed = true;
          break;
        }
        const last = RETRY_MILLISECONDS.length - 1;
        const pause = RETRY_MILLISECONDS[Math.min(attempt, last)];
        await new Promise((resolve) => { setTimeout(resolve, pause); });
        attempt += 1;
      }
    }
    this.isSending = false;
    if (!this.failure) this.onLamp({ lamp: "saved", message: "" });
  }

  async sendFirst(entry) {
    if (this.origin !== null) {
      const begun = await sendJson(`${this.path}/journal`, { origin: this.origin });
      if (begun.version !== 0 || begun.origin !== this.origin) {
        throw new Refusal(409, "another tab began to correct this image; reload the page");
      }
      this.origin = null;
    }
    const { planes, resolve, reject, ...plain } = entry;
    if (planes && !entry.bits) {
      entry.bits = await deflateToText(planes);
      plain.bits = entry.bits;
    }
    const answer = await sendJson(`${this.path}/entries?version=${this.version}`, plain);
    this.version = answer.version;
    this.queue.shift();
    this.onState(answer.state);
    resolve?.();
  }
}
