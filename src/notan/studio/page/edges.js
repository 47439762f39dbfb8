/**
 * The image's own edges and colours: outlines that follow edges from click to click, and what lies
 * inside a scribble, told apart by colour. The server knows the image's pixels and says where its
 * edges are; what becomes of that is decided here, on the raster.
 */

import { deflateToText, getPacked, inflateText, sendJson } from "./api.js";
import { BY_HAND, FOREGROUND, Raster } from "./raster.js";

/** How far from a corner an outline looks for a way, in pixels; beyond that it is straight. */
const WINDOW = 512;
/** Places that are met between two frames, and the most that a step from one to the next costs. */
const MET_AT_ONCE = 120000, DEAREST = 2048;
/** Across a place without an edge it is dear to go, along a sharp one it is cheap. */
const COSTS = Uint32Array.from({ length: 256 }, (_, edge) =>
  2 + Math.round(250 * ((255 - edge) / 255) ** 2));
/** Steps to the eight neighbours, and how long they are: five across, seven aslant. */
const STEPS = [
  [1, 0, 5], [-1, 0, 5], [0, 1, 5], [0, -1, 5], [1, 1, 7], [1, -1, 7], [-1, 1, 7], [-1, -1, 7],
];
/** Around a scribble so much of the image is looked at: a part of its extent, and at least this. */
const MARGIN_SHARE = 0.25, LEAST_MARGIN = 24;

/** @typedef {{x: number, y: number}} Place */
/**
 * A part of the image; labels: 0 background, 1 foreground, 2 and 3 probably so.
 * @typedef {{left: number, top: number, width: number, height: number, labels: Uint8Array}} Crop
 */

/**
 * The cheapest ways from one corner of the image's pixels to those around it, found as far as they
 * are asked for: Dijkstra's, with a bucket for each cost.
 */
class Ways {
  /** @param {EdgeMap} map @param {number} x @param {number} y of the corner where they begin */
  constructor(map, x, y) {
    this.map = map;
    this.left = Math.max(0, x - WINDOW);
    this.top = Math.max(0, y - WINDOW);
    this.width = Math.min(map.width, x + WINDOW + 1) - this.left;
    this.height = Math.min(map.height, y + WINDOW + 1) - this.top;
    this.cost = new Uint32Array(this.width * this.height).fill(0xffffffff);
    this.step = new Uint8Array(this.width * this.height);
    this.isSettled = new Uint8Array(this.width * this.height);
    /** @type {number[][]} */
    this.buckets = Array.from({ length: DEAREST }, () => []);
    this.level = 0;
    this.waiting = 1;
    this.start = (y - this.top) * this.width + x - this.left;
    this.cost[this.start] = 0;
    this.buckets[0].push(this.start);
  }

  /** Go on until a place is reached, or so many were met. @returns {boolean} whether it is */
  reach(place, most) {
    let met = 0;
    while (!this.isSettled[place] && this.waiting && met < most) {
      const bucket = this.buckets[this.level % DEAREST];
      const next = bucket.pop();
      if (next === undefined) {
        this.level += 1;
        continue;
      }
      this.waiting -= 1;
      if (this.isSettled[next]) continue;
      this.isSettled[next] = 1;
      met += 1;
      this.spread(next);
    }
    return this.isSettled[place] === 1;
  }

  spread(from) {
    const { map, width, height } = this, x = from % width, y = (from - x) / width;
    for (let way = 0; way < 8; way += 1) {
      const [dx, dy, length] = STEPS[way], toX = x + dx, toY = y + dy;
      if (toX < 0 || toY < 0 || toX >= width || toY >= height) continue;
      const to = toY * width + toX;
      if (this.isSettled[to]) continue;
      const edge = map.data[(toY + this.top) * map.width + toX + this.left];
      const cost = this.cost[from] + length * COSTS[edge];
      if (cost >= this.cost[to]) continue;
      this.cost[to] = cost;
      this.step[to] = way;
      this.waiting += 1;
      this.buckets[cost % DEAREST].push(to);
    }
  }

  /**
   * @param {Place} goal a corner @param {number} most places that may be met now
   * @returns {Place[] | null} the corners where the way turns, and the goal; null: not found yet
   */
  to(goal, most) {
    const x = Math.max(0, Math.min(this.width - 1, goal.x - this.left));
    const y = Math.max(0, Math.min(this.height - 1, goal.y - this.top));
    let place = y * this.width + x;
    if (!this.reach(place, most)) return null;
    const found = [goal];
    for (let before = -1; place !== this.start;) {
      const way = this.step[place], [dx, dy] = STEPS[way];
      if (way !== before) {
        const column = place % this.width, row = (place - column) / this.width;
        found.push({ x: column + this.left, y: row + this.top });
      }
      before = way;
      place -= dy * this.width + dx;
    }
    return found.reverse();
  }
}

/** How much of an edge runs through each corner of an image's pixels. */
export class EdgeMap {
  /** @param {Uint8Array} data (height + 1) x (width + 1) of an image of that size */
  constructor(data, width, height) {
    this.data = data;
    this.width = width + 1;
    this.height = height + 1;
  }

  /** @param {string} path of the image @returns {Promise<EdgeMap>} */
  static async of(path, { width, height }) {
    return new EdgeMap(await getPacked(`${path}/edges`), width, height);
  }

  /** @returns {Place} the corner with the sharpest edge within a radius, the nearer one of two */
  sharpest({ x, y }, radius) {
    const reach = Math.max(1, Math.min(16, Math.round(radius)));
    const middle = {
      x: Math.max(0, Math.min(this.width - 1, Math.round(x))),
      y: Math.max(0, Math.min(this.height - 1, Math.round(y))),
    };
    let best = middle, most = 0;
    for (let dy = -reach; dy <= reach; dy += 1) {
      for (let dx = -reach; dx <= reach; dx += 1) {
        const column = middle.x + dx, row = middle.y + dy, apart = Math.hypot(dx, dy);
        if (apart > reach || column < 0 || row < 0 || column >= this.width || row >= this.height) {
          continue;
        }
        const worth = this.data[row * this.width + column] - apart;
        if (worth > most) [best, most] = [{ x: column, y: row }, worth];
      }
    }
    return best;
  }
}

/** An outline that is clicked corner by corner and follows the edges in between. */
export class SnappingLine {
  /** @param {EdgeMap} map */
  constructor(map) {
    this.map = map;
    /** @type {Place[]} where it was clicked */
    this.corners = [];
    /** @type {Place[][]} to each corner but the first the way from the one before */
    this.parts = [];
    this.ways = null;
  }

  /** @param {Place} place @param {number} radius within which it jumps to an edge */
  add(place, radius) {
    const corner = this.map.sharpest(place, radius), last = this.corners.at(-1);
    if (last && last.x === corner.x && last.y === corner.y) return;
    if (this.ways) this.parts.push(this.ways.to(corner, Infinity));
    this.corners.push(corner);
    this.begin();
  }

  takeBack() {
    this.corners.pop();
    this.parts.pop();
    this.begin();
  }

  begin() {
    const last = this.corners.at(-1);
    this.ways = last ? new Ways(this.map, last.x, last.y) : null;
  }

  /** @returns {Place[]} what is drawn already */
  get places() {
    return [...this.corners.slice(0, 1), ...this.parts.flat()];
  }

  /** @returns {Place[] | null} the way from the last corner to a place; null: not found yet */
  ahead(place, radius) {
    return this.ways?.to(this.map.sharpest(place, radius), MET_AT_ONCE) ?? null;
  }

  /** @returns {Place[]} the outline, closed along the edges */
  closed() {
    return [...this.places, ...this.ways.to(this.corners[0], Infinity)];
  }
}

/** A scribble, and the crop of the image in which colours decide what of it is taken. */
export class Scribble {
  /**
   * @param {Place} place where it begins @param {number} size of the brush
   * @param {boolean} adds whether it makes foreground; else it makes background
   */
  constructor(place, size, adds) {
    this.places = [place];
    this.size = size;
    this.adds = adds;
  }

  /**
   * Say of each pixel around it what is certain: all but what it may change.
   * @param {Raster} raster
   * @returns {Crop | null} null: it lies outside of the image
   */
  crop(raster) {
    const xs = this.places.map((place) => place.x), ys = this.places.map((place) => place.y);
    const extent = this.size + Math.max(
      Math.max(...xs) - Math.min(...xs), Math.max(...ys) - Math.min(...ys),
    );
    const margin = this.size / 2 + Math.max(LEAST_MARGIN, MARGIN_SHARE * extent);
    const left = Math.max(0, Math.floor(Math.min(...xs) - margin));
    const top = Math.max(0, Math.floor(Math.min(...ys) - margin));
    const width = Math.min(raster.width, Math.ceil(Math.max(...xs) + margin)) - left;
    const height = Math.min(raster.height, Math.ceil(Math.max(...ys) + margin)) - top;
    if (width <= 0 || height <= 0) return null;
    const inside = new Raster(width, height, new Uint8Array(width * height));
    let before = this.places[0];
    for (const place of this.places) {
      inside.capsule(
        before.x - left, before.y - top, place.x - left, place.y - top, this.size, true,
      );
      before = place;
    }
    const labels = inside.data;
    for (let row = 0, at = 0; row < height; row += 1) {
      const start = (top + row) * raster.width + left;
      for (let column = 0; column < width; column += 1, at += 1) {
        const is = raster.data[start + column] & FOREGROUND;
        if (!labels[at] || is === Number(this.adds)) labels[at] = is;
        else labels[at] = this.adds ? 3 : 2;
      }
    }
    return { left, top, width, height, labels };
  }

  /**
   * Ask the server which of the pixels that it may change it should.
   * @param {string} path of the image @param {Crop} crop @param {AbortSignal} signal
   * @returns {Promise<{foreground: Uint8Array, step: number}>} bits, row by row
   */
  async ask(path, crop, signal) {
    const { labels, ...place } = crop;
    const content = { ...place, labels: await deflateToText(labels) };
    const answer = await sendJson(`${path}/cut`, content, "POST", signal);
    return { foreground: await inflateText(answer.foreground), step: answer.step };
  }

  /** Change what was found; a stroke of the raster has begun. */
  apply(raster, { left, top, width, height, labels }, foreground) {
    const open = this.adds ? 3 : 2, value = this.adds ? FOREGROUND | BY_HAND : BY_HAND;
    raster.touch(left, top, left + width, top + height);
    for (let at = 0; at < labels.length; at += 1) {
      const bit = (foreground[at >> 3] >> (7 - (at & 7))) & 1;
      if (labels[at] !== open || bit !== Number(this.adds)) continue;
      const column = at % width, row = (at - column) / width;
      raster.data[(top + row) * raster.width + left + column] = value;
    }
  }
}
