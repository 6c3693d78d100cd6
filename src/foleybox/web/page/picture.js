// Pictures of sounds: the spectrogram of studio/sheet.py, and a waveform.

const RANGE_DB = 70;
const FLOOR_DB = -100;
const LOWEST_HZ = 40;
const MAGMA = ["000004", "180f3d", "440f76", "721f81", "9e2f7f", "cd4071", "f1605d", "fd9668", "feca8d", "fcfdbf"];
const COLOURS = MAGMA.map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));

/** Draw a log-frequency spectrogram into a canvas of `width` x `height`: 40 Hz to half the rate upwards, 70 dB. */
export function drawSpectrogram(canvas, wave, rate) {
  const { width, height } = canvas;
  const size = 2 ** Math.round(Math.log2(0.046 * rate));
  const window = Float64Array.from({ length: size }, (_, n) => 0.5 - 0.5 * Math.cos((2 * Math.PI * n) / (size - 1)));
  const scale = 2 / window.reduce((a, b) => a + b, 0);
  const hop = Math.max(1, wave.length / width);
  const several = Math.max(1, Math.ceil((2 * hop) / size));
  const edges = Array.from({ length: height + 1 }, (_, row) => (LOWEST_HZ * (rate / 2 / LOWEST_HZ) ** (row / height) * size) / rate);
  const levels = new Float64Array(width * height).fill(-180);
  let top = FLOOR_DB + RANGE_DB;
  const real = new Float64Array(size);
  const imaginary = new Float64Array(size);
  const bins = new Float64Array(size / 2 + 1);
  for (let column = 0; column < width; column++) {
    bins.fill(-180);
    for (let part = 0; part < several; part++) {
      const start = Math.round((column + part / several) * hop) - size / 2;
      for (let n = 0; n < size; n++) real[n] = (wave[start + n] ?? 0) * window[n];
      imaginary.fill(0);
      transform(real, imaginary);
      for (let bin = 0; bin <= size / 2; bin++) {
        const power = (real[bin] ** 2 + imaginary[bin] ** 2) * scale ** 2;
        bins[bin] = Math.max(bins[bin], 10 * Math.log10(Math.max(power, 1e-18)));
      }
    }
    for (let row = 0; row < height; row++) {
      const [low, high] = [edges[row], edges[row + 1]];
      let level = -180;
      if (high - low >= 1) for (let bin = Math.round(low); bin < Math.round(high); bin++) level = Math.max(level, bins[bin]);
      else {
        const middle = (low + high) / 2;
        const bin = Math.floor(middle);
        level = (1 - middle + bin) * bins[bin] + (middle - bin) * bins[bin + 1];
      }
      levels[(height - 1 - row) * width + column] = level;
      top = Math.max(top, level);
    }
  }
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  levels.forEach((level, index) => {
    const position = Math.min(Math.max((level - top) / RANGE_DB + 1, 0), 1) * (COLOURS.length - 1);
    const low = Math.min(Math.floor(position), COLOURS.length - 2);
    for (let channel = 0; channel < 3; channel++) {
      image.data[4 * index + channel] = COLOURS[low][channel] + (position - low) * (COLOURS[low + 1][channel] - COLOURS[low][channel]);
    }
    image.data[4 * index + 3] = 255;
  });
  context.putImageData(image, 0, 0);
}

/** The Fourier transform in place, of a power of two of numbers (Cooley and Tukey). */
function transform(real, imaginary) {
  const size = real.length;
  for (let n = 1, m = 0; n < size; n++) {
    let bit = size >> 1;
    for (; m & bit; bit >>= 1) m ^= bit;
    m ^= bit;
    if (n < m) {
      [real[n], real[m]] = [real[m], real[n]];
      [imaginary[n], imaginary[m]] = [imaginary[m], imaginary[n]];
    }
  }
  for (let length = 2; length <= size; length *= 2) {
    const angle = (-2 * Math.PI) / length;
    for (let k = 0; k < length / 2; k++) {
      const [c, s] = [Math.cos(angle * k), Math.sin(angle * k)];
      for (let first = k; first < size; first += length) {
        const second = first + length / 2;
        const a = real[second] * c - imaginary[second] * s;
        const b = real[second] * s + imaginary[second] * c;
        real[second] = real[first] - a;
        imaginary[second] = imaginary[first] - b;
        real[first] += a;
        imaginary[first] += b;
      }
    }
  }
}

/** Draw a waveform into a canvas, in its text colour; null clears it. `seconds` is the length of the canvas. */
export function drawWaveform(canvas, wave, rate = 1, seconds = wave ? wave.length / rate : 1) {
  const ratio = Math.min(2, devicePixelRatio || 1);
  const width = (canvas.width = Math.max(1, Math.round(canvas.clientWidth * ratio)));
  const height = (canvas.height = Math.max(1, Math.round(canvas.clientHeight * ratio)));
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, width, height);
  if (!wave) return;
  context.fillStyle = getComputedStyle(canvas).color;
  const each = (seconds * rate) / width;
  for (let x = 0; x < width; x++) {
    let low = 0;
    let high = 0;
    for (let n = Math.floor(x * each); n < Math.min(wave.length, (x + 1) * each); n++) {
      low = Math.min(low, wave[n]);
      high = Math.max(high, wave[n]);
    }
    if (x * each < wave.length) context.fillRect(x, (height / 2) * (1 - high), 1, Math.max(1, (height / 2) * (high - low)));
  }
}
