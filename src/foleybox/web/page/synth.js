// An instrument on onnxruntime-web: the port of studio/synth.py, studio/stream.py and `vary`, one clip at a time.

import { noise } from "./seeds.js";
import { eventLoudness, peakOf } from "./shape.js";

const AUDIBLE = 10 ** (-45 / 20);
const STREAMS_TRIED = 8;
const VARY = 8; // stream of the direction of a variation
const LOST_DB = 10; // a variation that is this much quieter than its source is drawn again

/** An error that is shown as a sentence: `key` is one of strings.js, `values` fill it in. */
export class Problem extends Error {
  constructor(key, values = {}) {
    super(key);
    this.key = key;
    this.values = values;
  }
}

const size = (shape) => shape.reduce((product, each) => product * each, 1);

export class Synth {
  /** `about` describes the instrument, as web/site.py writes it; `graphs` are its files by name. */
  static async load(ort, about, graphs) {
    const sessions = {};
    try {
      for (const [name, content] of Object.entries(graphs)) {
        sessions[name] = await ort.InferenceSession.create(content, { executionProviders: ["wasm"], logSeverityLevel: 3 });
      }
    } catch (error) {
      const reason = String(error.message ?? error);
      if (/no available backend/.test(reason)) throw new Problem("noWasm", { reason: reason.replace(/.*(Error: )/, "").slice(0, 80) });
      throw new Problem("brokenInstrument", { name: about.name, reason: reason.slice(0, 80) });
    }
    return new Synth(ort, about, sessions);
  }

  constructor(ort, about, sessions) {
    Object.assign(this, { ort, about, sessions });
  }

  /** Return { wave, make } of a label (the instrument's own name), a seed, and steps; `make` as in a recipe. */
  async sound(label, seed, via, temperature) {
    let clip = await this.render(label, seed, temperature);
    for (const [kind, amount, other] of via) {
      if (kind !== "vary") throw new Problem("needsServer");
      clip = await this.vary(label, clip, amount, other, temperature);
    }
    return clip;
  }

  async render(label, seed, temperature) {
    for (let stream = 0; ; stream++) {
      const point = { latent: noise(seed, size(this.about.latent), stream), source: null, follow: 0 };
      const wave = await this.wave(label, point, temperature);
      if (stream === STREAMS_TRIED - 1 || !isSilent(wave)) {
        return { wave, point, make: { do: "render", label, seed, temperature, stream } };
      }
    }
  }

  /** Return the variation of a clip with a seed, as `latents.vary` does. */
  async vary(label, clip, amount, seed, temperature) {
    const { rate, kind, latent } = this.about;
    const follow = kind === "patches" ? 1 - amount : 0;
    const quietest = follow ? eventLoudness(clip.wave, rate) - LOST_DB : -Infinity;
    const [cosine, sine] = [Math.cos((amount * Math.PI) / 2), Math.sin((amount * Math.PI) / 2)];
    for (let stream = 0; ; stream++) {
      const direction = noise(seed, size(latent), VARY + stream);
      const moved = Float64Array.from(clip.point.latent, (z, n) => cosine * z + sine * direction[n]);
      const point = { latent: moved, source: follow ? clip.point : null, follow };
      const wave = await this.wave(label, point, temperature);
      const lost = isSilent(wave) || (follow > 0 && eventLoudness(wave, rate) < quietest);
      if (stream === STREAMS_TRIED - 1 || !lost) {
        const made = { do: "vary", of: clip.make, amount, ...(follow ? { follow } : {}) };
        return { wave, point, make: { ...made, seed, stream } };
      }
    }
  }

  /** Return the wave of a point: a latent of standard normal noise, which `temperature` scales, and what it follows. */
  async wave(label, point, temperature) {
    return this.vocode(await this.mel(label, point, temperature));
  }

  async mel(label, point, temperature) {
    const { about, ort } = this;
    const number = about.labels.findIndex((each) => each.name === label);
    const factor = Math.fround(temperature);
    const latent = Float32Array.from(point.latent, (z) => Math.fround(z) * factor);
    const tensor = (data, shape) => new ort.Tensor("float32", data, shape);
    if (about.kind === "gan") {
      const inputs = [tensor(latent, [1, ...about.latent]), new ort.Tensor("int64", BigInt64Array.of(BigInt(number)), [1])];
      return (await this.run("generator", inputs))[0];
    }
    const [positions, numbers] = about.latent;
    const [{ shape: [, , width] }, { shape: [, , channels] }] = about.inputs.decoder;
    const latents = await this.latents(number, point, factor);
    const fine = new Float32Array(positions * (numbers - width));
    for (let p = 0; p < positions; p++) {
      fine.set(latent.subarray(p * numbers + width, (p + 1) * numbers), p * (numbers - width));
    }
    const inputs = [tensor(latents, [1, positions, width]), tensor(fine, [1, fine.length / channels, channels])];
    return (await this.run("decoder", inputs))[0];
  }

  /** Return the latents of a point, which it keeps for those that follow it. */
  async latents(number, point, factor) {
    const followed = point.source && (await this.latents(number, point.source, factor));
    const latent = Float32Array.from(point.latent, (z) => Math.fround(z) * factor);
    point.latents ??= await this.draw(number, latent, this.about.inputs.decoder[0].shape[2], followed, Math.fround(point.follow));
    return point.latents;
  }

  /** Draw position after position; with guidance a clip has a second row, without its label. */
  async draw(number, latent, width, followed, follow) {
    const { about, ort } = this;
    const [positions, numbers] = about.latent;
    const guidance = Math.fround(about.guidance[number]);
    const factor = Math.fround(about.temperature[number]);
    const rows = guidance === 1 ? 1 : 2;
    const rest = Math.fround(1 - guidance);
    const tensor = (data, shape) => new ort.Tensor("float32", data, shape);
    const labels = BigInt64Array.from(rows === 1 ? [number] : [number, -1], BigInt);
    const label = new ort.Tensor("int64", labels, [rows]);
    const mix = tensor(Float32Array.from(rows === 1 ? [guidance] : [guidance, rest, guidance, rest]), [rows, rows]);
    const caches = about.inputs.next.slice(5).map(({ shape }) => {
      const [, heads, window, each] = shape;
      const data = new Float32Array(rows * heads * window * each);
      return { data, heads, window, each, tensor: tensor(data, [rows, heads, window, each]) };
    });
    const latents = new Float32Array(positions * width);
    let previous = new Float32Array(rows * width);
    for (let p = 0; p < positions; p++) {
      const own = latent.subarray(p * numbers, p * numbers + width).map((z) => z * factor);
      const noises = new Float32Array(rows * width);
      for (let row = 0; row < rows; row++) noises.set(own, row * width);
      const position = new ort.Tensor("int64", BigInt64Array.of(BigInt(p)), []);
      const fixed = [tensor(previous, [rows, width]), label, mix, position, tensor(noises, [rows, width])];
      const [next, ...entries] = await this.run("next", [...fixed, ...caches.map((cache) => cache.tensor)]);
      previous = next.data;
      latents.set(previous.subarray(0, width), p * width);
      if (followed) {
        previous = previous.map((own, n) => own + Math.fround(follow * Math.fround(followed[p * width + (n % width)] - own)));
      }
      caches.forEach(({ data, heads, window, each }, index) => {
        const entry = entries[index].data;
        for (let row = 0; row < rows * heads; row++) {
          data.set(entry.subarray(row * each, (row + 1) * each), (row * window + (p % window)) * each);
        }
      });
    }
    return latents;
  }

  async vocode(mel) {
    const [wave] = await this.run("vocoder", [mel]);
    if (!wave.data.every(Number.isFinite)) throw new Problem("brokenInstrument", { name: this.about.name, reason: "NaN" });
    const fitted = new Float32Array(this.about.samples);
    fitted.set(wave.data.subarray(0, fitted.length));
    return fitted;
  }

  /** Run a graph; inputs and outputs in its own order. */
  async run(graph, inputs) {
    const session = this.sessions[graph];
    const feeds = Object.fromEntries(this.about.inputs[graph].map(({ name }, index) => [name, inputs[index]]));
    const results = await session.run(feeds);
    return session.outputNames.map((name) => results[name]);
  }
}

export function isSilent(wave) {
  return peakOf(wave) < AUDIBLE;
}
