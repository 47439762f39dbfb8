/**
 * Regions of pixels: what the wand reaches over the model's probability, holes, the largest piece.
 * Plain arrays in, plain arrays out; nothing here knows of a screen.
 */

import { BY_HAND, FOREGROUND } from "./raster.js";

/**
 * What lies around a pixel and is about as likely as it, further and further.
 *
 * It grows by levels: a wider reach goes on where a narrower one stopped, and going back costs
 * nothing, so that dragging is smooth on a large image.
 */
export class Wand {
  /**
   * @param {Uint8Array} probability 0..255 of each pixel
   * @param {number} width @param {number} height
   * @param {number} start the pixel that was pointed at
   * @param {boolean} adds whether less likely pixels are taken in; else more likely ones
   */
  constructor(probability, width, height, start, adds) {
    this.probability = probability;
    this.width = width;
    this.height = height;
    this.from = probability[start];
    this.sign = adds ? 1 : -1;
    this.seen = new Uint8Array(probability.length);
    /** The pixels in the order in which they were reached. */
    this.order = new Uint32Array(4096);
    this.count = 0;
    /** How many were reached at each level. */
    this.counts = [];
    /** @type {number[][]} pixels that wait for a level */
    this.waiting = Array.from({ length: 256 }, () => []);
    this.waiting[0].push(start);
    this.seen[start] = 1;
  }

  /** @param {number} level 0..255 @returns {number} how many of `order` are within reach */
  reach(level) {
    while (this.counts.length <= level) this.grow(this.counts.length);
    return this.counts[level];
  }

  /** Take in all that joins at a level; written out, because it meets every pixel. */
  grow(level) {
    const { probability, seen, waiting, width, sign, from } = this;
    const stack = waiting[level], end = seen.length;
    const meet = (pixel) => {
      seen[pixel] = 1;
      const apart = sign * (from - probability[pixel]);
      waiting[apart > level ? apart : level].push(pixel);
    };
    while (stack.length) {
      const pixel = stack.pop(), x = pixel % width;
      this.add(pixel);
      if (x > 0 && !seen[pixel - 1]) meet(pixel - 1);
      if (x + 1 < width && !seen[pixel + 1]) meet(pixel + 1);
      if (pixel >= width && !seen[pixel - width]) meet(pixel - width);
      if (pixel + width < end && !seen[pixel + width]) meet(pixel + width);
    }
    this.counts.push(this.count);
  }

  add(pixel) {
    if (this.count === this.order.length) {
      const larger = new Uint32Array(2 * this.order.length);
      larger.set(this.order);
      this.order = larger;
    }
    this.order[this.count] = pixel;
    this.count += 1;
  }
}

/**
 * Make foreground of the background that the foreground encloses.
 * @param {import("./raster.js").Raster} raster
 */
export function fillHoles(raster) {
  const { data, width, height } = raster;
  const outside = new Uint8Array(data.length);
  const stack = [];
  const meet = (pixel) => {
    if (!outside[pixel] && !(data[pixel] & FOREGROUND)) {
      outside[pixel] = 1;
      stack.push(pixel);
    }
  };
  for (let x = 0; x < width; x += 1) { meet(x); meet((height - 1) * width + x); }
  for (let y = 0; y < height; y += 1) { meet(y * width); meet(y * width + width - 1); }
  while (stack.length) {
    const pixel = stack.pop(), x = pixel % width;
    if (x > 0) meet(pixel - 1);
    if (x + 1 < width) meet(pixel + 1);
    if (pixel >= width) meet(pixel - width);
    if (pixel + width < data.length) meet(pixel + width);
  }
  for (let pixel = 0; pixel < data.length; pixel += 1) {
    if (!outside[pixel] && !(data[pixel] & FOREGROUND)) data[pixel] = FOREGROUND | BY_HAND;
  }
}

/**
 * Make background of all foreground but its largest piece; corners connect.
 * @param {import("./raster.js").Raster} raster
 */
export function keepLargest(raster) {
  const { data, width, height } = raster;
  const labels = new Int32Array(data.length);
  let label = 0, best = 0, most = 0;
  const stack = [];
  const meet = (x, y) => {
    if (x < 0 || y < 0 || x >= width || y >= height) return;
    const pixel = y * width + x;
    if (labels[pixel] || !(data[pixel] & FOREGROUND)) return;
    labels[pixel] = label;
    stack.push(pixel);
  };
  for (let start = 0; start < data.length; start += 1) {
    if (labels[start] || !(data[start] & FOREGROUND)) continue;
    label += 1;
    let size = 0;
    meet(start % width, Math.floor(start / width));
    while (stack.length) {
      const pixel = stack.pop(), x = pixel % width, y = (pixel - x) / width;
      size += 1;
      for (let dy = -1; dy <= 1; dy += 1) for (let dx = -1; dx <= 1; dx += 1) meet(x + dx, y + dy);
    }
    if (size > most) [best, most] = [label, size];
  }
  for (let pixel = 0; pixel < data.length; pixel += 1) {
    if (labels[pixel] && labels[pixel] !== best) data[pixel] = BY_HAND;
  }
}
