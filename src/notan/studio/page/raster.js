/**
 * The mask that is being corrected: its pixels, what a stroke changed of them, and how shapes fill
 * them. Nothing is ever read back from a canvas: neither screen scaling nor zoom changes a pixel.
 *
 * A byte for each pixel: bit 0 is the foreground, bit 1 says that a person decided this pixel. The
 * server knows the same bytes (raster.py).
 */

export const TILE = 256;
export const FOREGROUND = 1;
export const BY_HAND = 2;

const PLANE_BYTES = (TILE * TILE) / 8;
/** Pixels are met four at a time: the lowest bit of each byte of a word, and where they go. */
const LOWEST = 0x01010101, GATHER = 0x80402010;
/** Of four bits of a plane, the highest first, the bytes of their four pixels. */
const SPREAD = Uint32Array.from({ length: 16 }, (_, bits) =>
  (bits >> 3) | (((bits >> 2) & 1) << 8) | (((bits >> 1) & 1) << 16) | ((bits & 1) << 24));

/** @returns {number} the lowest bits of eight pixels, given as two words, as a byte of a plane */
const gather = (one, other) =>
  ((Math.imul(one & LOWEST, GATHER) >>> 28) << 4) | (Math.imul(other & LOWEST, GATHER) >>> 28);

/** @returns {Uint32Array} the same bytes, four at a time */
const wordsOf = (bytes) => new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length >> 2);

/**
 * What a stroke changed: the exclusive or of before and after, in the tiles that it touched.
 * @typedef {{tool: string, tiles: number[], planes: Uint8Array, goesOn?: boolean}} Change
 */

export class Raster {
  /**
   * @param {number} width
   * @param {number} height
   * @param {Uint8Array} data a byte for each pixel, row by row
   */
  constructor(width, height, data) {
    this.width = width;
    this.height = height;
    this.data = data;
    this.across = Math.ceil(width / TILE);
    this.down = Math.ceil(height / TILE);
    /** Tiles to be drawn anew: for each the left, top, right and bottom of what changed. */
    this.dirty = new Map();
    /** @type {Map<number, Uint8Array>} tiles of the stroke in progress as they were before it */
    this.before = new Map();
    /** @type {Uint8Array[]} copies that nobody needs any more; new ones would cost a pause */
    this.spare = [];
    this.scratch = new Uint8Array(TILE * TILE);
    this.isOpen = false;
  }

  /** Begin a stroke: from now on, tiles are copied before they change. */
  begin() {
    this.letGo();
    this.isOpen = true;
  }

  /** End what a stroke holds. */
  letGo() {
    this.spare.push(...this.before.values());
    this.before.clear();
    this.isOpen = false;
  }

  /**
   * Copy the tiles under a rectangle, once for each stroke, and have it drawn anew.
   * @param {number} left @param {number} top @param {number} right excluded @param {number} bottom
   */
  touch(left, top, right, bottom) {
    const x0 = Math.max(0, left), y0 = Math.max(0, top);
    const x1 = Math.min(this.width, right), y1 = Math.min(this.height, bottom);
    if (x0 >= x1 || y0 >= y1) return;
    for (let row = Math.floor(y0 / TILE); row * TILE < y1; row += 1) {
      for (let column = Math.floor(x0 / TILE); column * TILE < x1; column += 1) {
        const tile = row * this.across + column;
        if (this.isOpen && !this.before.has(tile)) {
          this.before.set(tile, this.copyOf(tile, this.spare.pop()));
        }
        this.markDirty(
          tile,
          Math.max(x0, column * TILE), Math.max(y0, row * TILE),
          Math.min(x1, (column + 1) * TILE), Math.min(y1, (row + 1) * TILE),
        );
      }
    }
  }

  /** Touch the whole image. */
  touchAll() {
    this.touch(0, 0, this.width, this.height);
  }

  markDirty(tile, left, top, right, bottom) {
    const known = this.dirty.get(tile);
    if (!known) {
      this.dirty.set(tile, [left, top, right, bottom]);
      return;
    }
    known[0] = Math.min(known[0], left);
    known[1] = Math.min(known[1], top);
    known[2] = Math.max(known[2], right);
    known[3] = Math.max(known[3], bottom);
  }

  /** @returns {{left: number, top: number, width: number, height: number}} where a tile lies */
  placeOf(tile) {
    const left = (tile % this.across) * TILE, top = Math.floor(tile / this.across) * TILE;
    return {
      left, top,
      width: Math.min(TILE, this.width - left), height: Math.min(TILE, this.height - top),
    };
  }

  /** @returns {Uint8Array} a tile's pixels; beyond the image's edge they are 0 */
  copyOf(tile, copy = new Uint8Array(TILE * TILE)) {
    const { left, top, width, height } = this.placeOf(tile);
    if (width < TILE || height < TILE) copy.fill(0);
    for (let row = 0; row < height; row += 1) {
      const start = (top + row) * this.width + left;
      copy.set(this.data.subarray(start, start + width), row * TILE);
    }
    return copy;
  }

  /** Put a tile's pixels back, and have it drawn anew. */
  putTile(tile, copy) {
    const { left, top, width, height } = this.placeOf(tile);
    for (let row = 0; row < height; row += 1) {
      const part = copy.subarray(row * TILE, row * TILE + width);
      this.data.set(part, (top + row) * this.width + left);
    }
    this.markDirty(tile, left, top, left + width, top + height);
  }

  /**
   * End the stroke.
   * @param {string} tool what made it
   * @returns {Change | null} what it changed; null: nothing
   */
  commit(tool) {
    const touched = [...this.before.keys()].sort((one, other) => one - other), tiles = [];
    const planes = new Uint8Array(touched.length * 2 * PLANE_BYTES);
    for (const tile of touched) {
      const part = planes.subarray(tiles.length * 2 * PLANE_BYTES);
      if (this.writePlanes(tile, this.before.get(tile), part)) tiles.push(tile);
    }
    this.letGo();
    if (!tiles.length) return null;
    return { tool, tiles, planes: planes.slice(0, tiles.length * 2 * PLANE_BYTES) };
  }

  /** Write both planes of what changed in a tile. @returns {boolean} whether anything did */
  writePlanes(tile, before, planes) {
    const old = wordsOf(before), now = wordsOf(this.copyOf(tile, this.scratch));
    let any = false;
    for (let byte = 0; byte < PLANE_BYTES; byte += 1) {
      const one = old[2 * byte] ^ now[2 * byte], other = old[2 * byte + 1] ^ now[2 * byte + 1];
      if (!(one | other)) continue;
      any = true;
      planes[byte] = gather(one, other);
      planes[PLANE_BYTES + byte] = gather(one >>> 1, other >>> 1);
    }
    return any;
  }

  /** Take back the stroke in progress. */
  cancel() {
    for (const [tile, copy] of this.before) this.putTile(tile, copy);
    this.letGo();
  }

  /**
   * Make a change, or take it back: both are the same.
   * @param {Change} change
   */
  flip({ tiles, planes }) {
    tiles.forEach((tile, place) => {
      const copy = this.copyOf(tile, this.scratch), words = wordsOf(copy);
      const first = place * 2 * PLANE_BYTES, second = first + PLANE_BYTES;
      for (let byte = 0; byte < PLANE_BYTES; byte += 1) {
        const one = planes[first + byte], other = planes[second + byte];
        if (!(one | other)) continue;
        words[2 * byte] ^= SPREAD[one >> 4] | (SPREAD[other >> 4] << 1);
        words[2 * byte + 1] ^= SPREAD[one & 15] | (SPREAD[other & 15] << 1);
      }
      this.putTile(tile, copy);
    });
  }

  /**
   * Fill from a pixel to another of one row; the caller has touched them.
   * @param {number} y @param {number} first @param {number} last included @param {number} value
   */
  span(y, first, last, value) {
    if (y < 0 || y >= this.height) return;
    const from = Math.max(0, first), to = Math.min(this.width - 1, last);
    if (from <= to) this.data.fill(value, y * this.width + from, y * this.width + to + 1);
  }

  /**
   * Paint all pixels whose centre lies within half a brush of a line: no beads, no staircase.
   * A brush of one pixel draws Bresenham's line.
   * @param {number} x0 @param {number} y0 @param {number} x1 @param {number} y1 in pixels
   * @param {number} size the brush's diameter
   * @param {boolean} isForeground whether it paints or erases
   */
  capsule(x0, y0, x1, y1, size, isForeground) {
    const value = isForeground ? FOREGROUND | BY_HAND : BY_HAND;
    const radius = size / 2;
    const top = Math.floor(Math.min(y0, y1) - radius), left = Math.floor(Math.min(x0, x1) - radius);
    const right = Math.ceil(Math.max(x0, x1) + radius) + 1;
    const bottom = Math.ceil(Math.max(y0, y1) + radius) + 1;
    this.touch(left, top, right, bottom);
    if (size <= 1) {
      this.line(Math.floor(x0), Math.floor(y0), Math.floor(x1), Math.floor(y1), value);
      return;
    }
    for (let y = Math.max(0, top); y < Math.min(this.height, bottom); y += 1) {
      const found = acrossCapsule(y + 0.5, x0, y0, x1, y1, radius);
      if (found) this.span(y, Math.ceil(found[0] - 0.5), Math.floor(found[1] - 0.5), value);
    }
  }

  line(x0, y0, x1, y1, value) {
    const dx = Math.abs(x1 - x0), dy = -Math.abs(y1 - y0);
    const stepX = x0 < x1 ? 1 : -1, stepY = y0 < y1 ? 1 : -1;
    let error = dx + dy, x = x0, y = y0;
    for (;;) {
      this.span(y, x, x, value);
      if (x === x1 && y === y1) return;
      const twice = 2 * error;
      if (twice >= dy) { error += dy; x += stepX; }
      if (twice <= dx) { error += dx; y += stepY; }
    }
  }

  /**
   * Fill a polygon: the pixels whose centres it holds, by the even-odd rule.
   * @param {{x: number, y: number}[]} points @param {boolean} isForeground
   */
  polygon(points, isForeground) {
    const value = isForeground ? FOREGROUND | BY_HAND : BY_HAND;
    const xs = points.map((point) => point.x), ys = points.map((point) => point.y);
    const top = Math.max(0, Math.floor(Math.min(...ys)));
    const bottom = Math.min(this.height, Math.ceil(Math.max(...ys)) + 1);
    this.touch(Math.floor(Math.min(...xs)), top, Math.ceil(Math.max(...xs)) + 1, bottom);
    for (let y = top; y < bottom; y += 1) {
      const crossings = crossingsOf(points, y + 0.5);
      for (let place = 0; place + 1 < crossings.length; place += 2) {
        const first = Math.ceil(crossings[place] - 0.5);
        this.span(y, first, Math.ceil(crossings[place + 1] - 0.5) - 1, value);
      }
    }
  }

  /** @returns {number} the CRC-32 of the foreground's bits, by which page and disk agree */
  checksum() {
    return crc32(packPlane(this.data));
  }
}

/** @returns {[number, number] | null} where a row's middle lies in a capsule */
function acrossCapsule(y, x0, y0, x1, y1, radius) {
  let left = Infinity, right = -Infinity;
  const take = (x) => { left = Math.min(left, x); right = Math.max(right, x); };
  for (const [x, centre] of [[x0, y0], [x1, y1]]) {
    const square = radius * radius - (y - centre) * (y - centre);
    if (square >= 0) {
      take(x - Math.sqrt(square));
      take(x + Math.sqrt(square));
    }
  }
  const length = Math.hypot(x1 - x0, y1 - y0);
  if (length > 0) {
    const sideX = (-(y1 - y0) / length) * radius, sideY = ((x1 - x0) / length) * radius;
    for (const sign of [1, -1]) {
      const from = y0 + sign * sideY, to = y1 + sign * sideY;
      if (from !== to && (y - from) * (y - to) <= 0) {
        take(x0 + sign * sideX + ((y - from) / (to - from)) * (x1 - x0));
      }
    }
  }
  return left <= right ? [left, right] : null;
}

function crossingsOf(points, y) {
  const found = [];
  points.forEach((point, place) => {
    const next = points[(place + 1) % points.length];
    if (point.y <= y !== next.y <= y) {
      found.push(point.x + ((y - point.y) / (next.y - point.y)) * (next.x - point.x));
    }
  });
  return found.sort((one, other) => one - other);
}

/**
 * @param {Uint8Array} data of each pixel a byte, of which the lowest bit counts
 * @returns {Uint8Array} these bits row by row without gaps, the first the highest of its byte
 */
export function packPlane(data) {
  const bits = new Uint8Array(Math.ceil(data.length / 8));
  const words = wordsOf(data), whole = data.length >> 3;
  for (let byte = 0; byte < whole; byte += 1) {
    bits[byte] = gather(words[2 * byte], words[2 * byte + 1]);
  }
  for (let place = 8 * whole; place < data.length; place += 1) {
    bits[whole] |= (data[place] & 1) << (7 - (place & 7));
  }
  return bits;
}

/**
 * @param {Uint8Array} packed both planes of an image, as the server packs them
 * @param {number} pixels
 * @returns {Uint8Array} a byte for each pixel
 */
export function unpack(packed, pixels) {
  const second = Math.ceil(pixels / 8), words = new Uint32Array(2 * second);
  for (let byte = 0; byte < second; byte += 1) {
    const one = packed[byte], other = packed[second + byte];
    words[2 * byte] = SPREAD[one >> 4] | (SPREAD[other >> 4] << 1);
    words[2 * byte + 1] = SPREAD[one & 15] | (SPREAD[other & 15] << 1);
  }
  return new Uint8Array(words.buffer, 0, pixels);
}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, number) => {
  let value = number;
  for (let bit = 0; bit < 8; bit += 1) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

/** @param {Uint8Array} bytes @returns {number} as zlib's */
export function crc32(bytes) {
  let value = 0xffffffff;
  for (const byte of bytes) value = CRC_TABLE[(value ^ byte) & 255] ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}
