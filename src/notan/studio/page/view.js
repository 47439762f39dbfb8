/**
 * The view: image and overlays on one canvas, at any zoom. It only shows; the truth is the raster.
 *
 * The overlay is kept in tiles; a stroke has only the rectangles that it changed drawn anew. The
 * canvas has a pixel for each of the screen's, whatever the browser's zoom is. Of an image that is
 * shown much smaller than it is, image and overlay are kept smaller too: every second, fourth, ...
 * pixel of the mask is coloured, so that a frame costs what the screen has, not what the image has.
 */

import { FOREGROUND, TILE } from "./raster.js";

export const LEAST_SCALE = 0.02, MOST_SCALE = 40;

/** Of the truth: the bit of what the data leave out of the score. */
export const LEFT_OUT = 2;

const rgba = (red, green, blue, alpha = 255) =>
  ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;

/** Of Okabe and Ito's palette, told apart by colour-blind readers. */
const MASK = [240, 165, 0], MODEL = [204, 121, 167], TRUTH = [86, 180, 233];
const FALSE_ALARM = [213, 70, 0], MISSED = [0, 114, 190], RIGHT = [0, 158, 115];

/**
 * A part of the image of which every step-th pixel is shown.
 * @typedef {{left: number, top: number, width: number, height: number, step: number}} Part
 */

/**
 * How the overlay looks.
 * @typedef {{layer: "mask" | "model" | "truth" | "errors" | "probability",
 *   style: "fill" | "outline" | "isolate", opacity: number, isHidden: boolean}} Look
 */

export class View {
  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
    /** @type {Look} */
    this.look = { layer: "mask", style: "fill", opacity: 0.45, isHidden: false };
    this.scale = 1;
    this.x = 0;
    this.y = 0;
    this.isFitted = true;
    /** @type {(context: CanvasRenderingContext2D, view: View) => void} */
    this.drawMore = () => {};
    this.scheduled = 0;
    this.isWhole = true;
    /** @type {number[][]} what of the screen is to be drawn anew, unless all of it is */
    this.parts = [];
    this.clear();
    new ResizeObserver(() => this.resize()).observe(canvas.parentElement);
  }

  clear() {
    /** @type {ImageBitmap[]} the image, at a half of its size, at a quarter, ... */
    this.bitmaps = [];
    this.raster = null;
    this.truth = null;
    this.model = null;
    this.probability = null;
    /** @type {Map<number, HTMLCanvasElement>} */
    this.tiles = new Map();
    this.draw();
  }

  /**
   * @param {ImageBitmap} bitmap @param {import("./raster.js").Raster} raster
   * @param {Uint8Array} model its mask @param {Uint8Array | null} truth
   * @param {Uint8Array} probability
   */
  show(bitmap, raster, model, truth, probability) {
    this.bitmaps = [bitmap];
    this.raster = raster;
    this.model = model;
    this.truth = truth;
    this.probability = probability;
    this.tiles.clear();
    this.fit();
    this.shrink(this.bitmaps);
  }

  /** Keep the image at smaller sizes too, as far as a screen may need them. */
  async shrink(bitmaps) {
    for (let { width, height } = bitmaps[0]; Math.min(width, height) > 2 * TILE;) {
      [width, height] = [Math.ceil(width / 2), Math.ceil(height / 2)];
      bitmaps.push(await createImageBitmap(bitmaps.at(-1), {
        resizeWidth: width, resizeHeight: height, resizeQuality: "medium",
      }));
      if (this.bitmaps !== bitmaps) return;
    }
  }

  /** @param {Partial<Look>} change */
  setLook(change) {
    Object.assign(this.look, change);
    this.redrawOverlay();
  }

  redrawOverlay() {
    this.tiles.clear();
    this.draw();
  }

  resize() {
    const box = this.canvas.parentElement.getBoundingClientRect();
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.max(1, Math.round(box.width * ratio));
    this.canvas.height = Math.max(1, Math.round(box.height * ratio));
    this.width = box.width;
    this.height = box.height;
    if (this.isFitted) this.fit();
    this.draw();
  }

  /** Show the whole image. */
  fit() {
    this.isFitted = true;
    if (!this.raster || !this.width) return;
    const { width, height } = this.raster, margin = Math.min(24, this.width / 20);
    const room = Math.min((this.width - 2 * margin) / width, (this.height - 2 * margin) / height);
    this.setScale(Math.max(LEAST_SCALE, Math.min(8, room)));
    this.x = (this.width - width * this.scale) / 2;
    this.y = (this.height - height * this.scale) / 2;
    this.draw();
  }

  setScale(scale) {
    const { thickness, level } = this;
    this.scale = Math.max(LEAST_SCALE, Math.min(MOST_SCALE, scale));
    if (this.thickness !== thickness || this.level !== level) this.tiles.clear();
  }

  /** How many of the screen's pixels one of the image is wide. */
  get zoom() {
    return this.scale * (window.devicePixelRatio || 1);
  }

  /** How often the image could be halved and still have a pixel for each of the screen's. */
  get level() {
    return Math.max(0, Math.min(5, Math.floor(-Math.log2(this.zoom))));
  }

  /** Of the outline, in pixels of the image: two of the screen at least. */
  get thickness() {
    return Math.max(1, Math.round(1.6 / this.scale));
  }

  /**
   * Zoom so that what lies under a point stays there.
   * @param {number} scale @param {number} x of the point, in CSS pixels @param {number} y
   */
  zoomAt(scale, x = this.width / 2, y = this.height / 2) {
    const at = this.toImage(x, y);
    this.isFitted = false;
    this.setScale(scale);
    this.x = x - at.x * this.scale;
    this.y = y - at.y * this.scale;
    this.keepInSight();
  }

  pan(dx, dy) {
    this.isFitted = false;
    this.x += dx;
    this.y += dy;
    this.keepInSight();
  }

  /** Leave a part of the image on the screen, so that nobody loses it. */
  keepInSight() {
    if (!this.raster) return;
    const across = this.raster.width * this.scale, down = this.raster.height * this.scale;
    const rest = 48;
    this.x = Math.max(rest - across, Math.min(this.width - rest, this.x));
    this.y = Math.max(rest - down, Math.min(this.height - rest, this.y));
    this.draw();
  }

  /** @returns {{x: number, y: number}} the place in the image of a point in CSS pixels */
  toImage(x, y) {
    return { x: (x - this.x) / this.scale, y: (y - this.y) / this.scale };
  }

  /** @param {Uint8Array} model another mask of the model */
  setModel(model) {
    this.model = model;
    this.redrawOverlay();
  }

  /** Draw everything at the next frame. */
  draw() {
    this.isWhole = true;
    this.drawChange();
  }

  /**
   * Draw at the next frame what changed of the raster, and a part of the screen.
   * @param {[number, number, number, number]} [part] left, top, right, bottom in CSS pixels
   */
  drawChange(part) {
    if (part) this.parts.push(part);
    if (!this.scheduled) this.scheduled = requestAnimationFrame(() => this.drawNow());
  }

  drawNow() {
    this.scheduled = 0;
    this.context.save();
    if (!this.isWhole) this.clipToParts();
    this.drawAll();
    this.context.restore();
    this.isWhole = false;
    this.parts.length = 0;
  }

  /** Leave what did not change as it is: of a large image the whole costs a frame. */
  clipToParts() {
    const ratio = window.devicePixelRatio || 1, reach = this.thickness + 2;
    const changed = [...(this.raster?.dirty.values() ?? [])].map(([left, top, right, bottom]) => [
      (left - reach) * this.scale + this.x, (top - reach) * this.scale + this.y,
      (right + reach) * this.scale + this.x, (bottom + reach) * this.scale + this.y,
    ]);
    this.context.setTransform(1, 0, 0, 1, 0, 0);
    this.context.beginPath();
    for (const [left, top, right, bottom] of [...this.parts, ...changed]) {
      const x = Math.floor(left * ratio), y = Math.floor(top * ratio);
      this.context.rect(x, y, Math.ceil(right * ratio) - x, Math.ceil(bottom * ratio) - y);
    }
    this.context.clip();
  }

  drawAll() {
    const { context, canvas } = this;
    const ratio = window.devicePixelRatio || 1;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = getComputedStyle(canvas).getPropertyValue("--canvas") || "#222";
    context.fillRect(0, 0, canvas.width, canvas.height);
    if (!this.bitmaps.length || !this.raster) return;
    const { zoom } = this, { width, height } = this.raster;
    context.setTransform(zoom, 0, 0, zoom, this.x * ratio, this.y * ratio);
    context.imageSmoothingEnabled = zoom < 1;
    context.imageSmoothingQuality = "medium";
    const bitmap = this.bitmaps[Math.min(this.level, this.bitmaps.length - 1)];
    context.drawImage(bitmap, 0, 0, width, height);
    if (!this.look.isHidden) this.drawOverlay(context);
    this.raster.dirty.clear();
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.drawMore(context, this);
  }

  drawOverlay(context) {
    const { raster } = this;
    this.refreshDirty();
    const first = this.toImage(0, 0), last = this.toImage(this.width, this.height);
    const left = Math.max(0, Math.floor(first.x / TILE));
    const top = Math.max(0, Math.floor(first.y / TILE));
    const right = Math.min(raster.across, Math.ceil(last.x / TILE));
    const bottom = Math.min(raster.down, Math.ceil(last.y / TILE));
    const isFlat = this.look.layer === "probability" || this.look.style === "isolate";
    context.imageSmoothingEnabled = this.zoom < 1 && isFlat;
    const step = 2 ** this.level;
    for (let row = top; row < bottom; row += 1) {
      for (let column = left; column < right; column += 1) {
        const tile = row * raster.across + column, canvas = this.tiles.get(tile)
          ?? this.makeTile(tile);
        context.drawImage(
          canvas, column * TILE, row * TILE, canvas.width * step, canvas.height * step,
        );
      }
    }
  }

  /** Draw anew what changed in the tiles that there are, and what an outline there depends on. */
  refreshDirty() {
    const { raster } = this, reach = this.look.style === "isolate" ? 0 : this.thickness;
    for (const [left, top, right, bottom] of raster.dirty.values()) {
      const x0 = Math.max(0, left - reach), y0 = Math.max(0, top - reach);
      const x1 = Math.min(raster.width, right + reach);
      const y1 = Math.min(raster.height, bottom + reach);
      for (let row = Math.floor(y0 / TILE); row * TILE < y1; row += 1) {
        for (let column = Math.floor(x0 / TILE); column * TILE < x1; column += 1) {
          const tile = row * raster.across + column, canvas = this.tiles.get(tile);
          if (!canvas) continue;
          this.paint(
            canvas, column * TILE, row * TILE,
            Math.max(x0, column * TILE), Math.max(y0, row * TILE),
            Math.min(x1, (column + 1) * TILE), Math.min(y1, (row + 1) * TILE),
          );
        }
      }
    }
  }

  makeTile(tile) {
    const { left, top, width, height } = this.raster.placeOf(tile), step = 2 ** this.level;
    const canvas = document.createElement("canvas");
    canvas.width = Math.ceil(width / step);
    canvas.height = Math.ceil(height / step);
    this.paint(canvas, left, top, left, top, left + width, top + height);
    this.tiles.set(tile, canvas);
    return canvas;
  }

  /** Colour a rectangle of a tile that lies at a place of the image. */
  paint(canvas, left, top, x0, y0, x1, y1) {
    const step = 2 ** this.level;
    const x = Math.floor((x0 - left) / step), y = Math.floor((y0 - top) / step);
    const width = Math.ceil((x1 - left) / step) - x, height = Math.ceil((y1 - top) / step) - y;
    const pixels = new ImageData(width, height);
    const colours = new Uint32Array(pixels.data.buffer);
    this.colour(colours, { left: left + x * step, top: top + y * step, width, height, step });
    canvas.getContext("2d").putImageData(pixels, x, y);
  }

  /**
   * Fill the colours of a rectangle of the overlay.
   * @param {Uint32Array} colours
   * @param {Part} part
   */
  colour(colours, part) {
    const { layer } = this.look, alpha = Math.round(255 * this.look.opacity);
    if (layer === "probability") this.colourProbability(colours, part, alpha);
    else if (layer === "errors") this.colourErrors(colours, part, alpha);
    else {
      const [source, hue] = {
        mask: [this.raster.data, MASK], model: [this.model, MODEL], truth: [this.truth, TRUTH],
      }[layer];
      this.colourMask(colours, part, source, hue);
    }
  }

  colourErrors(colours, part, alpha) {
    const table = [[0, 0, 0, 0], [...FALSE_ALARM, 235], [...MISSED, 235], [...RIGHT, alpha >> 1]]
      .map((colour) => rgba(...colour));
    const { model, truth } = this, right = truth ?? this.raster.data;
    const code = (place) => (truth && truth[place] & LEFT_OUT
      ? 0 : model[place] | ((right[place] & FOREGROUND) << 1));
    this.colourBy(colours, part, (place) => table[code(place)]);
  }

  colourProbability(colours, part, alpha) {
    const table = Uint32Array.from({ length: 256 }, (_, value) => {
      const share = value / 255;
      return rgba(Math.round(255 * Math.min(1, share * 1.6)), Math.round(230 * share * share),
        Math.round(70 + 90 * share * (1 - share)), Math.max(alpha, 90));
    });
    const { probability } = this;
    this.colourBy(colours, part, (place) => table[probability[place]]);
  }

  colourBy(colours, { left, top, width, height, step }, colourOf) {
    for (let row = 0, at = 0; row < height; row += 1) {
      let place = (top + row * step) * this.raster.width + left;
      for (let column = 0; column < width; column += 1, at += 1, place += step) {
        colours[at] = colourOf(place);
      }
    }
  }

  /** Written out: while somebody paints it meets every pixel that changed, each frame. */
  colourMask(colours, { left, top, width, height, step }, source, [red, green, blue]) {
    const { style, opacity } = this.look;
    const line = rgba(red, green, blue, 255);
    const fill = style === "fill" ? rgba(red, green, blue, Math.round(255 * opacity)) : 0;
    const outside = style === "isolate" ? rgba(18, 20, 24, 245) : 0;
    const { width: across, height: down } = this.raster, reach = this.thickness;
    const hasLine = style !== "isolate", above = reach * across;
    for (let row = 0, at = 0; row < height; row += 1) {
      const y = top + row * step, isRim = y < reach || y + reach >= down;
      let place = y * across + left;
      for (let x = left; x < left + width * step; x += step, at += 1, place += step) {
        if ((source[place] & FOREGROUND) === 0) {
          colours[at] = outside;
          continue;
        }
        const isEdge = hasLine && (
          isRim || x < reach || x + reach >= across
          || (source[place - reach] & source[place + reach]
            & source[place - above] & source[place + above] & FOREGROUND) === 0
        );
        colours[at] = isEdge ? line : fill;
      }
    }
  }
}
