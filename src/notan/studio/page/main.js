/**
 * The page: which of its two halves is shown, and what its controls do.
 */

import { getBlob, getJson, getPacked, sendJson } from "./api.js";
import { Compare } from "./compare.js";
import { Editor, TOOLS, placeOf, sizeOf } from "./editor.js";
import { Exchange } from "./exchange.js";
import { Findings } from "./findings.js";
import { Gallery, asDice } from "./gallery.js";
import { Journal } from "./journal.js";
import { FOREGROUND, Raster, unpack } from "./raster.js";
import { Teach } from "./teach.js";
import { LEFT_OUT, View } from "./view.js";

const NAME = "notan studio";
const NEEDING_AN_IMAGE = ["accept", "threshold", "use-model", "fill-holes", "keep-largest"];
const LEGENDS = {
  model: "The model's mask at this threshold.",
  truth: "The mask in the data, as it was found.",
  swipe: "Left of the divider the model in use, at this threshold; right of it the other one.",
  probability: "The model's probability, bright where it is sure of foreground.",
};

/** @param {string} id @returns {any} an element of the page */
const $ = (id) => document.getElementById(id);
/** @param {string} selector @returns {any[]} */
const all = (selector) => [...document.querySelectorAll(selector)];

export const gallery = new Gallery((count, known) => {
  $("progress").textContent = known < count
    ? `${known.toLocaleString()} of ${count.toLocaleString()} predicted`
    : `${count.toLocaleString()} images`;
});
export const view = new View($("canvas"));
export const editor = new Editor($("canvas"), view, { onChange: showControls, onHint: showHint });
const teach = new Teach(() => gallery.poll());

/** What is open: the image's answer, and the request that loads it. */
let current = null;
/** @type {Set<Journal>} journals with entries on their way */
const journals = new Set();

// -- the two halves ---------------------------------------------------------------------------

async function route() {
  const id = location.hash.match(/^#\/image\/([0-9a-f]+)$/)?.[1];
  const isTeaching = location.hash === "#/teach";
  $("gallery-page").hidden = Boolean(id) || isTeaching;
  $("editor-page").hidden = !id;
  $("teach-page").hidden = !isTeaching;
  teach.show(isTeaching);
  current?.loading.abort();
  if (id) {
    await open(id);
    return;
  }
  const left = current;
  close();
  document.title = `${isTeaching ? "Teach – " : ""}${$("title").textContent} – ${NAME}`;
  if (isTeaching) return;
  gallery.arrange();
  const place = gallery.shown.findIndex((item) => item.id === left?.id);
  if (place >= 0) gallery.goTo(place);
}

function close() {
  current = null;
  editor.open(null, null, null);
  view.clear();
}

/** @param {string} id of the image to be opened */
async function open(id) {
  close();
  const loading = new AbortController();
  current = { id, loading };
  showBusy("loading …");
  $("image-name").textContent = gallery.items.get(id)?.name ?? "";
  $("drawn").hidden = !gallery.drawn.has(id);
  $("scores").textContent = "";
  showLamp({ lamp: "saved", message: "" });
  showControls();
  try {
    await load(current, { signal: loading.signal });
    showBusy("");
  } catch (error) {
    if (!loading.signal.aborted) showBusy(error.message);
  }
}

/** @param {any} target what is being opened @param {RequestInit} options */
async function load(target, options) {
  for (const each of journals) if (each.path.endsWith(target.id)) await each.idle();
  const path = `/api/images/${target.id}`;
  const about = await getJson(path, options);
  document.title = `${about.name} – ${NAME}`;
  $("image-name").textContent = about.name;
  const [blob, model, probability, truth] = await Promise.all([
    getBlob(`${path}/pixels`, options),
    getPacked(`${path}/model`, options),
    getPacked(`${path}/probability`, options),
    about.has_truth ? getPacked(`${path}/truth`, options).catch((error) => {
      about.truthFault = error.message;
      return null;
    }) : null,
  ]);
  const { width, height } = about, pixels = width * height;
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  const known = truth && unpack(truth, pixels);
  const masks = {
    model: unpack(model, pixels),
    mask: known && known.map((value) => value & FOREGROUND),
    empty: new Uint8Array(pixels),
  };
  const raster = new Raster(width, height, masks.model.slice());
  const journal = new Journal(target.id, raster, (state) => {
    if (state.lamp === "saved") journals.delete(journal);
    else journals.add(journal);
    if (current === target) showLamp(state);
  }, (state) => {
    gallery.setState(target.id, state);
    target.state = state;
    if (current === target) showScores();
  });
  if (about.journal) await journal.load(about.journal);
  else if (masks.mask) {
    journal.origin = "mask";
    raster.data.set(masks.mask);
  }
  if (current !== target) return;
  Object.assign(target, { about, masks, journal, raster, state: about.state });
  document.querySelector("[name=layer][value=truth]").disabled = !masks.mask;
  chooseLayer(!masks.mask && view.look.layer === "truth" ? "mask" : view.look.layer);
  $("threshold").value = String(Math.round(100 * about.threshold));
  view.show(bitmap, raster, masks.model, known, probability);
  editor.open(journal, raster, probability);
  showScores();
  showAgreement();
  showControls();
  if (document.activeElement === document.body) $("canvas").focus({ preventScroll: true });
}

function next() {
  const item = current && gallery.after(current.id);
  if (item) location.hash = `#/image/${item.id}`;
}

/** @param {boolean} goesOn whether the next image is opened then */
async function accept(goesOn) {
  const target = current;
  if (!target?.journal || !editor.isReady) return;
  await editor.answered; // a scribble that is being told apart belongs to the mask
  if (current !== target) return;
  editor.cancel();
  try {
    await target.journal.accept();
    if (goesOn && current === target) next();
  } catch (error) {
    if (current === target) showLamp({ lamp: "failed", message: error.message });
  }
}

async function startOver() {
  const target = current;
  $("confirm").returnValue = "no";
  $("confirm").showModal();
  await new Promise((resolve) => {
    $("confirm").addEventListener("close", resolve, { once: true });
  });
  if ($("confirm").returnValue !== "yes" || current !== target) return;
  await target.journal?.idle();
  try {
    await sendJson(`/api/images/${target.id}/journal`, {}, "DELETE");
    await open(target.id);
  } catch (error) {
    showLamp({ lamp: "failed", message: error.message });
  }
}

// -- what is said -----------------------------------------------------------------------------

function showBusy(text) {
  $("busy").textContent = text;
  $("busy").hidden = text === "";
}

function showHint(text) {
  $("hint").textContent = text;
}

/** @param {import("./journal.js").LampState} state */
function showLamp({ lamp, message }) {
  $("lamp").dataset.lamp = lamp;
  const words = { saved: "saved", saving: "saving", failed: `not saved: ${message}` };
  const text = $("lamp").querySelector("span");
  if (text.textContent !== words[lamp]) text.textContent = words[lamp];
  $("lamp").title = words[lamp];
}

function showScores() {
  const { about, state } = current;
  const words = [`expected Dice ${asDice(about.expected_dice)}`];
  if (about.true_dice !== null) words.push(`true ${asDice(about.true_dice)}`);
  if (gallery.drawn.has(about.id)) words.push("test image: no model is trained on it");
  if (about.truthFault) words.push(`the mask in the data is no use: ${about.truthFault}`);
  if (state === "accepted") words.push("accepted");
  if (state === "changed") words.push("changed since accepted");
  $("scores").textContent = $("scores").title = words.join(" · ");
}

/** Bring the controls up to what editor and view say. */
function showControls() {
  const { tool, removes, size, journal } = editor;
  for (const button of all("[data-tool]")) {
    button.setAttribute("aria-pressed", String(button.dataset.tool === tool));
  }
  $("tool-name").textContent = TOOLS[tool].name;
  $("tool-help").textContent = TOOLS[tool].help;
  $("size-row").hidden = !editor.hasSize;
  $("size").value = String(placeOf(size));
  $("size-out").textContent = `${size} px`;
  document.querySelector(`[name=mode][value=${removes ? "remove" : "add"}]`).checked = true;
  $("mode-row").hidden = editor.isBrush;
  $("threshold-out").textContent = `${$("threshold").value} %`;
  $("opacity-out").textContent = `${$("opacity").value} %`;
  const zoom = Math.round(view.scale * window.devicePixelRatio * 100);
  $("zoom").textContent = editor.raster ? `${zoom} %` : "";
  const isOpen = editor.isReady;
  $("undo").disabled = !isOpen || !journal.applied.length;
  $("redo").disabled = !isOpen || !journal.undone.length;
  for (const id of NEEDING_AN_IMAGE) $(id).disabled = !isOpen;
  $("next").disabled = !current;
  const isBegun = isOpen && journal.isBegun;
  $("origin-row").hidden = isBegun;
  $("start-over").hidden = !isBegun;
  $("origin").disabled = !isOpen;
  if (isOpen && !isBegun) $("origin").value = journal.origin;
  $("origin").querySelector("[value=mask]").disabled = !current?.masks?.mask;
}

function chooseLayer(layer) {
  document.querySelector(`[name=layer][value=${layer}]`).checked = true;
  const against = current?.masks?.mask ? "the data" : "your mask";
  const errors = `The model against ${against}. Green: right. Red: false alarm. Blue: missed.`;
  const words = layer === "errors" ? errors : LEGENDS[layer] ?? "";
  $("legend").textContent = words;
  $("legend").hidden = words === "";
  view.setLook({ layer });
}

/** Show what the model's mask is at another threshold; "Use it" makes it the mask. */
function moveThreshold() {
  const percent = Number($("threshold").value), least = percent * 2.55;
  $("threshold-out").textContent = `${percent} %`;
  if (!view.probability) return;
  view.setModel(view.probability.map((value) => (value >= least ? 1 : 0)));
  if (!["model", "errors", "swipe"].includes(view.look.layer)) chooseLayer("model");
  showAgreement();
}

/** Say how well the model's mask, at this threshold, agrees with the truth there is. */
function showAgreement() {
  const right = current?.masks?.mask, { truth } = view;
  $("agreement").hidden = !right;
  if (!right) return;
  let both = 0, sum = 0;
  for (let pixel = 0; pixel < right.length; pixel += 1) {
    if (truth[pixel] & LEFT_OUT) continue;
    both += right[pixel] & view.model[pixel];
    sum += right[pixel] + view.model[pixel];
  }
  const dice = sum ? (2 * both) / sum : 1;
  $("agreement").textContent = `Dice with the mask in the data: ${asDice(dice)}`;
}

function setHidden(isHidden) {
  $("hide").setAttribute("aria-pressed", String(isHidden));
  view.setLook({ isHidden });
}

// -- what controls do -------------------------------------------------------------------------

function wire() {
  const on = (id, event, work) => $(id).addEventListener(event, work);
  for (const button of all("[data-tool]")) {
    button.addEventListener("click", () => editor.setTool(button.dataset.tool));
  }
  on("size", "input", () => editor.setSize(sizeOf(Number($("size").value))));
  for (const radio of all("[name=mode]")) {
    radio.addEventListener("change", () => editor.setRemoves(radio.value === "remove"));
  }
  on("threshold", "input", moveThreshold);
  on("use-model", "click", () => {
    editor.useModel(view.model);
    chooseLayer("mask");
  });
  on("fill-holes", "click", () => editor.mend("fill-holes"));
  on("keep-largest", "click", () => editor.mend("keep-largest"));
  on("origin", "change", () => {
    const origin = $("origin").value;
    editor.cancel();
    current.journal.origin = origin;
    current.raster.data.set(current.masks[origin]);
    view.redrawOverlay();
  });
  on("start-over", "click", startOver);
  for (const radio of all("[name=layer]")) {
    radio.addEventListener("change", () => chooseLayer(radio.value));
  }
  for (const radio of all("[name=style]")) {
    radio.addEventListener("change", () => view.setLook({ style: radio.value }));
  }
  on("opacity", "input", () => {
    view.setLook({ opacity: Number($("opacity").value) / 100 });
    showControls();
  });
  on("hide", "click", () => setHidden(!view.look.isHidden));
  on("fit", "click", () => { view.fit(); showControls(); });
  on("open-panel", "click", () => {
    const isOpen = $("panel").classList.toggle("is-open");
    $("open-panel").setAttribute("aria-expanded", String(isOpen));
  });
  on("undo", "click", () => editor.undo());
  on("redo", "click", () => editor.redo());
  on("next", "click", next);
  on("accept", "click", () => accept(true));
  on("help", "click", () => $("keys").showModal());
  on("sort", "change", () => gallery.choose({ sort: $("sort").value }));
  on("filter", "change", () => gallery.choose({ filter: $("filter").value }));
  on("lines", "change", () => gallery.setLines($("lines").checked));
  on("search", "input", () => gallery.choose({ words: $("search").value }));
  window.addEventListener("hashchange", route);
  window.addEventListener("beforeunload", (event) => {
    if (journals.size) event.preventDefault();
  });
  window.addEventListener("keydown", keyDown);
  window.addEventListener("keyup", keyUp);
  window.addEventListener("blur", () => { editor.isSpaceHeld = false; });
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const ZOOMS = { 1: 1, 2: 2, 3: 4, 4: 8 };

/** What a key does in the editor, by the key's name in lower case. */
const KEYS = {
  b: () => editor.setTool("brush"),
  e: () => editor.setTool("eraser"),
  p: () => editor.setTool("polygon"),
  s: () => editor.setTool("snap"),
  c: () => editor.setTool("cut"),
  w: () => editor.setTool("wand"),
  x: () => editor.setRemoves(!editor.removes),
  "[": () => editor.setSize(Math.min(editor.size - 1, editor.size / 1.2)),
  "]": () => editor.setSize(Math.max(editor.size + 1, editor.size * 1.2)),
  h: () => setHidden(!view.look.isHidden),
  n: next,
  g: () => { location.hash = "#/"; },
  d: () => editor.dab(),
  0: () => { view.fit(); showControls(); },
  escape: () => editor.cancel(),
  backspace: () => editor.takePointBack(),
  enter: () => (editor.points.length ? editor.closePolygon() : accept(true)),
  "?": () => $("keys").showModal(),
};

/** @param {KeyboardEvent} event */
function keyDown(event) {
  if ($("editor-page").hidden || document.querySelector("dialog[open]")) return;
  const key = event.key.toLowerCase(), { target } = event;
  if (event.ctrlKey || event.metaKey) {
    controlKey(event, key);
    return;
  }
  if (event.altKey || isControl(target, key)) return;
  if (key === " ") {
    event.preventDefault();
    editor.isSpaceHeld = true;
  } else if (key === "`") {
    view.setLook({ isHidden: true });
  } else if (ARROWS[event.key] && target === $("canvas")) {
    event.preventDefault();
    const pace = event.shiftKey ? 10 : 1;
    editor.step(...ARROWS[event.key].map((step) => step * pace));
  } else if (ZOOMS[key]) {
    view.zoomAt(ZOOMS[key] / (window.devicePixelRatio || 1));
    showControls();
  } else if (KEYS[key]) {
    event.preventDefault();
    KEYS[key]();
  }
}

function controlKey(event, key) {
  const work = { z: () => (event.shiftKey ? editor.redo() : editor.undo()), y: () => editor.redo(),
    s: () => accept(false) }[key];
  if (!work) return;
  event.preventDefault();
  work();
}

/** Whether a control of the page has its own use for a key. */
function isControl(target, key) {
  if (target.matches("input[type=search], select, textarea")) return true;
  if (target.matches("input") && ARROWS[`Arrow${key.slice(5, 6).toUpperCase()}${key.slice(6)}`]) {
    return true;
  }
  return target.matches("button, a, summary, input") && (key === "enter" || key === " ");
}

/** @param {KeyboardEvent} event */
function keyUp(event) {
  if (event.key === " ") editor.isSpaceHeld = false;
  if (event.key === "`") setHidden($("hide").getAttribute("aria-pressed") === "true");
}

async function showAbout() {
  const about = await getJson("/api/about");
  $("title").textContent = about.title;
  const model = [about.network, about.model].filter(Boolean).join(" ");
  $("about").textContent = `Model ${model} · corrections go to ${about.corrections}`
    + (about.passed_over ? ` · passed over: ${about.passed_over}` : "");
}

async function start() {
  wire();
  await showAbout();
  await gallery.learnDraw();
  gallery.onModel = showAbout;
  await gallery.poll();
  route();
  gallery.run();
  new Findings(gallery).start();
  await Promise.all([new Exchange(gallery).start(), new Compare(gallery, view).start()]);
}

start().catch((error) => {
  $("nothing").hidden = false;
  $("nothing").textContent = error.message;
});
