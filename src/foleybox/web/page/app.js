// Starts the page: its frame, the instrument, messages, and which view is shown.

import { ask, h } from "./dom.js";
import { ServerEngine, WorkerEngine } from "./engine.js";
import { Performer } from "./performer.js";
import { Player } from "./player.js";
import { DEFAULTS, parseAddress } from "./sounds.js";
import { KEYS, PERFORMER_KEYS, t } from "./strings.js";
import { stored, storageWorks, store } from "./store.js";
import { Problem } from "./synth.js";
import { Wall } from "./wall.js";

class App {
  async start() {
    const config = await loadConfig();
    this.config = config;
    const remote = config.server && new URLSearchParams(location.search).get("render") !== "browser";
    this.engine = remote ? new ServerEngine(config) : new WorkerEngine(config);
    this.engine.onload = (share) => {
      const name = this.about.name;
      const percent = Math.round(100 * share);
      this.say(share < 1 ? t("loadingInstrument", { name, percent }) : t("startingInstrument", { name }));
    };
    this.player = new Player();
    this.about = config.instruments[0];
    this.build();
    this.wall = new Wall(this);
    this.performer = new Performer(this);
    this.views.append(this.wall.element, this.performer.element);
    this.show(stored("view") === "performer" && !location.hash ? "performer" : "wall");
    if (!storageWorks) this.warn(t("noStorage"));
    addEventListener("hashchange", () => this.open(location.hash));
    addEventListener("keydown", (event) => this.key(event));
    this.open(location.hash);
  }

  build() {
    const instruments = this.config.instruments.map(({ name }) => h("option", { value: name }, name));
    this.select = h("select", { "aria-label": t("instrument"), name: "instrument", onchange: () => this.useInstrument(this.select.value) }, instruments);
    this.licence = h("button", { class: "quiet", onclick: () => this.showLicence() });
    this.tabs = ["wall", "performer"].map((name) =>
      h("button", { role: "tab", id: `tab-${name}`, "aria-controls": name, onclick: () => this.show(name) }, t(name)),
    );
    this.tabs.forEach((tab, index) =>
      tab.addEventListener("keydown", (event) => {
        if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
        event.stopPropagation();
        this.tabs[1 - index].focus();
        this.tabs[1 - index].click();
      }),
    );
    const theme = stored("theme");
    if (theme) document.documentElement.dataset.theme = theme;
    this.messages = h("div", { class: "messages", role: "alert" });
    this.status = h("p", { class: "status", role: "status" });
    this.views = h("main", { id: "views" });
    document.getElementById("app").replaceChildren(
      h("a", { class: "skip", href: "#views", onclick: (event) => this.skip(event) }, t("skip")),
      h(
        "header",
        {},
        h("h1", {}, "foleybox"),
        h("div", { role: "tablist", class: "tabs" }, this.tabs),
        h("span", { class: "space" }),
        this.select,
        h("button", { class: "icon", title: t("theme"), "aria-label": t("theme"), onclick: () => this.changeTheme() }, "◐"),
        h("button", { class: "icon", title: t("help"), "aria-label": t("help"), onclick: () => this.help() }, "?"),
      ),
      this.messages,
      this.views,
      h("footer", {}, this.status, this.licence),
    );
    this.showInstrument();
  }

  skip(event) {
    event.preventDefault();
    this.views.querySelector('[tabindex="0"]')?.focus();
  }

  showInstrument() {
    this.select.value = this.about.name;
    this.licence.textContent = t("licenceOf", { terms: this.about.licence.terms });
  }

  useInstrument(name) {
    this.about = this.config.instruments.find((each) => each.name === name);
    this.showInstrument();
    this.wall.useInstrument();
    this.performer.useInstrument();
  }

  /** Show what the address says: a sound, or the first wall. */
  open(hash) {
    const link = decodeURIComponent(hash.replace(/^#/, ""));
    if (link === this.wall.address && link) return;
    if (!link || link === "views") {
      if (!this.wall.state) this.wall.showSeeds(this.about.labels[0].slug, 0);
      return;
    }
    const found = parseAddress(link);
    let label = this.about.labels[0].slug;
    if (!found) {
      this.warn(t("badLink", { link: link.slice(0, 60) }));
      this.wall.showSeeds(label, 0);
      return;
    }
    const { sound, settings } = found;
    const about = this.config.instruments.find((each) => each.name === sound.instrument);
    if (!about) this.warn(t("unknownInstrument", { name: sound.instrument.slice(0, 40), other: this.about.name }));
    else if (about !== this.about) {
      this.about = about;
      this.showInstrument();
      this.performer.useInstrument();
    }
    label = this.about.labels[0].slug;
    if (this.about.labels.some((each) => each.slug === sound.label)) label = sound.label;
    else this.warn(t("unknownLabel", { label: sound.label.slice(0, 40), instrument: this.about.name, other: label }));
    this.show("wall");
    this.wall.openSound({ ...sound, instrument: this.about.name, label }, { ...DEFAULTS, ...settings });
  }

  show(name) {
    this.view = name;
    store("view", name);
    this.player.stop();
    ["wall", "performer"].forEach((each, index) => {
      this.tabs[index].setAttribute("aria-selected", String(each === name));
      this.tabs[index].tabIndex = each === name ? 0 : -1;
      this[each].element.hidden = each !== name;
    });
    this[name].shown();
  }

  key(event) {
    const typing = event.target.closest?.("input:not([type=range]):not([type=checkbox]), select, textarea, dialog");
    if (typing || event.defaultPrevented || event.altKey) return;
    if (event.ctrlKey || event.metaKey) {
      if (event.key.toLowerCase() !== "z" || event.shiftKey) return;
      event.preventDefault();
      this[this.view].undo();
      return;
    }
    if (event.key === "?") this.help();
    else this[this.view].key(event);
  }

  /** Say what the page does, for eyes and screen readers. */
  say(sentence) {
    this.status.textContent = sentence;
  }

  /** Show a sentence until it is dismissed, or said again. */
  warn(sentence) {
    const texts = [...this.messages.children].map((each) => each.firstChild.textContent);
    if (texts.includes(sentence)) return;
    const close = h("button", { class: "icon", "aria-label": t("dismiss"), onclick: () => close.parentElement.remove() }, "×");
    this.messages.append(h("div", {}, h("p", {}, sentence), close));
    while (this.messages.children.length > 3) this.messages.firstChild.remove();
  }

  /** Show an error as a sentence; return the sentence, or null for what was stopped on purpose. */
  problem(error) {
    if (error?.name === "AbortError") return null;
    const sentence = error instanceof Problem ? t(error.key, error.values) : t("renderFailed", { reason: String(error) });
    this.warn(sentence);
    if (!(error instanceof Problem)) console.error(error);
    return sentence;
  }

  changeTheme() {
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const now = document.documentElement.dataset.theme ?? (dark ? "dark" : "light");
    const next = now === "dark" ? "light" : "dark";
    document.documentElement.dataset.theme = next;
    store("theme", next);
    this.performer.draw();
    this.wall.drawBar();
  }

  help() {
    const keys = this.view === "wall" ? KEYS : PERFORMER_KEYS;
    const rows = keys.map(([key, text]) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, text)]);
    ask(`${t("help")}: ${t(this.view)}`, [h("dl", { class: "keys" }, rows)], t("close"));
  }

  showLicence() {
    const { licence, name, version } = this.about;
    const text = h("pre", { tabindex: "0" }, licence.text);
    ask(`${name} ${version}: ${licence.terms}`, [text], t("close"));
  }
}

async function loadConfig() {
  try {
    const response = await fetch("config.json");
    if (!response.ok) throw new Error();
    return await response.json();
  } catch {
    throw new Problem("noConfig");
  }
}

new App().start().catch((error) => {
  const sentence = error instanceof Problem ? t(error.key, error.values) : t("renderFailed", { reason: String(error) });
  document.getElementById("app").replaceChildren(h("p", { class: "loading", role: "alert" }, sentence));
  console.error(error);
});
