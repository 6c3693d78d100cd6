// Processing of a sound after it is rendered: the port of studio/shape.py (its `seconds`, `lufs`, declicking, and the
// true-peak ceiling of a file).

const FRAME = 0.01;
const DECLICK = 0.005;
const RELEASE = 0.05;
const STEP_DB = -40;
const ATTACK = 0.0015;
const END = 0.005;
const SILENT = 1e-10;
export const CEILING = -1;

/** Round half to even, as numpy and Python do. */
export function rint(x) {
  const low = Math.floor(x);
  return x - low === 0.5 ? low + (low % 2) : Math.round(x);
}

export function peakOf(wave) {
  let peak = 0;
  for (const sample of wave) peak = Math.max(peak, Math.abs(sample));
  return peak;
}

/**
 * Return { wave, steps } as `shaped(..., declick=True)` does, for { seconds, lufs } (null: not asked for).
 * `kernel` is one side of the filter that oversamples four times, its middle first (for the true peak).
 */
export function shaped(wave, rate, { seconds, lufs }, kernel) {
  const steps = [];
  let start = 0;
  let end = wave.length;
  const samples = seconds === null ? null : Math.max(1, rint(seconds * rate));
  if (samples !== null && samples < end) {
    start = quietestCut(wave, rate, samples);
    end = start + samples;
    steps.push({ do: "cut", start, samples });
  }
  const length = end - start;
  const fadeIn = (start ? Math.min(rint(DECLICK * rate), length) : 0) || clicking(wave, wave[0], rint(ATTACK * rate));
  const fadeOut =
    (end < wave.length ? Math.min(rint(RELEASE * rate), Math.floor(length / 4)) : 0) ||
    clicking(wave, wave[wave.length - 1], rint(END * rate));
  wave = wave.slice(start, end);
  if (fadeIn || fadeOut) {
    steps.push({ do: "fade", in: fadeIn, out: fadeOut });
    fade(wave, fadeIn, fadeOut);
  }
  if (samples !== null && samples > length) {
    steps.push({ do: "cut", start: 0, samples });
    const longer = new Float32Array(samples);
    longer.set(wave);
    wave = longer;
  }
  for (const gainOf of [loudnessStep, peakStep]) {
    const gain = gainOf(wave, rate, lufs, kernel);
    if (!gain) continue;
    steps.push(gain);
    const factor = Math.fround(10 ** (gain.db / 20));
    wave = wave.map((sample) => sample * factor);
  }
  return { wave, steps };
}

function clicking(wave, edge, samples) {
  const step = Math.abs(edge);
  const loud = step > SILENT && step > peakOf(wave) * 10 ** (STEP_DB / 20);
  return loud ? Math.min(samples, Math.floor(wave.length / 4)) : 0;
}

function fade(wave, fadeIn, fadeOut) {
  const ramp = (n, samples) => Math.fround(0.5 - 0.5 * Math.cos((Math.PI * (n + 0.5)) / samples));
  for (let n = 0; n < fadeIn; n++) wave[n] *= ramp(n, fadeIn);
  for (let n = 0; n < fadeOut; n++) wave[wave.length - 1 - n] *= ramp(n, fadeOut);
}

/** Return the power of every 10 ms in dB, -200 for silence. */
export function levels(wave, rate) {
  const frame = Math.max(1, rint(FRAME * rate));
  return Float64Array.from({ length: Math.ceil(wave.length / frame) }, (_, index) => {
    let sum = 0;
    for (let n = index * frame; n < Math.min(wave.length, (index + 1) * frame); n++) sum += wave[n] * wave[n];
    return 10 * Math.log10(Math.max(sum / frame, 1e-20));
  });
}

function quietestCut(wave, rate, samples) {
  const frame = Math.max(1, rint(FRAME * rate));
  const energy = [0];
  for (const level of levels(wave, rate)) energy.push(energy[energy.length - 1] + 10 ** (level / 10));
  const width = Math.max(1, Math.floor(samples / frame));
  const starts = Math.floor((wave.length - samples) / frame) + 1;
  const kept = Array.from({ length: starts }, (_, first) => energy[first + width] - energy[first]);
  const enough = 0.9 * Math.max(...kept);
  let best = 0;
  let lowest = Infinity;
  kept.forEach((part, first) => {
    const last = first + width;
    let edges = first ? (energy[Math.min(first + 2, last)] - energy[first]) / 2 : 0;
    edges += (energy[last] - energy[Math.max(last - 5, first)]) / 5;
    if (part >= enough && edges < lowest) [best, lowest] = [first, edges];
  });
  return best * frame;
}

/** Return [first, last) of the part within 40 dB of the loudest 10 ms. */
export function findEvent(wave, rate) {
  const level = levels(wave, rate);
  const frame = Math.max(1, rint(FRAME * rate));
  const top = level.reduce((a, b) => Math.max(a, b), -200);
  if (top <= -199) return [0, wave.length];
  const loud = (each) => each >= top - 40;
  return [level.findIndex(loud) * frame, Math.min(wave.length, (level.findLastIndex(loud) + 1) * frame)];
}

/** Return the loudness of the event in LUFS, -Infinity for silence (BS.1770-4). */
export function eventLoudness(wave, rate) {
  const event = wave.subarray(...findEvent(wave, rate));
  const peak = peakOf(event);
  return peak > SILENT ? loudness(event.map((sample) => sample / peak), rate) + 20 * Math.log10(peak) : -Infinity;
}

function loudness(wave, rate) {
  const weighted = kWeighted(wave, rate);
  const energy = new Float64Array(wave.length + 1);
  for (let n = 0; n < wave.length; n++) energy[n + 1] = energy[n] + weighted[n] * weighted[n];
  const block = Math.min(rint(0.4 * rate), wave.length);
  let power = [];
  for (let index = 0; index * 0.1 * rate < wave.length - block + 1; index++) {
    const first = Math.min(rint(index * 0.1 * rate), wave.length - block);
    power.push((energy[first + block] - energy[first]) / block);
  }
  const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
  power = power.filter((each) => each > 10 ** ((-70 + 0.691) / 10));
  if (!power.length) return -Infinity;
  const gate = 0.1 * mean(power);
  return -0.691 + 10 * Math.log10(mean(power.filter((each) => each > gate)));
}

function kWeighted(wave, rate) {
  let k = Math.tan((Math.PI * 1681.974450955533) / rate);
  let q = 0.7071752369554196;
  const high = 10 ** (3.999843853973347 / 20);
  const mid = high ** 0.4996667741545416;
  const shelf = biquad(
    [high + (mid * k) / q + k * k, 2 * (k * k - high), high - (mid * k) / q + k * k],
    [1 + k / q + k * k, 2 * (k * k - 1), 1 - k / q + k * k],
  );
  k = Math.tan((Math.PI * 38.13547087602444) / rate);
  q = 0.5003270373238773;
  const norm = 1 + k / q + k * k;
  const highPass = biquad([1, -2, 1], [1, (2 * (k * k - 1)) / norm, (1 - k / q + k * k) / norm]);
  return Float64Array.from(wave, (sample) => highPass(shelf(sample)));
}

/** Return a function that filters one sample after the other (transposed direct form II). */
function biquad(b, a) {
  const [b0, b1, b2] = b.map((each) => each / a[0]);
  const [, a1, a2] = a.map((each) => each / a[0]);
  let s1 = 0;
  let s2 = 0;
  return (x) => {
    const y = b0 * x + s1;
    s1 = b1 * x - a1 * y + s2;
    s2 = b2 * x - a2 * y;
    return y;
  };
}

/** Return the true peak (an amplitude): the peak after four times oversampling. */
export function truePeak(wave, kernel) {
  const reach = Math.ceil(kernel.length / 4);
  const tables = [0, 1, 2, 3].map((phase) =>
    Float64Array.from({ length: 2 * reach + 1 }, (_, n) => kernel[Math.abs(4 * (n - reach) + phase)] ?? 0),
  );
  const padded = new Float64Array(wave.length + 2 * reach);
  padded.set(wave, reach);
  let peak = peakOf(wave);
  // Between samples a wave hardly exceeds the highest of its neighbours by half: elsewhere there is nothing to find.
  for (let n = 0; n < wave.length; n++) {
    const near = Math.max(Math.abs(wave[n]), Math.abs(wave[n + 1] ?? 0), Math.abs(wave[n - 1] ?? 0));
    if (near < 0.4 * peak) continue;
    for (const table of tables) {
      let sum = 0;
      for (let m = 0; m < table.length; m++) sum += padded[n + m] * table[table.length - 1 - m];
      peak = Math.max(peak, Math.abs(sum));
    }
  }
  return peak;
}

function loudnessStep(wave, rate, lufs, kernel) {
  if (lufs === null) return null;
  const loud = eventLoudness(wave, rate);
  const wanted = Number.isFinite(loud) ? lufs - loud : 0;
  const headroom = CEILING - 20 * Math.log10(truePeak(wave, kernel));
  const db = Math.floor(1000 * Math.min(wanted, headroom)) / 1000;
  const withheld = wanted > headroom ? { withheld: rint((wanted - headroom) * 1000) / 1000 } : {};
  return db ? { do: "gain", db, ...withheld } : null;
}

/** Return the step that every file has whose true peak would exceed the ceiling. */
function peakStep(wave, rate, lufs, kernel) {
  const excess = 20 * Math.log10(truePeak(wave, kernel)) - CEILING;
  return excess > 0.0005 ? { do: "gain", db: Math.floor(-1000 * excess - 1) / 1000 } : null;
}
