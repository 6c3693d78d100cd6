// Standard normal noise of a seed: the specification of studio/seeds.py, to the last bit.

const G = 0x9e3779b97f4a7c15n;
const wrap = (z) => BigInt.asUintN(64, z);

function mix(z) {
  z = wrap((z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n);
  z = wrap((z ^ (z >> 27n)) * 0x94d049bb133111ebn);
  return z ^ (z >> 31n);
}

const factorial = (n) => (n < 2 ? 1 : n * factorial(n - 1));
const range = (count) => Array.from({ length: count }, (_, index) => index);
const ATANH = range(12).map((n) => 1 / (23 - 2 * n));
const COS = range(9).map((n) => (n % 2 ? -1 : 1) / factorial(2 * (8 - n)));
const SIN = range(9).map((n) => (n % 2 ? -1 : 1) / factorial(2 * (8 - n) + 1));
const LN2 = 0.6931471805599453;

function horner(coefficients, x) {
  let value = coefficients[0];
  for (let index = 1; index < coefficients.length; index++) value = value * x + coefficients[index];
  return value;
}

function log(x) {
  let e = 0;
  while (x < 0.75) {
    x *= 2;
    e -= 1;
  }
  const s = (x - 1) / (x + 1);
  return e * LN2 + 2 * s * horner(ATANH, s * s);
}

function cosSin(t) {
  const quarter = Math.floor(4 * t + 0.5);
  const angle = 2 * Math.PI * (t - quarter / 4);
  const cosine = horner(COS, angle * angle);
  const sine = angle * horner(SIN, angle * angle);
  return [[cosine, sine], [-sine, cosine], [-cosine, -sine], [sine, -cosine]][quarter % 4];
}

/** Return `count` numbers of (seed, stream), after the first `skip` (even) ones. */
export function noise(seed, count, stream = 0, skip = 0) {
  const start = mix(wrap(BigInt(seed) + BigInt(stream) * 2n ** 53n));
  const uniform = (n) => Number(mix(wrap(start + BigInt(n + 1) * G)) >> 11n) * 2 ** -53;
  const numbers = new Float32Array(count);
  for (let index = 0; index < count; index += 2) {
    const radius = Math.sqrt(-2 * log(1 - uniform(skip + index)));
    const [cosine, sine] = cosSin(uniform(skip + index + 1));
    numbers[index] = radius * cosine;
    if (index + 1 < count) numbers[index + 1] = radius * sine;
  }
  return numbers;
}
