// WAV files with recipes, as studio/recipe.py and audio.py write them; a zip archive of files.

import { peakOf, rint } from "./shape.js";
import { sha256 } from "./sha256.js";

const text = new TextEncoder();

/** Return the text of a recipe (version 2), which ends in its checksum. */
export async function recipeText(foleybox, about, make, asked, process) {
  const { name, fingerprint, licence, rate } = about;
  const content = { foleybox_recipe: 2, instrument: name, fingerprint, licence: licence.terms, rate, make, asked, process, foleybox };
  const body = JSON.stringify(content).slice(0, -1);
  return `${body}, "checksum": "${await sha256(text.encode(body))}"}`;
}

/** Return a wave as a 16-bit WAV file with its recipe; above full scale it is turned down as a whole. */
export function writeWav(wave, rate, recipe) {
  const about = JSON.parse(recipe);
  const { label, seed } = source(about.make);
  const comment = `foleybox ${about.foleybox}: ${about.make.do} ${label}, seed ${seed}, ${about.instrument}`;
  const tags = { INAM: `${label} ${seed}`, ICMT: comment, ICOP: about.licence };
  const info = Object.entries(tags).map(([name, value]) => chunk(name, text.encode(`${value}\0`)));
  return writePlainWav(wave, rate, [chunk("LIST", join([text.encode("INFO"), ...info])), chunk("fbrc", text.encode(recipe))]);
}

/** Return a wave as a 16-bit WAV file; `more` are further chunks. */
export function writePlainWav(wave, rate, more = []) {
  const factor = Math.fround(Math.min(1, 1 / peakOf(wave)));
  const data = new DataView(new ArrayBuffer(2 * wave.length));
  wave.forEach((sample, n) => {
    const value = factor < 1 ? Math.fround(sample * factor) : sample;
    data.setInt16(2 * n, Math.min(Math.max(rint(value * 32768), -32768), 32767), true);
  });
  const format = join([uint16(1), uint16(1), uint32(rate), uint32(2 * rate), uint16(2), uint16(16)]);
  const body = join([text.encode("WAVE"), chunk("fmt ", format), chunk("data", new Uint8Array(data.buffer)), ...more]);
  return join([text.encode("RIFF"), uint32(body.length), body]);
}

/** Return the label and the seed of a recipe's `make`: its own, or those of the sound it was made of. */
function source(make) {
  return { label: make.label ?? source(make.of).label, seed: make.seed ?? source(make.of).seed };
}

/** Return { wave, rate, recipe } of a 16-bit mono WAV file; `recipe` is its text, or null. */
export function readWav(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const found = {};
  for (let offset = 12; offset + 8 <= bytes.length; ) {
    const name = String.fromCharCode(...bytes.subarray(offset, offset + 4));
    const length = view.getUint32(offset + 4, true);
    found[name] ??= bytes.subarray(offset + 8, offset + 8 + length);
    offset += 8 + length + (length % 2);
  }
  const { data } = found;
  const samples = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const wave = Float32Array.from({ length: data.length / 2 }, (_, n) => samples.getInt16(2 * n, true) / 32768);
  const offset = found["fmt "].byteOffset - bytes.byteOffset;
  return { wave, rate: view.getUint32(offset + 4, true), recipe: found.fbrc ? new TextDecoder().decode(found.fbrc) : null };
}

/** Return a zip archive, without compression, of { name: Uint8Array or text }. */
export function zip(files) {
  const parts = [];
  const directory = [];
  let offset = 0;
  for (const [name, content] of Object.entries(files)) {
    const bytes = typeof content === "string" ? text.encode(content) : content;
    const path = text.encode(name);
    // Version, flags (UTF-8 names), no compression, 1 January 1980: the same sounds give the same archive.
    const about = join([uint16(20), uint16(0x800), uint16(0), uint16(0), uint16(33), uint32(crc32(bytes))]);
    const sizes = join([uint32(bytes.length), uint32(bytes.length), uint16(path.length), uint16(0)]);
    parts.push(text.encode("PK\x03\x04"), about, sizes, path, bytes);
    directory.push(text.encode("PK\x01\x02"), uint16(20), about, sizes, new Uint8Array(10), uint32(offset), path);
    offset += 30 + path.length + bytes.length;
  }
  const index = join(directory);
  const count = Object.keys(files).length;
  const end = [text.encode("PK\x05\x06"), uint32(0), uint16(count), uint16(count), uint32(index.length), uint32(offset), uint16(0)];
  return join([...parts, index, ...end]);
}

const CRC = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? (n >>> 1) ^ 0xedb88320 : n >>> 1;
  return n;
});

function crc32(bytes) {
  let value = 0xffffffff;
  for (const byte of bytes) value = (value >>> 8) ^ CRC[(value ^ byte) & 255];
  return (value ^ 0xffffffff) >>> 0;
}

function number(size, value) {
  return Uint8Array.from({ length: size }, (_, index) => Math.floor(value / 256 ** index) % 256);
}

const uint16 = (value) => number(2, value);
const uint32 = (value) => number(4, value);

function chunk(name, content) {
  return join([text.encode(name), uint32(content.length), content, new Uint8Array(content.length % 2)]);
}

function join(parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let offset = 0;
  for (const part of parts) {
    whole.set(part, offset);
    offset += part.length;
  }
  return whole;
}
