/**
 * What the page asks of its own server, and nothing of any other: JSON, bytes, compression.
 */

/** An answer that says no: its status and the one line that a person needs. */
export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** @returns {Promise<Response>} an answer that says yes; otherwise it throws a Refusal */
async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { credentials: "same-origin", ...options });
  } catch {
    throw new Refusal(0, "the studio does not answer; is it still running?");
  }
  if (answer.ok) return answer;
  let said = `the studio answered ${answer.status}`;
  try {
    said = (await answer.json()).error ?? said;
  } catch { /* no JSON: the status says enough */ }
  throw new Refusal(answer.status, said);
}

/** @param {string} path @returns {Promise<any>} */
export async function getJson(path, options) {
  return (await ask(path, options)).json();
}

/** @returns {Promise<any>} */
export async function sendJson(path, content, method = "POST", signal = undefined) {
  const headers = { "content-type": "application/json" };
  const answer = await ask(path, { method, headers, body: JSON.stringify(content), signal });
  return answer.json();
}

/** @param {string} path @param {Blob} file @returns {Promise<any>} */
export async function sendFile(path, file) {
  const headers = { "content-type": "application/octet-stream" };
  return (await ask(path, { method: "POST", headers, body: file })).json();
}

/** @returns {Promise<Blob>} */
export async function getBlob(path, options) {
  return (await ask(path, options)).blob();
}

/** @returns {Promise<Uint8Array | null>} decompressed bytes; null: there is no such thing */
export async function getPacked(path, options) {
  const answer = await ask(path, options);
  return answer.status === 204 ? null : inflate(await answer.blob());
}

/** @param {Blob} blob compressed by zlib @returns {Promise<Uint8Array>} */
export async function inflate(blob) {
  const stream = blob.stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** @param {Uint8Array} bytes @returns {Promise<string>} compressed by zlib, in base64 */
export async function deflateToText(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new CompressionStream("deflate"));
  const packed = new Uint8Array(await new Response(stream).arrayBuffer());
  let text = "";
  for (let place = 0; place < packed.length; place += 32768) {
    text += String.fromCharCode(...packed.subarray(place, place + 32768));
  }
  return btoa(text);
}

/** @param {string} text as the server writes it @returns {Promise<Uint8Array>} */
export async function inflateText(text) {
  const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return inflate(new Blob([packed]));
}

/** @returns {string} an id that no other entry has */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(10));
  return [...bytes].map((byte) => byte.toString(36).padStart(2, "0")).join("").slice(0, 20);
}
