/**
 * Teach: begin a training on the corrections, watch it, and take its model or leave it.
 */

import { getJson, sendJson } from "./api.js";
import { asDice } from "./gallery.js";

const POLL_MILLISECONDS = 1000;
const WIDE = 640, HIGH = 150;
const STATES = {
  running: "is under way", stopped: "was stopped", failed: "failed", done: "is done",
};

/** @param {string} id @returns {any} */
const $ = (id) => document.getElementById(id);

/** @returns {HTMLElement} an element with what is in it */
function make(tag, attributes = {}, ...inside) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") element.addEventListener("click", value);
    else element.setAttribute(name, value);
  }
  element.append(...inside.filter(Boolean));
  return element;
}

/** @param {number} seconds @returns {string} */
function asTime(seconds) {
  const whole = Math.round(seconds), minutes = Math.floor(whole / 60);
  if (!minutes) return `${whole} s`;
  return whole % 60 ? `${minutes} min ${whole % 60} s` : `${minutes} min`;
}

const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

export class Teach {
  /** @param {() => void} onModel called when another model is in use */
  constructor(onModel) {
    this.onModel = onModel;
    this.isShown = false;
    this.timer = 0;
    this.said = "";
    $("teach-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.ask("begin", { seconds: this.seconds() });
    });
    $("teach-stop").addEventListener("click", () => this.ask("stop", {}));
    $("teach-resume").addEventListener("click", () => {
      this.ask("resume", { number: this.status.lessons[0].number, seconds: this.seconds() });
    });
    $("teach-back").addEventListener("click", () => {
      this.ask("use", { number: this.status.previous });
    });
  }

  /** @param {boolean} isShown whether the view is on the screen */
  show(isShown) {
    this.isShown = isShown;
    clearTimeout(this.timer);
    if (isShown) this.poll();
  }

  async poll() {
    clearTimeout(this.timer);
    try {
      this.take(await getJson("/api/teach"));
      if (this.isLost) this.say("");
      this.isLost = false;
    } catch (error) {
      this.isLost = true;
      this.say(error.message);
    }
    if (this.isShown) this.timer = setTimeout(() => this.poll(), POLL_MILLISECONDS);
  }

  seconds() {
    return Math.round(60 * Number($("teach-minutes").value));
  }

  /** @param {string} deed @param {object} content */
  async ask(deed, content) {
    const inUse = this.status?.using;
    this.isAsking = true;
    this.say("");
    this.fill();
    try {
      const status = await sendJson(`/api/teach/${deed}`, content);
      this.isAsking = false;
      this.take(status);
      if (inUse !== status.using) this.onModel();
    } catch (error) {
      this.isAsking = false;
      this.fill();
      this.say(error.message);
    }
  }

  say(text) {
    $("teach-said").textContent = text;
    $("teach-said").hidden = text === "";
  }

  take(status) {
    this.status = status;
    this.fill();
  }

  fill() {
    if (!this.status) return;
    this.fillCorrections();
    this.fillTraining();
    this.fillModels();
  }

  fillCorrections() {
    const { counts, drawn } = this.status, all = counts.train + counts.val + counts.test;
    $("teach-counts").textContent = all === 0 ? "No mask is accepted yet." :
      `${plural(all, "accepted mask")}: ${counts.train} to train on, ${counts.val} to validate on, `
      + `${plural(counts.test, "test image")}.`;
    $("teach-drawn").textContent = drawn === 0
      ? "No image is drawn to test on: there are fewer than five, or the model knows them all."
      : `Every fifth image, ${drawn} in all, was drawn at random and is marked “test”. No model is `
        + "trained on one, so only they say what a model is worth on the other images.";
  }

  fillTraining() {
    const { phase, lessons, spent, curve, begins, base } = this.status;
    const whyNot = this.status.why_not;
    const [latest] = lessons, isIdle = phase === "idle";
    $("teach-why-not").textContent = whyNot;
    $("teach-why-not").hidden = whyNot === "" || !isIdle;
    $("teach-form").hidden = !isIdle;
    $("teach-begin").disabled = whyNot !== "" || this.isAsking;
    $("teach-begins").textContent = begins === "weights"
      ? `Begins with the weights of ${base} each time, and learns from all accepted masks but the `
        + "test images."
      : "Begins anew each time, with published weights where they are installed, because "
        + `${base} cannot be trained on. To go on from a model, start the studio with its `
        + ".safetensors file.";
    $("teach-stop").hidden = phase !== "training";
    $("teach-stop").disabled = this.isAsking;
    const canResume = isIdle && latest && ["stopped", "failed"].includes(latest.state);
    $("teach-resume").hidden = !canResume;
    $("teach-resume").disabled = whyNot !== "" || this.isAsking;
    $("teach-now").hidden = !latest;
    $("teach-chart").hidden = curve.length === 0;
    if (!latest) return;
    $("teach-resume").textContent = `Resume training ${latest.number}`;
    $("teach-error").textContent = latest.error;
    $("teach-error").hidden = latest.error === "";
    $("teach-progress").hidden = isIdle;
    $("teach-progress").max = latest.seconds;
    $("teach-progress").value = phase === "trying" ? latest.seconds : spent;
    $("teach-words").textContent = this.words(latest);
    this.draw(curve);
  }

  words(latest) {
    const { phase, spent, curve, busy } = this.status, last = curve[curve.length - 1];
    if (phase === "trying") return `Comparing model ${busy} with the one in use …`;
    const state = phase === "stopping" ? "saves its state and stops" : STATES[latest.state];
    const times = `${asTime(spent)} of ${asTime(latest.seconds)}`;
    const words = [`Training ${latest.number} ${state}: ${times}`];
    if (last) words.push(`epoch ${last.epoch}`);
    else if (phase === "training") words.push("looking at the images …");
    return words.join(" · ");
  }

  /** Draw loss and validation Dice over the epochs. */
  draw(curve) {
    const losses = curve.filter(({ loss }) => loss !== null);
    const dices = curve.filter(({ dice }) => dice !== null);
    const key = JSON.stringify([curve.length, curve[curve.length - 1]]);
    if (key === this.drawnKey) return;
    this.drawnKey = key;
    const last = Math.max(2, curve.length ? curve[curve.length - 1].epoch : 2);
    const highest = Math.max(...losses.map(({ loss }) => loss), 1e-9);
    const line = (points, valueOf, id) => {
      const places = points.map((each) => {
        const x = ((each.epoch - 1) / (last - 1)) * WIDE, y = HIGH * (1 - valueOf(each));
        return `${x.toFixed(1)},${y.toFixed(1)}`;
      });
      if (places.length === 1) places.push(places[0]);  // a dot
      $(id).setAttribute("points", places.join(" "));
    };
    const best = Math.max(...dices.map(({ dice }) => dice));
    const lastLoss = losses.length ? losses[losses.length - 1].loss.toFixed(2) : "–";
    $("teach-dice").textContent = dices.length
      ? `validation Dice ${asDice(dices[dices.length - 1].dice)}, best ${asDice(best)}`
      : "validation Dice: not yet";
    $("teach-loss").textContent = `loss ${lastLoss}`;
    $("teach-lines").setAttribute("aria-label", `Loss and validation Dice over ${last} epochs: `
      + `${$("teach-dice").textContent}, ${$("teach-loss").textContent}`);
    line(losses, ({ loss }) => loss / highest, "teach-loss-line");
    line(dices, ({ dice }) => dice, "teach-dice-line");
  }

  fillModels() {
    const { lessons, using, previous, base, phase } = this.status;
    const key = JSON.stringify([lessons, using, phase, this.isAsking]);
    if (key === this.modelsKey) return;
    const isFocused = $("teach-models").contains(document.activeElement);
    this.modelsKey = key;
    const name = (number) => (number === 0 ? base : `model ${number}`);
    $("teach-back").hidden = previous === null;
    $("teach-back").disabled = this.isAsking;
    $("teach-back").textContent = previous === null ? "" : `Back to ${name(previous)}`;
    $("teach-in-use").textContent = `In use: ${name(using)}.`;
    const cards = lessons.filter((lesson) => lesson.has_model && lesson.state !== "running")
      .map((lesson) => this.card(lesson, using === lesson.number));
    const given = make("li", { class: "model" },
      make("h3", {}, base),
      make("p", { class: "quiet" }, "the model that the studio was started with"),
      this.useButton(0, using === 0, base));
    $("teach-models").replaceChildren(...cards, given);
    if (isFocused) $("teach-in-use").focus();
  }

  useButton(number, isUsed, name) {
    if (isUsed) return make("p", { class: "in-use" }, "✓ in use");
    const button = make("button", { type: "button", "aria-label": `Use ${name}`,
      onclick: () => this.ask("use", { number }) }, "Use this model");
    button.disabled = Boolean(this.isAsking);
    return button;
  }

  card(lesson, isUsed) {
    const { number, images, trial, state, began_at: began } = lesson;
    const learned = plural(images.train, "mask");
    const when = new Date(began).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
    const told = `${when} · taught on ${learned}${state === "done" ? "" : `; ${STATES[state]}`}`;
    const again = make("button", { type: "button", class: "plain",
      "aria-label": `Compare model ${number} again`,
      onclick: () => this.ask("try", { number }) }, "Compare again");
    again.disabled = this.status.phase !== "idle" || Boolean(this.isAsking);
    return make("li", { class: "model" }, make("h3", {}, `Model ${number}`),
      make("p", { class: "quiet" }, told), trial && this.trial(trial),
      make("div", { class: "row" }, this.useButton(number, isUsed, `model ${number}`), again));
  }

  /** What a model is worth, before and after, with how many images say so. */
  trial({ against, test, val, fault }) {
    if (fault) return make("p", { class: "bad" }, `Could not be compared: ${fault}`);
    const { base } = this.status;
    const before = against === 0 ? base : `model ${against}`;
    const row = (name, part) => make("tr", {}, make("th", { scope: "row" }, name),
      make("td", {}, String(part?.images ?? 0)), make("td", {}, asDice(part?.before)),
      make("td", {}, asDice(part?.after)));
    const head = ["Mean Dice on", "images", "before", "after"].map((text) =>
      make("th", { scope: "col" }, text));
    const words = [test ? `Test images: ${test.verdict}.`
      : "No test image is accepted yet: correct some to know what the model is worth."];
    if (test?.favoured) {
      words.push(`${test.favoured} of the ${plural(test.images, "test mask")} began as the mask of `
        + "the model in use, which favours that one.");
    }
    for (const [name, part] of [["test", test], ["validation", val]]) {
      if (part?.seen) {
        words.push(`One of the models was trained on ${part.seen} of the `
          + `${plural(part.images, `${name} image`)}, which flatters it.`);
      }
    }
    if (val) words.push("Validation chose the epoch, so it flatters the taught model.");
    return make("div", {},
      make("table", { "aria-label": `Before (${before}) and after` },
        make("thead", {}, make("tr", {}, ...head)),
        make("tbody", {}, row("test images", test), row("validation", val))),
      make("p", {}, `Before: ${before}. ${words.join(" ")}`));
  }
}
