/**
 * The editor: pointers, keys and tools turned into strokes on the raster.
 *
 * A stroke begins with the first touch, is shown as it grows, and becomes an entry of the journal
 * at its end, a long one in parts before that; Esc takes it back. One button has one meaning: the
 * left one uses the tool, the middle one (or Space) moves the image.
 */

import { EdgeMap, Scribble, SnappingLine } from "./edges.js";
import { drawMarks } from "./marks.js";
import { BY_HAND, FOREGROUND, TILE } from "./raster.js";
import { Wand, fillHoles, keepLargest } from "./regions.js";

export const TOOLS = {
  brush: { name: "Brush", help: "Paint foreground." },
  eraser: { name: "Eraser", help: "Paint background." },
  polygon: {
    name: "Polygon",
    help: "Click corner by corner; the first corner, a double click or Enter closes it. "
      + "Backspace takes the last one back.",
  },
  snap: {
    name: "Snap to edges",
    help: "Click along a thing: the outline follows its edges from click to click. The first "
      + "corner, a double click or Enter closes it. Backspace takes the last one back.",
  },
  cut: {
    name: "Cut by colour",
    help: "Paint over a thing and a little beyond: what looks like it is taken in, the rest and "
      + "all outside of your scribble stays.",
  },
  wand: {
    name: "Wand",
    help: "Press inside what the model half sees, and drag: to the right reaches further, to the "
      + "left less far.",
  },
};

const NOTHING_FOUND = "nothing there differs from what is around; paint beyond the thing's edge";
const FIRST_REACH = 40, REACH_PER_PIXEL = 0.6, MOST_REACH = 254;
/** How near the first corner closes a polygon, in CSS pixels; a finger is wider than a mouse. */
const CLOSING = { mouse: 9, pen: 12, touch: 24 };
const MOST_SIZE = 600;
/** So often what was painted of a stroke becomes an entry, so that no more of it can be lost. */
const PART_MILLISECONDS = 300;

/** @param {number} place 0..100 of a slider @returns {number} a brush size in pixels */
export const sizeOf = (place) => Math.max(1, Math.round(MOST_SIZE ** (place / 100)));

/** @param {number} size @returns {number} the slider's place for it */
export const placeOf = (size) => Math.round((100 * Math.log(size)) / Math.log(MOST_SIZE));

export class Editor {
  /**
   * @param {HTMLCanvasElement} canvas
   * @param {import("./view.js").View} view
   * @param {{onChange: () => void, onHint: (text: string) => void}} tell
   */
  constructor(canvas, view, tell) {
    this.canvas = canvas;
    this.view = view;
    this.tell = tell;
    this.tool = "brush";
    this.removes = false;
    this.size = 24;
    /** @type {import("./journal.js").Journal | null} */
    this.journal = null;
    this.raster = null;
    this.probability = null;
    this.cursor = null;
    this.points = [];
    this.stroke = null;
    /** @type {EdgeMap | null} of the image; null: it was not asked for yet */
    this.edges = null;
    /** @type {SnappingLine | null} the outline in progress */
    this.line = null;
    /** @type {Scribble | null} what is being scribbled, and then told apart */
    this.scribble = null;
    /** @type {AbortController | null} of a scribble that the server tells apart */
    this.asking = null;
    this.answered = Promise.resolve();
    this.isSpaceHeld = false;
    this.hasPen = false;
    /** @type {Map<number, {x: number, y: number}>} fingers on the screen */
    this.fingers = new Map();
    this.pinch = null;
    view.drawMore = (context) => drawMarks(context, this);
    this.listen();
  }

  /** Take an image; null: there is none. */
  open(journal, raster, probability) {
    this.cancel();
    this.journal = journal;
    this.raster = raster;
    this.probability = probability;
    this.cursor = null;
    this.edges = null;
    if (this.tool === "snap") this.wantEdges();
  }

  get isReady() {
    return this.journal !== null && !this.journal.isClosed;
  }

  setTool(tool) {
    this.cancel();
    this.tool = tool;
    if (tool === "brush") this.removes = false;
    if (tool === "eraser") this.removes = true;
    if (tool === "snap") this.wantEdges();
    this.tell.onChange();
    this.view.draw();
  }

  setRemoves(removes) {
    this.removes = removes;
    if (this.tool === "brush" && removes) this.tool = "eraser";
    else if (this.tool === "eraser" && !removes) this.tool = "brush";
    this.tell.onChange();
    this.view.draw();
  }

  setSize(size) {
    this.size = Math.max(1, Math.min(MOST_SIZE, Math.round(size)));
    this.tell.onChange();
    this.view.draw();
  }

  get isBrush() {
    return this.tool === "brush" || this.tool === "eraser";
  }

  /** Whether the tool has the size of a brush. */
  get hasSize() {
    return this.isBrush || this.tool === "cut";
  }

  listen() {
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerup", (event) => this.up(event));
    canvas.addEventListener("pointercancel", (event) => this.lost(event));
    canvas.addEventListener("pointerleave", () => { this.cursor = null; this.view.draw(); });
    canvas.addEventListener("dblclick", () => this.closePolygon());
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
  }

  /** @returns {{x: number, y: number}} a pointer's place on the canvas in CSS pixels */
  at(event) {
    const box = this.canvas.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  }

  wheel(event) {
    event.preventDefault();
    const { x, y } = this.at(event);
    const lines = event.deltaMode === 1 ? 18 : 1;
    const delta = Math.max(-240, Math.min(240, event.deltaY * lines));
    this.view.zoomAt(this.view.scale * Math.exp(-delta * 0.0022), x, y);
    this.tell.onChange();
  }

  down(event) {
    const at = this.at(event);
    this.canvas.setPointerCapture(event.pointerId);
    if (event.pointerType === "pen") this.hasPen = true;
    if (event.pointerType === "touch") {
      this.fingers.set(event.pointerId, at);
      if (this.fingers.size > 1) {
        this.cancel();
        this.startPinch();
        return;
      }
    }
    const movesOnly = event.pointerType === "touch" && this.hasPen;
    if (event.button === 1 || this.isSpaceHeld || movesOnly) {
      event.preventDefault();
      this.stroke = { kind: "pan", pointer: event.pointerId, last: at };
    } else if (event.button === 0 && !this.stroke && this.isReady && this.raster) {
      this.startTool(event, at);
    }
  }

  startTool(event, at) {
    const place = this.view.toImage(at.x, at.y);
    if (event.altKey && this.hasSize) {
      this.stroke = { kind: "size", pointer: event.pointerId, from: at.x, size: this.size };
    } else if (this.tool === "polygon" || this.tool === "snap") {
      this.addPoint(place, at, CLOSING[event.pointerType] ?? CLOSING.mouse);
    } else if (this.tool === "cut") {
      this.startCut(event.pointerId, place);
    } else if (this.tool === "wand") {
      this.startWand(event, at, place);
    } else {
      this.raster.begin();
      this.stroke = {
        kind: "paint", pointer: event.pointerId, last: place, began: performance.now(),
        parts: 0, timer: setInterval(() => this.endPart(), PART_MILLISECONDS),
      };
      this.paint(place, place);
    }
  }

  paint(from, to) {
    this.raster.capsule(from.x, from.y, to.x, to.y, this.size, !this.removes);
    this.view.drawChange();
  }

  move(event) {
    const at = this.at(event);
    if (this.fingers.has(event.pointerId)) this.fingers.set(event.pointerId, at);
    if (this.pinch) {
      this.movePinch();
      return;
    }
    const { stroke, cursor } = this;
    this.cursor = event.pointerType === "touch" ? null : this.view.toImage(at.x, at.y);
    for (const place of [cursor, this.cursor]) this.drawCursorAt(place);
    if (this.points.length) this.view.draw();
    if (stroke && stroke.pointer === event.pointerId) this.moveStroke(stroke, event, at);
  }

  /** Have the part of the screen drawn anew that a cursor covers. */
  drawCursorAt(place) {
    if (!place) return;
    const { view } = this, reach = Math.max(12, (this.size / 2) * view.scale + 4);
    const x = place.x * view.scale + view.x, y = place.y * view.scale + view.y;
    view.drawChange([x - reach, y - reach, x + reach, y + reach]);
  }

  moveStroke(stroke, event, at) {
    if (stroke.kind === "pan") {
      this.view.pan(at.x - stroke.last.x, at.y - stroke.last.y);
      stroke.last = at;
    } else if (stroke.kind === "size") {
      this.setSize(stroke.size * Math.exp((at.x - stroke.from) / 90));
    } else if (stroke.kind === "wand") {
      this.reach(FIRST_REACH + (at.x - stroke.from) * REACH_PER_PIXEL);
    } else if (stroke.kind === "paint" || stroke.kind === "cut") {
      const events = event.getCoalescedEvents?.() ?? [];
      for (const each of events.length ? events : [event]) {
        const place = this.at(each);
        const to = this.view.toImage(place.x, place.y);
        if (stroke.kind === "cut") this.scribbleTo(stroke.last, to);
        else this.paint(stroke.last, to);
        stroke.last = to;
      }
    }
  }

  up(event) {
    this.fingers.delete(event.pointerId);
    if (this.pinch) {
      if (this.fingers.size < 2) this.pinch = null;
      return;
    }
    const { stroke } = this;
    if (!stroke || stroke.pointer !== event.pointerId) return;
    this.stroke = null;
    clearInterval(stroke.timer);
    if (stroke.kind === "paint") this.finish(this.tool, stroke.began, stroke.parts > 0);
    else if (stroke.kind === "cut") this.answered = this.cut(stroke.began);
    else if (stroke.kind === "wand") {
      this.tell.onHint("");
      this.finish("wand", stroke.began);
    }
  }

  lost(event) {
    this.fingers.delete(event.pointerId);
    if (this.fingers.size < 2) this.pinch = null;
    if (this.stroke?.pointer === event.pointerId) this.cancel();
  }

  startPinch() {
    const [one, other] = [...this.fingers.values()];
    this.pinch = {
      distance: Math.hypot(one.x - other.x, one.y - other.y), scale: this.view.scale,
      x: (one.x + other.x) / 2, y: (one.y + other.y) / 2,
    };
  }

  movePinch() {
    if (this.fingers.size < 2) return;
    const [one, other] = [...this.fingers.values()];
    const x = (one.x + other.x) / 2, y = (one.y + other.y) / 2;
    this.view.pan(x - this.pinch.x, y - this.pinch.y);
    const distance = Math.hypot(one.x - other.x, one.y - other.y);
    this.view.zoomAt(this.pinch.scale * (distance / Math.max(1, this.pinch.distance)), x, y);
    Object.assign(this.pinch, { x, y });
    this.tell.onChange();
  }

  /**
   * End a stroke that the raster shows, or a part of it: it becomes an entry of the journal.
   * @returns {boolean} whether it changed anything
   */
  finish(tool, began, goesOn = false) {
    const change = this.raster.commit(tool);
    if (change) this.journal.add({ ...change, goesOn }, (performance.now() - began) / 1000);
    this.view.drawChange();
    this.tell.onChange();
    return change !== null;
  }

  /** Hand in what was painted of the stroke in progress, and go on with it. */
  endPart() {
    const { stroke } = this;
    if (this.finish(this.tool, stroke.began, stroke.parts > 0)) stroke.parts += 1;
    stroke.began = performance.now();
    this.raster.begin();
  }

  /** Take back what is in progress. @returns {boolean} whether anything was */
  cancel() {
    const had = this.stroke !== null || this.points.length > 0 || this.asking !== null;
    if (this.raster?.isOpen) this.raster.cancel();
    this.asking?.abort();
    this.asking = null;
    this.scribble = null;
    clearInterval(this.stroke?.timer);
    if (this.stroke?.parts) {
      this.journal.undo();
      this.tell.onChange();
    }
    this.stroke = null;
    this.line = null;
    this.points = [];
    this.tell.onHint("");
    this.view.draw();
    return had;
  }

  addPoint(place, at, closing = CLOSING.mouse) {
    const [first] = this.points;
    if (first && this.points.length > 2) {
      const { scale, x: left, y: top } = this.view;
      const x = first.x * scale + left, y = first.y * scale + top;
      if (Math.hypot(x - at.x, y - at.y) < closing) {
        this.closePolygon();
        return;
      }
    }
    if (!first) this.polygonBegan = performance.now();
    if (this.tool === "snap") this.addCorner(place);
    else this.points.push(place);
    this.view.draw();
  }

  /** Ask where the image's edges are, once for each image. */
  async wantEdges() {
    const { raster, journal } = this;
    if (!raster || this.edges) return;
    this.tell.onHint("looking for edges …");
    try {
      const edges = await EdgeMap.of(journal.path, raster);
      if (this.raster !== raster) return;
      this.edges = edges;
      if (!this.points.length) this.tell.onHint("");
    } catch (error) {
      if (this.raster === raster) this.tell.onHint(error.message);
    }
  }

  /** How far a click jumps to an edge, in pixels of the image. */
  get jump() {
    return 8 / this.view.scale;
  }

  addCorner(place) {
    if (!this.edges) {
      this.wantEdges();
      return;
    }
    this.line ??= new SnappingLine(this.edges);
    this.line.add(place, this.jump);
    this.points = [...this.line.corners];
  }

  startCut(pointer, place) {
    this.cancel();
    this.scribble = new Scribble(place, this.size, !this.removes);
    this.stroke = { kind: "cut", pointer, last: place, began: performance.now() };
    this.scribbleTo(place, place);
  }

  scribbleTo(from, to) {
    const { view } = this, reach = Math.max(12, (this.size / 2) * view.scale + 4);
    this.scribble.places.push(to);
    view.drawChange([
      Math.min(from.x, to.x) * view.scale + view.x - reach,
      Math.min(from.y, to.y) * view.scale + view.y - reach,
      Math.max(from.x, to.x) * view.scale + view.x + reach,
      Math.max(from.y, to.y) * view.scale + view.y + reach,
    ]);
  }

  /** Have what was scribbled over told apart by colour; it becomes one stroke. */
  async cut(began) {
    const { scribble, raster, journal } = this, crop = scribble.crop(raster);
    if (!crop) {
      this.cancel();
      return;
    }
    const asking = new AbortController();
    this.asking = asking;
    this.tell.onHint("telling colours apart …");
    let said = "";
    try {
      const { foreground, step } = await scribble.ask(journal.path, crop, asking.signal);
      if (this.asking !== asking) return;
      raster.begin();
      scribble.apply(raster, crop, foreground);
      if (!this.finish("cut", began)) said = NOTHING_FOUND;
      else if (step > 1) said = `told apart at 1/${step} of the size; a smaller scribble is finer`;
    } catch (error) {
      if (this.asking !== asking) return;
      said = error.message;
    }
    this.asking = null;
    this.scribble = null;
    this.tell.onHint(said);
    this.view.draw();
  }

  closePolygon() {
    const last = this.points.at(-1), before = this.points.at(-2);
    if (last && before && Math.hypot(last.x - before.x, last.y - before.y) * this.view.scale < 3) {
      this.takePointBack(); // the second click of a double click
    }
    if (this.points.length < (this.line ? 2 : 3) || !this.isReady) return;
    const outline = this.line?.closed() ?? this.points;
    this.raster.begin();
    this.raster.polygon(outline, !this.removes);
    this.points = [];
    this.line = null;
    this.finish(this.tool, this.polygonBegan);
  }

  takePointBack() {
    this.points.pop();
    this.line?.takeBack();
    if (!this.points.length) this.line = null;
    this.view.draw();
  }

  startWand(event, at, place) {
    const x = Math.floor(place.x), y = Math.floor(place.y);
    const { width, height } = this.raster;
    if (x < 0 || y < 0 || x >= width || y >= height) return;
    const wand = new Wand(this.probability, width, height, y * width + x, !this.removes);
    this.raster.begin();
    this.stroke = {
      kind: "wand", pointer: event.pointerId, from: at.x, wand, shown: 0, old: new Uint8Array(0),
      began: performance.now(),
    };
    this.reach(FIRST_REACH);
  }

  /** Show what the wand reaches at a level; going back shows again what was there. */
  reach(wanted) {
    const level = Math.round(Math.max(0, Math.min(MOST_REACH, wanted)));
    const { stroke, raster } = this, { wand } = stroke;
    const count = wand.reach(level), value = this.removes ? BY_HAND : FOREGROUND | BY_HAND;
    const touch = this.toucher();
    if (stroke.old.length < count) {
      const larger = new Uint8Array(wand.order.length);
      larger.set(stroke.old);
      stroke.old = larger;
    }
    for (; stroke.shown < count; stroke.shown += 1) {
      const pixel = wand.order[stroke.shown];
      touch(pixel);
      stroke.old[stroke.shown] = raster.data[pixel];
      raster.data[pixel] = value;
    }
    for (; stroke.shown > count; stroke.shown -= 1) {
      const pixel = wand.order[stroke.shown - 1];
      touch(pixel);
      raster.data[pixel] = stroke.old[stroke.shown - 1];
    }
    const reach = Math.round((100 * level) / 255);
    this.tell.onHint(`reach ${reach} % around a chance of ${Math.round(wand.from / 2.55)} %`);
    this.view.draw();
  }

  /** @returns {(pixel: number) => void} what touches the tile of a pixel, each tile once */
  toucher() {
    const { raster } = this, { across, width: stride } = raster;
    const met = new Uint8Array(across * raster.down);
    return (pixel) => {
      const y = Math.trunc(pixel / stride), x = pixel - y * stride;
      const tile = Math.trunc(y / TILE) * across + Math.trunc(x / TILE);
      if (met[tile]) return;
      met[tile] = 1;
      const { left, top, width, height } = raster.placeOf(tile);
      raster.touch(left, top, left + width, top + height);
    };
  }

  /**
   * Take the model's mask for all that no person decided.
   * @param {Uint8Array} model
   */
  useModel(model) {
    if (!this.isReady) return;
    this.cancel();
    const began = performance.now(), { data } = this.raster;
    this.raster.begin();
    this.raster.touchAll();
    for (let pixel = 0; pixel < data.length; pixel += 1) {
      if (!(data[pixel] & BY_HAND)) data[pixel] = model[pixel];
    }
    this.finish("threshold", began);
  }

  /** @param {"fill-holes" | "keep-largest"} what */
  mend(what) {
    if (!this.isReady) return;
    this.cancel();
    const began = performance.now();
    this.raster.begin();
    this.raster.touchAll();
    (what === "fill-holes" ? fillHoles : keepLargest)(this.raster);
    this.finish(what, began);
  }

  undo() {
    if (this.cancel() || !this.isReady) return;
    if (this.journal.undo()) this.afterStep();
  }

  redo() {
    this.cancel();
    if (this.isReady && this.journal.redo()) this.afterStep();
  }

  afterStep() {
    this.view.draw();
    this.tell.onChange();
  }

  /** Move the cursor by keys, and keep it in sight. */
  step(dx, dy) {
    if (!this.raster) return;
    const middle = this.view.toImage(this.view.width / 2, this.view.height / 2);
    const from = this.cursor ?? { x: Math.floor(middle.x) + 0.5, y: Math.floor(middle.y) + 0.5 };
    this.cursor = {
      x: Math.max(0.5, Math.min(this.raster.width - 0.5, from.x + dx)),
      y: Math.max(0.5, Math.min(this.raster.height - 0.5, from.y + dy)),
    };
    this.view.draw();
  }

  /** Use the tool where the cursor is. */
  dab() {
    if (!this.cursor || !this.isReady || this.stroke) return;
    const { x, y } = this.cursor, { view } = this;
    if (this.tool === "polygon" || this.tool === "snap") {
      this.addPoint({ x, y }, { x: x * view.scale + view.x, y: y * view.scale + view.y });
    } else if (this.tool === "cut") {
      this.startCut(-1, this.cursor);
      this.up({ pointerId: -1 });
    } else if (this.tool === "wand") {
      this.startWand({ pointerId: -1 }, { x: 0, y: 0 }, this.cursor);
      this.up({ pointerId: -1 });
    } else {
      this.raster.begin();
      const began = performance.now();
      this.paint(this.cursor, this.cursor);
      this.finish(this.tool, began);
    }
  }
}
