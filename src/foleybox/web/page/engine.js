// Where sounds come from: the server, or a Worker of this page. Both give WAV files, kept while there is room.

import { addressOf, queryOf } from "./sounds.js";
import { Problem } from "./synth.js";
import { readWav } from "./wave.js";

const MOST_KEPT = 120;
const AT_ONCE = 6;
const TRIES = 30;

const wait = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

class Engine {
  constructor(config) {
    this.config = config;
    this.kept = new Map();
    this.waiting = [];
    this.running = 0;
    this.onload = () => {};
  }

  /** Return { bytes, wave, rate, recipe } of a sound; `signal` takes it out of the queue. */
  async render(sound, settings, signal) {
    const key = addressOf(sound, settings);
    const kept = this.kept.get(key);
    if (kept) {
      this.kept.delete(key);
      this.kept.set(key, kept); // the last one used is the last one forgotten
      return kept;
    }
    await this.turn(signal);
    try {
      const bytes = this.kept.get(key)?.bytes ?? (await this.fetch(sound, settings, signal));
      const found = { bytes, ...readWav(bytes) };
      this.kept.set(key, found);
      if (this.kept.size > MOST_KEPT) this.kept.delete(this.kept.keys().next().value);
      return found;
    } finally {
      this.running -= 1;
      this.next();
    }
  }

  turn(signal) {
    return new Promise((resolve, reject) => {
      this.waiting.push({ resolve, reject, signal });
      this.next();
    });
  }

  next() {
    while (this.running < this.atOnce && this.waiting.length) {
      const { resolve, reject, signal } = this.waiting.shift();
      if (signal?.aborted) {
        reject(signal.reason);
        continue;
      }
      this.running += 1;
      resolve();
    }
  }
}

/** Renders on the server. */
export class ServerEngine extends Engine {
  server = true;
  atOnce = AT_ONCE;

  url(sound, settings, format = "wav") {
    const about = this.config.instruments.find((each) => each.name === sound.instrument);
    const query = queryOf(sound, settings);
    query.set("fingerprint", about.fingerprint.slice(0, 16));
    return new URL(`v1/sounds/${sound.instrument}/${sound.label}/${sound.seed}.${format}?${query}`, document.baseURI).href;
  }

  async fetch(sound, settings, signal) {
    const response = await ask(this.url(sound, settings), { signal });
    return new Uint8Array(await response.arrayBuffer());
  }
}

/** Ask the server; a busy one is asked again. Throws a Problem with the server's sentence. */
export async function ask(url, options = {}) {
  for (let tried = 1; ; tried++) {
    let response;
    try {
      response = await fetch(url, options);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem("serverStopped");
    }
    if (response.ok) return response;
    const reason = (await response.json().catch(() => ({}))).error ?? `${response.status} ${response.statusText}`;
    if (response.status !== 429 || tried === TRIES) throw new Problem("serverSays", { reason });
    await wait(Math.min(Number(response.headers.get("Retry-After")) || 1, 10) * (0.5 + Math.random()));
    options.signal?.throwIfAborted();
  }
}

/** Follow a job of the server to its end; return what it says of itself. `report` is told of every change. */
export async function follow(path, body, report, signal) {
  const post = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal };
  let job = await (await ask(path, post)).json();
  const cancel = () => void fetch(job.url.slice(1), { method: "DELETE" }).catch(() => {});
  signal?.addEventListener("abort", cancel);
  try {
    while (job.state === "queued" || job.state === "running") {
      report(job);
      await wait(0.25);
      signal?.throwIfAborted();
      job = await (await ask(job.url.slice(1), { signal })).json();
    }
  } finally {
    signal?.removeEventListener("abort", cancel);
  }
  if (job.state !== "done") throw new Problem("serverSays", { reason: job.error || job.state });
  return job;
}

/** Renders in a Worker. */
export class WorkerEngine extends Engine {
  server = false;
  atOnce = 1;

  constructor(config) {
    super(config);
    this.calls = new Map();
    this.count = 0;
    this.start();
  }

  start() {
    this.worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
    this.worker.onmessage = ({ data }) => {
      if (data.loaded !== undefined) {
        this.onload(data.loaded);
        return;
      }
      const { resolve, reject } = this.calls.get(data.id);
      this.calls.delete(data.id);
      if (data.problem) reject(new Problem(data.problem.key, data.problem.values));
      else resolve(data.bytes);
    };
    this.worker.onerror = (event) => {
      event.preventDefault();
      for (const { reject } of this.calls.values()) reject(new Problem("noWasm", { reason: event.message ?? "worker.js" }));
      this.calls.clear();
      this.worker.terminate();
      this.start(); // the next request tries again
    };
  }

  url() {
    return null;
  }

  fetch(sound, settings) {
    const { seconds } = settings;
    const about = this.config.instruments.find((each) => each.name === sound.instrument);
    const whole = about.samples / about.rate;
    if (seconds > whole) return Promise.reject(new Problem("notStatic", { seconds: whole }));
    return new Promise((resolve, reject) => {
      const id = this.count++;
      this.calls.set(id, { resolve, reject });
      this.worker.postMessage({ id, config: this.config, sound, settings });
    });
  }
}
