/**
 * What a tool shows over image and mask while it is used: cursor, outline in progress, scribble.
 */

/** @typedef {{x: number, y: number}} Place */

/**
 * @param {CanvasRenderingContext2D} context in CSS pixels
 * @param {import("./editor.js").Editor} editor
 */
export function drawMarks(context, editor) {
  const { view, cursor } = editor;
  const onScreen = ({ x, y }) => [x * view.scale + view.x, y * view.scale + view.y];
  if (editor.scribble) drawScribble(context, editor, onScreen);
  if (editor.points.length) drawOutline(context, editor, onScreen);
  if (cursor && editor.raster) drawCursor(context, editor, onScreen(cursor));
}

function drawCursor(context, { hasSize, size, view }, [x, y]) {
  const radius = hasSize ? Math.max(1.5, (size / 2) * view.scale) : 5;
  for (const [colour, width] of [["rgba(0,0,0,.75)", 3], ["#fff", 1.25]]) {
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.beginPath();
    if (hasSize) context.arc(x, y, radius, 0, 2 * Math.PI);
    if (!hasSize || radius < 4) {
      context.moveTo(x - 9, y);
      context.lineTo(x + 9, y);
      context.moveTo(x, y - 9);
      context.lineTo(x, y + 9);
    }
    context.stroke();
  }
}

/** Show what was scribbled over; it is no mask yet. */
function drawScribble(context, { scribble, removes, view }, onScreen) {
  context.save();
  context.lineCap = context.lineJoin = "round";
  context.lineWidth = Math.max(2, scribble.size * view.scale);
  context.strokeStyle = removes ? "rgba(255,255,255,.5)" : "rgba(86,180,233,.55)";
  context.beginPath();
  for (const place of scribble.places) context.lineTo(...onScreen(place));
  context.stroke();
  context.restore();
}

/** @returns {Place[]} what an outline would be if it ended at the cursor */
function outlineOf({ line, points, cursor, view, jump }) {
  if (!line) return cursor ? [...points, cursor] : points;
  const way = cursor && line.ahead(cursor, jump);
  if (cursor && !way) requestAnimationFrame(() => view.draw()); // it is looked for on
  return [...line.places, ...(way ?? (cursor ? [cursor] : []))];
}

function drawOutline(context, editor, onScreen) {
  const colour = editor.removes ? "#fff" : "#f0a500";
  const places = outlineOf(editor).map(onScreen);
  for (const [stroke, width] of [["rgba(0,0,0,.7)", 4], [colour, 2]]) {
    context.strokeStyle = stroke;
    context.lineWidth = width;
    context.beginPath();
    places.forEach(([x, y], place) => (place ? context.lineTo(x, y) : context.moveTo(x, y)));
    context.stroke();
  }
  context.fillStyle = "#fff";
  for (const [x, y] of editor.points.map(onScreen)) {
    context.beginPath();
    context.arc(x, y, 4, 0, 2 * Math.PI);
    context.fill();
    context.stroke();
  }
}
