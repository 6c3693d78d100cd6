// The performer: sounds tapped on a timeline, rendered as `foleybox perform` does.

import { h, save, slider } from "./dom.js";
import { ask, follow } from "./engine.js";
import { drawWaveform } from "./picture.js";
import { DEFAULTS } from "./sounds.js";
import { labelName, t } from "./strings.js";
import { store, stored } from "./store.js";
import { Problem } from "./synth.js";
import { move } from "./wall.js";
import { readWav, writePlainWav } from "./wave.js";

const MOST_BYTES = 32 * 2 ** 20;
const FRAME = 1 / 25; // seconds, of a step through a video
const SHORTEST = 4; // seconds of the timeline
const MOST_UNDO = 100;
const READ_HERE = /\.(wav|flac|ogg|mp3|aiff?|m4a|aac|opus|webm)$/i;

const round = (seconds) => Math.round(1000 * seconds) / 1000;

export class Performer {
  constructor(app) {
    this.app = app;
    const kept = stored("scene");
    this.scene = { events: [], seed: 0, humanise: 0, background: {}, ...kept };
    this.label = app.about.labels[1]?.slug ?? app.about.labels[0].slug;
    this.past = [];
    this.chosen = null; // an event
    this.cursor = 0; // seconds
    this.reference = null; // { wave, rate }: the recording that is tapped along to
    this.mix = null; // { wave, rate, bytes, job }
    this.previews = new Map();
    this.element = this.build();
  }

  build() {
    this.pads = h("div", { role: "group", "aria-label": t("pads"), class: "pads" });
    this.tapButton = h("button", { class: "primary", "aria-pressed": "false", title: "R", onclick: () => this.record() }, t("recordTaps"));
    this.micButton = h("button", { "aria-pressed": "false", onclick: () => this.microphone() }, t("recordMic"));
    this.file = h("input", { type: "file", hidden: true, tabindex: "-1", "aria-hidden": "true", onchange: () => this.openFile(this.file.files[0]) });
    const open = h("button", { onclick: () => this.file.click() }, t("openFile"));
    this.undoButton = h("button", { title: "U", disabled: true, onclick: () => this.undo() }, t("undo"));
    const clear = h("button", { onclick: () => this.change(() => (this.scene.events = [])) }, t("clear"));

    this.video = h("video", { controls: true, muted: true, hidden: true, playsinline: true });
    this.video.addEventListener("timeupdate", () => this.moveCursor(this.video.currentTime));
    const step = (direction) => () => {
      this.video.pause();
      this.video.currentTime = Math.max(0, this.video.currentTime + direction * FRAME);
    };
    this.frames = h(
      "div",
      { class: "row", hidden: true },
      h("button", { onclick: step(-1) }, t("frameBack")),
      h("button", { onclick: step(1) }, t("frameForward")),
    );

    this.ruler = h("div", { class: "ruler", "aria-hidden": "true" });
    this.lanes = h("div", { class: "lanes" });
    this.waveform = h("canvas", { class: "mixwave", "aria-hidden": "true" });
    this.playhead = h("div", { class: "playhead" });
    this.track = h("div", { class: "track" }, this.waveform, this.lanes, this.playhead);
    this.track.addEventListener("click", (event) => {
      if (event.target.closest(".event")) return;
      const box = this.track.getBoundingClientRect();
      this.moveCursor(((event.clientX - box.left) / box.width) * this.seconds);
      if (this.video.src) this.video.currentTime = this.cursor;
    });
    this.timeline = h("section", { class: "timeline", "aria-label": t("timeline") }, this.ruler, this.track);

    this.inspector = h("section", { class: "inspector", "aria-label": t("event") });
    const number = (key, name, properties, set) => {
      const input = h("input", { type: "number", name, ...properties });
      input.addEventListener("change", () => this.change(() => set(Number(input.value))));
      return h("label", { class: "number" }, h("span", {}, t(key)), input);
    };
    this.backgrounds = h("div", { class: "column" });
    this.renderButton = h("button", { class: "primary", onclick: () => this.render() }, t("render"));
    this.cancelButton = h("button", { hidden: true, onclick: () => this.abort?.abort() }, t("cancel"));
    this.mixButton = h("button", { disabled: true, onclick: () => this.toggle() }, t("playMix"));
    this.saveMix = h("button", { disabled: true, onclick: () => save("mix.wav", this.mix.bytes, "audio/wav") }, t("downloadMix"));
    this.saveScene = h("button", { disabled: true, onclick: () => this.saveZip() }, t("downloadScene"));
    const scene = h(
      "section",
      { class: "scene", "aria-labelledby": "scene-title" },
      h("h2", { id: "scene-title" }, t("scene")),
      number("sceneSeed", "seed", { min: 0, max: 2 ** 53 - 1, step: 1, value: this.scene.seed }, (value) => (this.scene.seed = Math.max(0, Math.floor(value) || 0))),
      number("humanise", "humanise", { min: 0, max: 200, step: 5, value: this.scene.humanise }, (value) => (this.scene.humanise = Math.min(Math.max(value || 0, 0), 200))),
      this.backgrounds,
      h("div", { class: "column" }, this.renderButton, this.cancelButton, this.mixButton, this.saveMix, this.saveScene),
    );
    if (!this.app.engine.server) {
      this.renderButton.disabled = true;
      scene.append(h("p", { class: "hint" }, t("needsServer")));
    }
    const element = h(
      "div",
      { id: "performer", class: "view performer", role: "tabpanel", "aria-labelledby": "tab-performer" },
      h(
        "section",
        { class: "stage" },
        h("p", { class: "hint" }, t("performerIntro")),
        this.pads,
        h("div", { class: "bar" }, this.tapButton, this.micButton, open, this.file, h("span", { class: "space" }), clear, this.undoButton),
        this.video,
        this.frames,
        this.timeline,
        this.inspector,
      ),
      h("aside", { class: "side" }, scene),
    );
    element.addEventListener("dragover", (event) => event.preventDefault());
    element.addEventListener("drop", (event) => {
      event.preventDefault();
      this.openFile(event.dataTransfer.files[0]);
    });
    return element;
  }

  useInstrument() {
    this.previews.clear();
    this.change(() => {});
    this.shown();
  }

  shown() {
    const { labels } = this.app.about;
    this.pads.replaceChildren(
      ...labels.map(({ slug }, index) =>
        h("button", { class: "pad", onclick: () => this.tap(slug) }, h("span", {}, labelName(slug)), h("kbd", { "aria-hidden": "true" }, String(index + 1))),
      ),
    );
    this.backgrounds.replaceChildren(
      ...labels.filter(({ steady }) => steady).map(({ slug }) =>
        slider(
          `${t("background")}: ${labelName(slug)}`,
          { name: slug, min: 0, max: 1, step: 0.05, value: this.scene.background[slug] ?? 0, format: String },
          (value) => this.change(() => (this.scene.background[slug] = value)),
        ),
      ),
    );
    for (const { slug } of labels) this.preview(slug).catch(() => {}); // so that the first tap sounds at once
    this.draw();
  }

  // --- events -----------------------------------------------------------------------------------------------------

  get seconds() {
    const last = Math.max(0, ...this.scene.events.map((event) => event.time));
    const reference = this.reference ? this.reference.wave.length / this.reference.rate : 0;
    const mix = this.mix ? this.mix.wave.length / this.mix.rate : 0;
    const video = Number.isFinite(this.video.duration) ? this.video.duration : 0;
    return Math.max(SHORTEST, last + 1, reference, mix, video, this.recording ? this.cursor + 1 : 0);
  }

  /** Change the scene; it can be undone, and the mix is one of the scene before. */
  change(edit) {
    this.past.push(structuredClone(this.scene));
    if (this.past.length > MOST_UNDO) this.past.shift();
    edit();
    this.changed();
  }

  changed() {
    this.scene.events.sort((a, b) => a.time - b.time);
    store("scene", this.scene);
    this.undoButton.disabled = !this.past.length;
    if (this.mix) this.renderButton.textContent = t("renderAgain");
    this.draw();
  }

  undo() {
    const last = this.past.pop();
    if (!last) return;
    this.scene = last;
    this.chosen = null;
    this.changed();
    this.shown();
  }

  add(label, time, more = {}) {
    const event = { time: round(Math.max(0, time)), label, velocity: 1, seed: null, ...more };
    this.change(() => this.scene.events.push(event));
    return event;
  }

  /** A tap: played at once, and placed at the cursor while taps are recorded. */
  tap(label) {
    this.label = label;
    if (this.recording || (this.video.src && !this.video.paused)) this.chosen = this.add(label, this.now());
    this.preview(label)
      .then(({ wave, rate }) => this.playPreview(wave, rate))
      .catch((error) => this.app.problem(error));
    this.draw();
  }

  preview(label, seed = 0) {
    const key = `${label}/${seed}`;
    if (!this.previews.has(key)) {
      const sound = { instrument: this.app.about.name, label, seed, via: [] };
      const rendering = this.app.engine.render(sound, { ...DEFAULTS, lufs: -24 });
      rendering.catch(() => this.previews.delete(key));
      this.previews.set(key, rendering);
    }
    return this.previews.get(key);
  }

  playPreview(wave, rate) {
    const context = (this.context ??= new AudioContext());
    context.resume().catch(() => {});
    const loud = wave.findIndex((sample) => Math.abs(sample) > 0.05);
    const buffer = context.createBuffer(1, wave.length, rate);
    buffer.copyToChannel(wave, 0);
    const source = context.createBufferSource();
    source.buffer = buffer;
    source.connect(context.destination);
    source.start(0, Math.max(0, loud / rate - 0.005), 1.5);
  }

  // --- recording --------------------------------------------------------------------------------------------------

  now() {
    if (this.video.src) return this.video.currentTime;
    return this.startedAt === null ? this.cursor : this.startCursor + (performance.now() - this.startedAt) / 1000;
  }

  record() {
    this.recording = !this.recording;
    this.tapButton.setAttribute("aria-pressed", String(this.recording));
    this.tapButton.textContent = t(this.recording ? "stopTaps" : "recordTaps");
    if (this.video.src) this.recording ? this.video.play() : this.video.pause();
    if (!this.recording) {
      this.app.player.stop();
      this.cursor = 0;
      this.startedAt = null;
      this.draw();
      return;
    }
    this.startCursor = this.cursor;
    this.startedAt = performance.now();
    if (this.reference && !this.cursor) this.app.player.play("reference", this.reference.wave, this.reference.rate);
    const follow = () => {
      if (!this.recording) return;
      this.moveCursor(this.now());
      requestAnimationFrame(follow);
    };
    follow();
  }

  moveCursor(seconds) {
    const before = this.seconds;
    this.cursor = Math.max(0, seconds);
    if (this.seconds !== before) this.draw();
    move(this.playhead, `${(100 * this.cursor) / this.seconds}%`);
  }

  /** Record the microphone; when it is stopped, each separate sound becomes an event. */
  async microphone() {
    if (this.recorder) {
      this.recorder.stop();
      return;
    }
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: { echoCancellation: false, noiseSuppression: false, autoGainControl: false } });
    } catch (error) {
      this.app.problem(new Problem("noMicrophone", { reason: error.message ?? "" }));
      return;
    }
    const parts = [];
    this.recorder = new MediaRecorder(stream);
    this.recorder.ondataavailable = ({ data }) => parts.push(data);
    this.recorder.onstop = async () => {
      stream.getTracks().forEach((track) => track.stop());
      this.recorder = null;
      this.micButton.setAttribute("aria-pressed", "false");
      this.micButton.textContent = t("recordMic");
      await this.openFile(new File(parts, `${t("recordMic")}.webm`));
    };
    this.recorder.start();
    this.micButton.setAttribute("aria-pressed", "true");
    this.micButton.textContent = t("stopMic");
    this.app.say(t("micListening"));
  }

  /** Open a recording, a MIDI file, a table of times, or a video. */
  async openFile(file) {
    this.file.value = "";
    if (!file) return;
    const { name } = file;
    if (file.type.startsWith("video/")) {
      this.video.src = URL.createObjectURL(file);
      this.video.hidden = this.frames.hidden = false;
      this.video.onloadedmetadata = () => this.draw();
      this.video.onerror = () => this.app.problem(new Problem("notRead", { name, reason: this.video.error?.message ?? "" }));
      return;
    }
    try {
      if (file.size > MOST_BYTES) throw new Problem("tooBig", { name });
      if (!this.app.engine.server) throw new Problem("needsServer");
      let [bytes, sent] = [new Uint8Array(await file.arrayBuffer()), name];
      if (READ_HERE.test(name)) {
        this.reference = await this.decode(bytes, name);
        [bytes, sent] = [writePlainWav(this.reference.wave, this.reference.rate), `${name}.wav`];
        if (bytes.length > MOST_BYTES) throw new Problem("tooBig", { name });
      }
      const response = await ask(`v1/events?name=${encodeURIComponent(sent)}`, { method: "POST", body: bytes });
      const { events } = await response.json();
      const known = new Set(this.app.about.labels.map(({ slug }) => slug));
      this.change(() => {
        for (const { time, label, velocity, seed } of events) {
          const slug = label.toLowerCase().replaceAll(" ", "_");
          this.scene.events.push({ time: round(time), label: known.has(slug) ? slug : this.label, velocity: round(velocity), seed });
        }
      });
      this.app.say(t("foundEvents", { count: events.length, name }));
    } catch (error) {
      this.app.problem(error);
    }
  }

  async decode(bytes, name) {
    const context = (this.context ??= new AudioContext());
    try {
      const buffer = await context.decodeAudioData(bytes.slice().buffer);
      const wave = new Float32Array(buffer.length);
      for (let channel = 0; channel < buffer.numberOfChannels; channel++) {
        buffer.getChannelData(channel).forEach((sample, n) => (wave[n] += sample / buffer.numberOfChannels));
      }
      return { wave, rate: buffer.sampleRate };
    } catch (error) {
      throw new Problem("notRead", { name, reason: error.message ?? "" });
    }
  }

  // --- rendering --------------------------------------------------------------------------------------------------

  async render() {
    const { events, seed, humanise, background } = this.scene;
    const surfaces = Object.fromEntries(Object.entries(background).filter(([, value]) => value > 0));
    const body = { instrument: this.app.about.name, events, surfaces, seed, style: { humanise } };
    if (!events.length) body.seconds = this.seconds;
    this.abort = new AbortController();
    this.renderButton.disabled = true;
    this.cancelButton.hidden = false;
    try {
      const report = ({ done, total }) => this.app.say(total ? t("sceneWorking", { done, total }) : t("sceneStarting"));
      const job = await follow("v1/perform", body, report, this.abort.signal);
      const response = await ask(job.files["mix.wav"].url.slice(1));
      const bytes = new Uint8Array(await response.arrayBuffer());
      this.mix = { bytes, ...readWav(bytes), job };
      for (const button of [this.mixButton, this.saveMix, this.saveScene]) button.disabled = false;
      this.app.say(t("sceneDone", { count: events.length, seconds: (this.mix.wave.length / this.mix.rate).toFixed(1) }));
      this.draw();
    } catch (error) {
      this.app.problem(error);
    }
    this.renderButton.disabled = false;
    this.cancelButton.hidden = true;
  }

  async saveZip() {
    try {
      const response = await ask(this.mix.job.files["scene.zip"].url.slice(1));
      save("scene.zip", new Uint8Array(await response.arrayBuffer()), "application/zip");
    } catch (error) {
      this.app.problem(error);
    }
  }

  toggle() {
    if (this.app.player.key) this.app.player.stop();
    else if (this.mix) this.app.player.play("mix", this.mix.wave, this.mix.rate).catch((error) => this.app.problem(error));
  }

  playing() {
    const { player } = this.app;
    this.mixButton.textContent = player.key ? t("stop") : t("playMix");
    const draw = () => {
      if (player.key !== "mix") return;
      const seconds = (player.position * this.mix.wave.length) / this.mix.rate;
      move(this.playhead, `${(100 * seconds) / this.seconds}%`);
      requestAnimationFrame(draw);
    };
    draw();
    if (!player.key && !this.recording) move(this.playhead, `${(100 * this.cursor) / this.seconds}%`);
  }

  // --- drawing ----------------------------------------------------------------------------------------------------

  draw() {
    if (this.element.hidden) return;
    const { seconds } = this;
    const labels = this.app.about.labels.map(({ slug }) => slug);
    const focused = document.activeElement?.classList.contains("event");
    this.lanes.replaceChildren(
      ...labels.map((slug) => {
        const lane = h("div", { class: "lane" }, h("span", { class: "lane-name", "aria-hidden": "true" }, labelName(slug)));
        for (const event of this.scene.events.filter((each) => each.label === slug)) lane.append(this.marker(event, seconds));
        return lane;
      }),
    );
    if (focused) this.lanes.querySelector('[aria-pressed="true"]')?.focus();
    const every = [0.5, 1, 2, 5, 10, 30, 60].find((each) => seconds / each <= 12) ?? 60;
    this.ruler.replaceChildren(
      ...Array.from({ length: Math.floor(seconds / every) + 1 }, (_, index) => {
        const tick = h("span", {}, `${round(index * every)} s`);
        tick.style.left = `${(100 * index * every) / seconds}%`;
        return tick;
      }),
    );
    const { wave, rate } = this.mix ?? this.reference ?? {};
    drawWaveform(this.waveform, wave ?? null, rate, seconds);
    move(this.playhead, `${(100 * this.cursor) / seconds}%`);
    this.renderButton.disabled = !this.app.engine.server || Boolean(this.abort && !this.cancelButton.hidden) || (!this.scene.events.length && !Object.values(this.scene.background).some(Boolean));
    this.inspect();
  }

  marker(event, seconds) {
    const chosen = event === this.chosen;
    const label = t("eventAt", { label: labelName(event.label), time: event.time.toFixed(2), velocity: event.velocity });
    const marker = h("button", { class: "event", "aria-label": label, "aria-pressed": String(chosen), onclick: () => this.choose(event) });
    marker.style.left = `${(100 * event.time) / seconds}%`;
    marker.style.setProperty("--strength", event.velocity);
    marker.addEventListener("pointerdown", (down) => this.dragMarker(down, event, marker));
    return marker;
  }

  choose(event) {
    this.chosen = event;
    this.moveCursor(event.time);
    this.draw();
    this.lanes.querySelector('[aria-pressed="true"]')?.focus();
  }

  dragMarker(down, event, marker) {
    const box = this.track.getBoundingClientRect();
    const { seconds } = this;
    const start = down.clientX;
    let moved = false;
    marker.setPointerCapture(down.pointerId);
    const shift = (pointer) => round(Math.max(0, event.time + ((pointer.clientX - start) / box.width) * seconds));
    marker.onpointermove = (pointer) => {
      moved ||= Math.abs(pointer.clientX - start) > 3;
      if (moved) marker.style.left = `${(100 * shift(pointer)) / seconds}%`;
    };
    marker.onpointerup = (pointer) => {
      marker.onpointermove = marker.onpointerup = null;
      this.chosen = event;
      if (moved) this.change(() => (event.time = shift(pointer)));
    };
  }

  /** Show the fields of the chosen event. */
  inspect() {
    const event = this.scene.events.includes(this.chosen) ? this.chosen : null;
    this.chosen = event;
    const add = h("button", { onclick: () => this.choose(this.add(this.label, this.cursor)) }, t("addEvent"));
    if (!event) {
      const hint = this.scene.events.length ? null : h("p", { class: "hint" }, t("eventsNone"));
      this.inspector.replaceChildren(...[hint, h("div", { class: "row" }, add)].filter(Boolean));
      return;
    }
    const field = (key, input, set) => {
      input.addEventListener("change", () => this.change(() => set(input.value)));
      return h("label", { class: "number" }, h("span", {}, t(key)), input);
    };
    const options = this.app.about.labels.map(({ slug }) => h("option", { value: slug, selected: slug === event.label }, labelName(slug)));
    this.inspector.replaceChildren(
      h(
        "div",
        { class: "row" },
        field("time", h("input", { type: "number", min: 0, max: 600, step: 0.01, value: event.time }), (value) => (event.time = round(Math.min(Math.max(Number(value) || 0, 0), 600)))),
        field("sound", h("select", {}, options), (value) => (event.label = value)),
        field("strength", h("input", { type: "number", min: 0.05, max: 1, step: 0.05, value: event.velocity }), (value) => (event.velocity = strength(Number(value) || 1))),
        field("variation", h("input", { type: "number", min: 0, step: 1, placeholder: t("variationAny"), value: event.seed ?? "" }), (value) => (event.seed = value === "" ? null : Math.max(0, Math.floor(Number(value))))),
        h("button", { onclick: () => this.another(), title: "C" }, t("anotherSound")),
        h("button", { onclick: () => this.remove(), title: t("delete") }, t("delete")),
        add,
      ),
    );
  }

  another() {
    const event = this.chosen;
    this.change(() => (event.seed = (event.seed ?? -1) + 1));
    this.preview(event.label, event.seed)
      .then(({ wave, rate }) => this.playPreview(wave, rate))
      .catch((error) => this.app.problem(error));
  }

  remove() {
    const index = this.scene.events.indexOf(this.chosen);
    this.change(() => this.scene.events.splice(index, 1));
    const next = this.scene.events[Math.min(index, this.scene.events.length - 1)];
    if (next) this.choose(next);
  }

  key(event) {
    const { key, shiftKey } = event;
    const button = event.target.closest?.("button");
    const slider = event.target.closest?.("input[type=range]");
    const edit = (change) => this.chosen && this.change(change);
    const shift = (direction) => edit(() => (this.chosen.time = round(Math.max(0, this.chosen.time + direction * (shiftKey ? 0.1 : 0.01)))));
    const louder = (by) => edit(() => (this.chosen.velocity = strength(this.chosen.velocity + by)));
    const actions = {
      r: () => this.record(),
      u: () => this.undo(),
      c: () => this.chosen && this.another(),
      Delete: () => this.chosen && this.remove(),
      Backspace: () => this.chosen && this.remove(),
      ArrowLeft: () => shift(-1),
      ArrowRight: () => shift(1),
      ArrowUp: () => louder(0.1),
      ArrowDown: () => louder(-0.1),
    };
    if (slider || (event.repeat && /^\d$/.test(key))) return;
    if (/^[1-9]$/.test(key) && this.app.about.labels[key - 1]) this.tap(this.app.about.labels[key - 1].slug);
    else if (key === " " && (!button || button.classList.contains("event"))) this.recording ? this.record() : this.toggle();
    else if (actions[key] ?? actions[key.toLowerCase()]) (actions[key] ?? actions[key.toLowerCase()])();
    else return;
    event.preventDefault();
  }
}

function strength(value) {
  return Math.min(Math.max(Math.round(100 * value) / 100, 0.05), 1);
}
