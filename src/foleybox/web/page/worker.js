// Renders sounds with onnxruntime-web, one after the other. Messages: { id, type: "load" | "render", ... } and the answers.

import * as ort from "./vendor/ort.wasm.bundle.min.mjs";
import { sha256 } from "./sha256.js";
import { shaped } from "./shape.js";
import { Problem, Synth } from "./synth.js";
import { recipeText, writeWav } from "./wave.js";

ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = { wasm: new URL("./vendor/ort-wasm-simd-threaded.wasm", import.meta.url).href };

// The smallest module with an instruction of 128 bits.
const SIMD = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11];

const synths = new Map();

/** Load an instrument once; report the share of its bytes that has arrived. */
function load(config, name, report) {
  if (!synths.has(name)) {
    const loading = loadInstrument(config, name, report);
    loading.catch(() => synths.delete(name)); // the next request tries again
    synths.set(name, loading);
  }
  return synths.get(name);
}

async function loadInstrument(config, name, report) {
  if (typeof WebAssembly !== "object" || !WebAssembly.validate(Uint8Array.from(SIMD))) throw new Problem("noSimd");
  const about = config.instruments.find((each) => each.name === name);
  const total = Object.values(about.graphs).reduce((sum, graph) => sum + graph.bytes, 0);
  let arrived = 0;
  const fetchGraph = async ([graph, { file, bytes, sha256: expected }]) => {
    const url = new URL(`./instruments/${name}/${file}`, import.meta.url);
    const response = await fetch(url).catch(() => null);
    if (!response?.ok) throw new Problem("missingFile", { file });
    const content = new Uint8Array(bytes);
    let offset = 0;
    for await (const part of chunks(response.body)) {
      if (offset + part.length <= bytes) content.set(part, offset);
      offset += part.length;
      arrived += part.length;
      report(arrived / total);
    }
    if (offset !== bytes || (await sha256(content)) !== expected) throw new Problem("changedFile", { file });
    return [graph, content];
  };
  const graphs = Object.fromEntries(await Promise.all(Object.entries(about.graphs).map(fetchGraph)));
  return Synth.load(ort, about, graphs);
}

async function* chunks(stream) {
  const reader = stream.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) yield part.value;
}

/** Return a sound as a WAV file with its recipe. */
async function render({ config, sound, settings }, report) {
  const synth = await load(config, sound.instrument, report);
  const { about } = synth;
  const label = about.labels.find((each) => each.slug === sound.label).name;
  const clip = await synth.sound(label, sound.seed, sound.via, settings.temperature);
  const { seconds, lufs } = settings;
  const { wave, steps } = shaped(clip.wave, about.rate, { seconds, lufs }, config.kernel);
  const asked = Object.fromEntries(Object.entries({ seconds, lufs }).filter(([, value]) => value !== null));
  return writeWav(wave, about.rate, await recipeText(config.foleybox, about, clip.make, asked, steps));
}

addEventListener("message", async ({ data }) => {
  const report = (share) => postMessage({ id: data.id, loaded: share });
  try {
    const bytes = await render(data, report);
    postMessage({ id: data.id, bytes }, [bytes.buffer]);
  } catch (error) {
    const problem = error instanceof Problem ? error : new Problem("renderFailed", { reason: String(error).slice(0, 120) });
    postMessage({ id: data.id, problem: { key: problem.key, values: problem.values } });
  }
});
