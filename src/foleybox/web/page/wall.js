// The wall: twelve sounds as tiles, of consecutive seeds, of variations of a sound, or between two sounds.

import { ask, h, save, slider } from "./dom.js";
import { follow } from "./engine.js";
import { drawSpectrogram, drawWaveform } from "./picture.js";
import { eventLoudness } from "./shape.js";
import { DEFAULTS, addressOf, fileName } from "./sounds.js";
import { labelName, t } from "./strings.js";
import { store, stored } from "./store.js";
import { zip } from "./wave.js";

const COUNT = 12;
const MOST_UNDO = 100;
const MOST_SEED = 2 ** 53 - 1 - COUNT;
const LENGTHS = [null, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4]; // seconds, then those that the server alone can make
const LONGER = [6, 8, 12, 20, 30];
const LOUDNESS = [null, ...Array.from({ length: 31 }, (_, index) => index - 40)];
const ENGINES = ["none", "godot", "unity", "wwise", "unreal"];

export class Wall {
  constructor(app) {
    this.app = app;
    this.state = null; // { view, settings, amount }: what undo restores, with the stars
    this.past = [];
    this.tiles = [];
    this.chosen = 0;
    this.other = null; // the sound whose other end is being chosen
    this.stars = (stored("stars") ?? []).filter((star) => star?.sound?.label && star.settings);
    this.lengths = app.engine.server ? [...LENGTHS, ...LONGER] : LENGTHS;
    this.element = this.build();
    app.player.onchange = () => this.playing();
    this.showStars();
  }

  build() {
    const settings = (name, value) => this.change({ settings: { ...this.state.settings, [name]: value } });
    this.labels = h("div", { role: "group", "aria-label": t("labels"), class: "labels" });
    this.temperature = slider(
      t("temperature"),
      { name: "temperature", min: 0, max: 2, step: 0.05, value: 1, format: (value) => value.toFixed(2), hint: t("temperatureHint") },
      (value) => settings("temperature", value),
    );
    this.seconds = slider(
      t("seconds"),
      {
        name: "seconds", min: 0, max: this.lengths.length - 1, step: 1, value: 0,
        format: (index) => (this.lengths[index] === null ? t("secondsAuto") : t("secondsUnit", { value: this.lengths[index] })),
      },
      (index) => settings("seconds", this.lengths[index]),
    );
    this.loudness = slider(
      t("loudness"),
      {
        name: "lufs", min: 0, max: LOUDNESS.length - 1, step: 1, value: 0,
        format: (index) => (LOUDNESS[index] === null ? t("loudnessAuto") : t("loudnessUnit", { value: LOUDNESS[index] })),
      },
      (index) => settings("lufs", LOUDNESS[index]),
    );
    this.amount = slider(
      t("amount"),
      { name: "amount", min: 0.05, max: 1, step: 0.05, value: 0.3, format: (value) => value.toFixed(2), hint: t("amountHint") },
      (amount) => {
        const { view } = this.state;
        this.change({ amount, view: view.kind === "vary" ? { ...view, amount } : view });
      },
    );
    this.seed = h("input", { type: "number", name: "seed", min: 0, max: MOST_SEED, step: 1, value: 0 });
    this.seed.addEventListener("change", () => this.showSeeds(this.state.view.label, Math.floor(Number(this.seed.value))));
    const controls = h(
      "aside",
      { class: "controls", "aria-label": t("settings") },
      h("h2", {}, t("labels")),
      this.labels,
      h(
        "details",
        { class: "settings", open: matchMedia("(min-width: 700px)").matches },
        h("summary", {}, t("settings")),
        this.temperature,
        this.seconds,
        this.loudness,
        this.amount,
        h("label", { class: "number" }, h("span", {}, t("firstSeed")), this.seed),
      ),
    );

    this.title = h("h2", { id: "wall-title" });
    this.undoButton = h("button", { onclick: () => this.undo(), title: "U" }, t("undo"));
    this.back = h("button", { onclick: () => this.showSeeds(this.state.view.label, this.state.view.of?.seed ?? 0) });
    this.grid = h("ul", { class: "grid", "aria-labelledby": "wall-title" });
    const wall = h(
      "section",
      { class: "tiles", "aria-labelledby": "wall-title" },
      h(
        "div",
        { class: "bar" },
        this.title,
        h("span", { class: "space" }),
        this.back,
        (this.previous = h("button", { onclick: () => this.page(-1), title: "P" }, t("earlier"))),
        (this.next = h("button", { onclick: () => this.page(1), title: "N" }, t("later"))),
        (this.shuffleButton = h("button", { onclick: () => this.shuffle() }, t("shuffle"))),
        this.undoButton,
      ),
      this.grid,
      this.buildPlayer(),
    );

    this.starList = h("ul", { class: "stars" });
    this.zipButton = h("button", { class: "primary", title: t("zipHint"), onclick: () => this.saveZip() }, t("zip"));
    this.packButton = h("button", { onclick: () => this.makePack() }, t("exportPack"));
    const starred = h(
      "aside",
      { class: "starred", "aria-labelledby": "starred-title" },
      h("h2", { id: "starred-title" }, t("starred")),
      this.starList,
      (this.starNone = h("p", { class: "hint" }, t("starredNone"))),
      h("div", { class: "column" }, this.zipButton, this.packButton),
    );
    if (!this.app.engine.server) {
      this.packButton.disabled = true;
      this.packButton.title = t("needsServer");
    }
    return h("div", { id: "wall", class: "view wall", role: "tabpanel", "aria-labelledby": "tab-wall" }, controls, wall, starred);
  }

  buildPlayer() {
    const button = (key, letter, action, properties = {}) => h("button", { onclick: action, title: `${t(key)} (${letter})`, ...properties }, t(key));
    this.playButton = h("button", { class: "primary play", onclick: () => this.toggle() }, t("play"));
    this.loopButton = button("loop", "L", () => this.setLoop(!this.app.player.loop), { "aria-pressed": "false" });
    this.starButton = button("star", "S", () => this.star());
    this.varyButton = button("moreLikeThis", "V", () => this.vary());
    this.betweenButton = button("between", "B", () => this.between(), { "aria-pressed": "false" });
    this.saveButton = button("download", "D", () => this.saveOne(), { title: `${t("downloadHint")} (D)` });
    this.linkButton = h("button", { onclick: () => this.copyLink() }, t("copyLink"));
    this.name = h("p", { class: "name" }, t("nothingSelected"));
    this.waveform = h("canvas", { class: "waveform", "aria-hidden": "true" });
    this.playhead = h("div", { class: "playhead", hidden: true });
    this.strip = h("div", { class: "strip", draggable: "true", title: t("downloadHint") }, this.waveform, this.playhead);
    this.strip.addEventListener("dragstart", (event) => this.drag(event, this.tiles[this.chosen]));
    if (!this.app.engine.server) Object.assign(this.betweenButton, { disabled: true, title: t("needsServer") });
    return h(
      "div",
      { class: "player", role: "group", "aria-label": t("play") },
      this.playButton,
      this.loopButton,
      h("div", { class: "now" }, this.name, this.strip),
      h("div", { class: "actions" }, this.starButton, this.varyButton, this.betweenButton, this.saveButton, this.linkButton),
    );
  }

  // --- what is shown ----------------------------------------------------------------------------------------------

  shown() {
    this.drawBar();
  }

  useInstrument() {
    const { view, settings, amount } = this.state;
    const known = this.app.about.labels.some(({ slug }) => slug === view.label);
    this.change({ view: { kind: "seeds", label: known ? view.label : this.app.about.labels[0].slug, seed: view.seed ?? view.of?.seed ?? 0 }, settings, amount });
  }

  showSeeds(label, seed) {
    const first = Math.min(Math.max(Number.isFinite(seed) ? seed : 0, 0), MOST_SEED);
    this.change({ view: { kind: "seeds", label, seed: first } });
  }

  /** Show a sound first, with its neighbours: the seeds after it, or other variations like it. */
  openSound(sound, settings) {
    const view = sound.via.length ? { kind: "one", label: sound.label, of: sound } : { kind: "seeds", label: sound.label, seed: Math.min(sound.seed, MOST_SEED) };
    this.change({ view, settings });
  }

  /** Go to another state, which can be undone; `changes` replaces parts of it. */
  change(changes) {
    if (this.state) this.remember();
    this.state = { settings: DEFAULTS, amount: 0.3, ...this.state, ...changes };
    this.chosen = 0;
    this.other = null;
    this.show();
  }

  remember() {
    this.past.push(structuredClone({ state: this.state, stars: this.stars, instrument: this.app.about.name, chosen: this.chosen }));
    if (this.past.length > MOST_UNDO) this.past.shift();
    this.undoButton.disabled = false;
  }

  undo() {
    const last = this.past.pop();
    if (!last) return;
    if (last.instrument !== this.app.about.name) {
      this.app.about = this.app.config.instruments.find((each) => each.name === last.instrument);
      this.app.showInstrument();
    }
    const same = JSON.stringify(last.state) === JSON.stringify(this.state);
    Object.assign(this, { state: last.state, stars: last.stars, chosen: last.chosen });
    this.showStars();
    if (!same) this.show();
  }

  /** The twelve sounds of a state, with the name of each. */
  sounds() {
    const { view } = this.state;
    const numbers = Array.from({ length: COUNT }, (_, index) => index);
    const instrument = this.app.about.name;
    switch (view.kind) {
      case "seeds":
        return numbers.map((n) => ({ sound: { instrument, label: view.label, seed: view.seed + n, via: [] }, name: t("seedName", { seed: view.seed + n }) }));
      case "vary": {
        const varied = (n) => ({ ...view.of, via: [...view.of.via, ["vary", view.amount, view.first + n]] });
        const rest = numbers.slice(1).map((n) => ({ sound: varied(n - 1), name: t("varyName", { seed: view.first + n - 1 }) }));
        return [{ sound: view.of, name: this.nameOf(view.of) }, ...rest];
      }
      case "morph":
        return numbers.map((n) => {
          const at = Math.round((10_000 * n) / (COUNT - 1)) / 10_000;
          const end = n === 0 ? view.of : n === COUNT - 1 ? view.to : null;
          const { label, seed, via } = view.to;
          const sound = end ?? { ...view.of, via: [...view.of.via, ["morph", at, [label, seed, ...via]]] };
          return { sound, name: t("morphName", { percent: Math.round(100 * at) }) };
        });
      default:
        return [{ sound: view.of, name: this.nameOf(view.of) }];
    }
  }

  nameOf(sound) {
    const last = sound.via.at(-1);
    if (!last) return t("seedName", { seed: sound.seed });
    return last[0] === "vary" ? t("varyName", { seed: last[2] }) : t("morphName", { percent: Math.round(100 * last[1]) });
  }

  show() {
    const { view, settings, amount } = this.state;
    this.app.player.stop();
    this.abort?.abort();
    this.abort = new AbortController();
    this.showControls(view, settings, amount);
    this.tiles = this.sounds().map((each, index) => this.buildTile(each, index));
    this.grid.replaceChildren(...this.tiles.map((tile) => tile.element));
    this.choose(this.chosen, false);
    this.undoButton.disabled = !this.past.length;
    this.done = 0;
    this.app.say(t("rendering", { done: 0, total: this.tiles.length }));
    for (const tile of this.tiles) this.renderTile(tile, settings, this.abort.signal);
  }

  showControls(view, settings, amount) {
    const label = labelName(view.label);
    const buttons = this.app.about.labels.map(({ slug }, index) =>
      h(
        "button",
        { "aria-pressed": String(slug === view.label), onclick: () => this.showSeeds(slug, this.state.view.seed ?? 0) },
        h("span", {}, labelName(slug)),
        h("kbd", { "aria-hidden": "true" }, String(index + 1)),
      ),
    );
    const focused = [...this.labels.children].indexOf(document.activeElement);
    this.labels.replaceChildren(...buttons);
    if (focused >= 0) buttons[focused]?.focus();
    this.temperature.set(settings.temperature);
    this.seconds.set(nearest(this.lengths, settings.seconds));
    this.loudness.set(nearest(LOUDNESS, settings.lufs));
    this.amount.set(amount);
    this.seed.value = view.seed ?? view.of?.seed ?? 0;
    const titles = {
      seeds: () => t("titleSeeds", { label, first: view.seed, last: view.seed + COUNT - 1 }),
      vary: () => t("titleVary", { label, seed: view.of.seed }),
      one: () => t("titleVary", { label, seed: view.of.seed }),
      morph: () => t("titleMorph", { a: `${label} ${view.of.seed}`, b: `${labelName(view.to.label)} ${view.to.seed}` }),
    };
    this.title.textContent = titles[view.kind]();
    this.back.textContent = t("backToSeeds", { label });
    this.back.hidden = view.kind === "seeds";
    this.previous.hidden = this.next.hidden = view.kind === "morph" || view.kind === "one";
    this.shuffleButton.hidden = view.kind !== "seeds";
    this.previous.disabled = !(view.seed ?? view.first);
  }

  buildTile({ sound, name }, index) {
    const canvas = h("canvas", { width: 320, height: 120, "aria-hidden": "true" });
    const facts = h("span", { class: "facts" });
    const button = h(
      "button",
      { class: "sound", tabindex: index ? "-1" : "0", draggable: "true", onclick: () => this.click(index) },
      h("span", { class: "picture" }, canvas, h("span", { class: "playhead", hidden: true })),
      h("span", { class: "line" }, h("span", { class: "seed" }, name), facts),
    );
    const star = h("button", { class: "star", tabindex: "-1", onclick: () => this.star(index) });
    const tile = { sound, name, button, canvas, facts, star, playhead: button.querySelector(".playhead"), rendered: null };
    tile.element = h("li", { class: "tile waiting" }, button, star);
    tile.key = addressOf(sound, this.state.settings);
    button.addEventListener("focus", () => index !== this.chosen && this.choose(index, false));
    button.addEventListener("dragstart", (event) => this.drag(event, tile));
    button.setAttribute("aria-label", t("tileWaiting", { label: labelName(sound.label), name }));
    this.showStar(tile);
    return tile;
  }

  async renderTile(tile, settings, signal) {
    const { sound, name } = tile;
    const label = labelName(sound.label);
    try {
      tile.rendered = await this.app.engine.render(sound, settings, signal);
    } catch (error) {
      if (signal.aborted) return;
      const reason = this.app.problem(error);
      tile.element.className = "tile failed";
      tile.facts.textContent = t("retry");
      tile.button.setAttribute("aria-label", t("tileFailed", { label, name, reason: reason ?? "" }));
      this.app.say(reason ?? "");
      return;
    }
    if (signal.aborted) return;
    const { wave, rate } = tile.rendered;
    drawSpectrogram(tile.canvas, wave, rate);
    const seconds = (wave.length / rate).toFixed(wave.length < rate ? 2 : 1);
    const loud = eventLoudness(wave, rate);
    const level = Number.isFinite(loud) ? `${loud.toFixed(1).replace("-", "−")} LUFS` : t("silent");
    tile.facts.textContent = `${seconds} s · ${level}`;
    tile.element.className = "tile";
    tile.button.setAttribute("aria-label", t("tile", { label, name, seconds, level }));
    if (this.tiles[this.chosen] === tile) this.choose(this.chosen, false);
    this.done += 1;
    const total = this.tiles.length;
    const where = t(this.app.engine.server ? "renderedThere" : "renderedHere");
    this.app.say(this.done < total ? t("rendering", { done: this.done, total }) : `${t("ready", { total })}, ${where}`);
  }

  // --- choosing and playing ---------------------------------------------------------------------------------------

  /** Choose a tile; its actions are those of the player. */
  choose(index, focus = true) {
    this.chosen = Math.min(Math.max(index, 0), this.tiles.length - 1);
    this.tiles.forEach((tile, each) => {
      tile.button.tabIndex = each === this.chosen ? 0 : -1;
      tile.element.toggleAttribute("data-chosen", each === this.chosen);
    });
    const tile = this.tiles[this.chosen];
    if (focus) tile.button.focus();
    this.name.textContent = this.other ? t("betweenHint") : `${labelName(tile.sound.label)}, ${tile.name}`;
    this.app.address = addressOf(tile.sound, this.state.settings);
    this.address = this.app.address;
    history.replaceState(null, "", `#${this.address}`);
    this.showStar(tile);
    this.drawBar();
  }

  click(index) {
    const tile = this.tiles[index];
    if (tile.element.classList.contains("failed")) {
      tile.element.className = "tile waiting";
      this.renderTile(tile, this.state.settings, this.abort.signal);
    }
    if (this.other) {
      this.morph(tile.sound);
      return;
    }
    this.choose(index);
    this.play();
  }

  async play() {
    const tile = this.tiles[this.chosen];
    try {
      const { wave, rate } = tile.rendered ?? (await this.app.engine.render(tile.sound, this.state.settings, this.abort.signal));
      if (this.tiles[this.chosen] === tile) await this.app.player.play(tile.key, wave, rate);
    } catch (error) {
      this.app.problem(error);
    }
  }

  toggle() {
    if (this.app.player.key) this.app.player.stop();
    else this.play();
  }

  setLoop(loop) {
    this.app.player.setLoop(loop);
    this.loopButton.setAttribute("aria-pressed", String(loop));
  }

  /** Show which tile plays, and where. */
  playing() {
    const { player } = this.app;
    this.playButton.textContent = player.key ? t("stop") : t("play");
    const draw = () => {
      const { position } = player;
      const left = position === null ? null : `${100 * position}%`;
      for (const tile of this.tiles) move(tile.playhead, tile.key === player.key ? left : null);
      move(this.playhead, this.tiles[this.chosen]?.key === player.key ? left : null);
      if (position !== null) requestAnimationFrame(draw);
    };
    draw();
    this.app.performer?.playing();
  }

  drawBar() {
    const tile = this.tiles[this.chosen];
    if (!this.element.hidden) drawWaveform(this.waveform, tile?.rendered?.wave ?? null, tile?.rendered?.rate);
  }

  // --- actions on the chosen sound --------------------------------------------------------------------------------

  vary() {
    const of = this.tiles[this.chosen].sound;
    this.change({ view: { kind: "vary", label: of.label, of, amount: this.state.amount, first: 0 } });
  }

  /** Wait for the other end of a row of sounds between two, or stop waiting. */
  between() {
    if (this.betweenButton.disabled) return;
    this.other = this.other ? null : this.tiles[this.chosen].sound;
    this.betweenButton.setAttribute("aria-pressed", String(Boolean(this.other)));
    this.choose(this.chosen);
    if (this.other) this.app.say(t("betweenHint"));
  }

  morph(to) {
    const of = this.other;
    this.betweenButton.setAttribute("aria-pressed", "false");
    this.change({ view: { kind: "morph", label: of.label, of, to } });
  }

  page(direction) {
    const { view } = this.state;
    if (view.kind === "seeds") this.showSeeds(view.label, view.seed + direction * COUNT);
    else if (view.kind === "vary") this.change({ view: { ...view, first: Math.max(0, view.first + direction * (COUNT - 1)) } });
  }

  shuffle() {
    this.showSeeds(this.state.view.label, Math.floor(Math.random() * 1_000_000));
  }

  drag(event, tile) {
    if (!tile?.rendered) return;
    const { settings } = this.state;
    const name = `${fileName(tile.sound, settings)}.wav`;
    const blob = () => URL.createObjectURL(new Blob([tile.rendered.bytes], { type: "audio/wav" }));
    const url = this.app.engine.url(tile.sound, settings) ?? (tile.blob ??= blob());
    event.dataTransfer.effectAllowed = "copy";
    event.dataTransfer.setData("DownloadURL", `audio/wav:${name}:${url}`);
    event.dataTransfer.setData("text/uri-list", url);
    event.dataTransfer.setData("text/plain", this.link(tile.sound));
  }

  async saveOne() {
    const tile = this.tiles[this.chosen];
    try {
      const { bytes } = await this.app.engine.render(tile.sound, this.state.settings);
      save(`${fileName(tile.sound, this.state.settings)}.wav`, bytes, "audio/wav");
    } catch (error) {
      this.app.problem(error);
    }
  }

  link(sound) {
    return `${location.href.split("#")[0]}#${addressOf(sound, this.state.settings)}`;
  }

  async copyLink() {
    const link = this.link(this.tiles[this.chosen].sound);
    try {
      await navigator.clipboard.writeText(link);
      this.app.say(t("copied"));
    } catch {
      this.app.say(link);
    }
  }

  // --- starred ----------------------------------------------------------------------------------------------------

  starOf(tile) {
    return this.stars.findIndex((star) => addressOf(star.sound, star.settings) === addressOf(tile.sound, this.state.settings));
  }

  star(index = this.chosen) {
    const tile = this.tiles[index];
    this.remember();
    const found = this.starOf(tile);
    if (found >= 0) this.stars.splice(found, 1);
    else this.stars.push({ sound: tile.sound, settings: this.state.settings, name: tile.name });
    this.showStars();
  }

  showStar(tile) {
    const found = this.starOf(tile) >= 0;
    tile.star.textContent = found ? "★" : "☆";
    tile.star.setAttribute("aria-label", `${t(found ? "unstar" : "star")}: ${labelName(tile.sound.label)}, ${tile.name}`);
    tile.element.toggleAttribute("data-starred", found);
    if (this.tiles[this.chosen] === tile) this.starButton.textContent = t(found ? "unstar" : "star");
  }

  showStars() {
    store("stars", this.stars);
    this.starList.replaceChildren(
      ...this.stars.map((star, index) => {
        const { sound, settings } = star;
        const text = `${labelName(sound.label)} ${sound.seed}${sound.via.length ? `, ${star.name}` : ""}`;
        const play = h("button", { class: "quiet", title: addressOf(sound, settings), onclick: () => this.playStar(star) }, text);
        const remove = h("button", { class: "icon", "aria-label": `${t("unstar")}: ${text}`, onclick: () => this.unstar(index) }, "×");
        return h("li", {}, play, remove);
      }),
    );
    this.starNone.hidden = this.stars.length > 0;
    this.zipButton.disabled = !this.stars.length;
    for (const tile of this.tiles) this.showStar(tile);
  }

  unstar(index) {
    this.remember();
    this.stars.splice(index, 1);
    this.showStars();
  }

  async playStar({ sound, settings }) {
    try {
      const { wave, rate } = await this.app.engine.render(sound, settings);
      await this.app.player.play(addressOf(sound, settings), wave, rate);
    } catch (error) {
      this.app.problem(error);
    }
  }

  /** Download the starred sounds: WAV files, their recipes, and the licence of each instrument. */
  async saveZip() {
    const files = {};
    const total = this.stars.length;
    this.zipButton.disabled = true;
    try {
      for (const [index, { sound, settings }] of this.stars.entries()) {
        this.app.say(t("zipping", { done: index, total }));
        const { bytes, recipe } = await this.app.engine.render(sound, settings);
        const base = `${fileName(sound, settings)}`;
        const name = `${base}.wav` in files ? `${base}_${index + 1}` : base;
        files[`${name}.wav`] = bytes;
        if (recipe) files[`recipes/${name}.json`] = recipe;
        const about = this.app.config.instruments.find((each) => each.name === sound.instrument);
        files[`LICENSE-${about.name}.txt`] = about.licence.text;
      }
      save("foleybox.zip", zip(files), "application/zip");
      this.app.say("");
    } catch (error) {
      this.app.problem(error);
    }
    this.zipButton.disabled = !this.stars.length;
  }

  async makePack() {
    const { label, seed, of } = { of: {}, ...this.state.view };
    const options = ENGINES.map((each) => h("option", { value: each }, each === "none" ? t("engineNone") : each[0].toUpperCase() + each.slice(1)));
    const content = [
      h("p", {}, t("packText")),
      h("label", { class: "number" }, h("span", {}, t("packCount")), h("input", { type: "number", name: "count", min: 1, max: 48, value: 12, required: true })),
      h("label", { class: "number" }, h("span", {}, t("packEngine")), h("select", { name: "engine" }, options)),
    ];
    const asked = await ask(t("packTitle", { label: labelName(label) }), content, t("packMake"), t("cancel"));
    if (!asked) return;
    const { temperature, lufs } = this.state.settings;
    const selection = { count: Number(asked.count), seed: seed ?? of.seed ?? 0, temperature, ...(lufs === null ? {} : { lufs }) };
    const body = { instrument: this.app.about.name, labels: [label], engine: asked.engine, selection };
    this.packButton.disabled = true;
    try {
      const job = await follow("v1/pack", body, ({ done, total }) => this.app.say(t("packWorking", { done, total: total || asked.count })));
      h("a", { href: job.files["pack.zip"].url.slice(1), download: `${label}-pack.zip` }).click();
      this.app.say(job.note ? t("packPart", { note: job.note }) : t("packDone"));
    } catch (error) {
      this.app.problem(error);
    }
    this.packButton.disabled = false;
  }

  // --- keys -------------------------------------------------------------------------------------------------------

  key(event) {
    const slider = event.target.closest?.("input[type=range]");
    const elsewhere = event.target.closest?.("button:not(.sound), summary, a");
    const columns = getComputedStyle(this.grid).gridTemplateColumns.split(" ").length;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -COUNT, End: COUNT };
    const actions = {
      l: () => this.setLoop(!this.app.player.loop),
      s: () => this.star(),
      v: () => this.vary(),
      b: () => this.between(),
      d: () => this.saveOne(),
      n: () => this.next.hidden || this.page(1),
      p: () => this.previous.hidden || this.previous.disabled || this.page(-1),
      u: () => this.undo(),
      Escape: () => (this.other ? this.between() : this.app.player.stop()),
    };
    const { key } = event;
    if (key in steps && !slider) {
      const next = this.chosen + steps[key];
      if (Math.abs(steps[key]) === COUNT || (next >= 0 && next < this.tiles.length)) {
        this.choose(next);
        if (!this.other) this.play();
      }
    } else if (key === " " && !elsewhere) this.toggle();
    else if (/^[1-9]$/.test(key) && this.app.about.labels[key - 1]) this.showSeeds(this.app.about.labels[key - 1].slug, this.state.view.seed ?? 0);
    else if (actions[key] ?? actions[key.toLowerCase()]) (actions[key] ?? actions[key.toLowerCase()])();
    else return;
    event.preventDefault();
  }
}

/** Return the index of the value nearest to one; null stands at 0. */
function nearest(values, value) {
  if (value === null) return 0;
  let best = 1;
  values.forEach((each, index) => {
    if (each !== null && Math.abs(each - value) < Math.abs(values[best] - value)) best = index;
  });
  return best;
}

export function move(playhead, left) {
  playhead.hidden = left === null;
  if (left !== null) playhead.style.left = left;
}
