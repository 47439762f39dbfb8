/**
 * The queue: which image is offered next, and which were drawn at random to score models on.
 */

const EVERY = 5;

/**
 * Put images in the order in which they are offered: what the model is least sure of first, and
 * every fifth a drawn one, in the order of the draw. What is accepted comes last.
 * @param {import("./gallery.js").Item[]} items
 * @param {Map<string, number>} drawn the place in the draw by id
 * @returns {import("./gallery.js").Item[]}
 */
export function queueOf(items, drawn) {
  const byName = (one, other) => one.name.localeCompare(other.name, undefined, { numeric: true });
  const isDone = (item) => item.state === "accepted" || item.state === "changed";
  const isOpen = (item) => !isDone(item) && item.fault === "";
  const tests = items.filter((item) => isOpen(item) && drawn.has(item.id))
    .sort((one, other) => drawn.get(one.id) - drawn.get(other.id));
  const rest = items.filter((item) => isOpen(item) && !drawn.has(item.id))
    .sort((one, other) => (one.expected ?? 2) - (other.expected ?? 2) || byName(one, other));
  const done = items.filter(isDone).sort(byName), queue = [];
  let given = done.filter((item) => drawn.has(item.id)).length, test = 0;
  while (queue.length < tests.length + rest.length) {
    const place = done.length + queue.length + 1, left = rest.length - (queue.length - test);
    const isTest = test < tests.length && (given < Math.floor(place / EVERY) || !left);
    queue.push(isTest ? tests[test] : rest[queue.length - test]);
    test += Number(isTest);
    given += Number(isTest);
  }
  return [...queue, ...done, ...items.filter((item) => !isDone(item) && !isOpen(item))];
}
