// Plays one sound at a time.

export class Player {
  constructor() {
    this.loop = false;
    this.onchange = () => {};
    this.key = null; // of the sound that plays
  }

  /** Play a wave; `key` names it. */
  async play(key, wave, rate) {
    this.stop();
    this.context ??= new AudioContext();
    if (this.context.state !== "running") await this.context.resume().catch(() => {});
    const buffer = this.context.createBuffer(1, wave.length, rate);
    buffer.copyToChannel(wave, 0);
    const source = this.context.createBufferSource();
    Object.assign(source, { buffer, loop: this.loop });
    source.connect(this.context.destination);
    source.onended = () => this.source === source && this.stop();
    this.stop();
    this.source = source;
    this.key = key;
    this.started = this.context.currentTime;
    source.start();
    this.onchange();
  }

  stop() {
    if (!this.source) return;
    const { source } = this;
    this.source = null;
    this.key = null;
    source.stop();
    this.onchange();
  }

  setLoop(loop) {
    this.loop = loop;
    if (this.source) this.source.loop = loop;
  }

  /** The position as a share of the sound, 0 to 1, or null. */
  get position() {
    if (!this.source) return null;
    const { duration } = this.source.buffer;
    const seconds = this.context.currentTime - this.started;
    return this.loop ? (seconds % duration) / duration : Math.min(1, seconds / duration);
  }
}
