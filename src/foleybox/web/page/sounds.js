// Sounds by name. A sound is { instrument, label, seed, via }: `via` are the steps from the seed's sound to a neighbour,
// ["vary", amount, seed] or ["morph", at, [label, seed, ...steps]], as the server takes them. How it is processed is its
// settings, { temperature, seconds, lufs }; null stands for what the instrument gives.

export const DEFAULTS = { temperature: 1, seconds: null, lufs: null };
const LAST_SEED = 2 ** 53 - 1;

/** Return the query of a sound: what differs from the defaults. */
export function queryOf({ via }, settings) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(settings)) if (value !== DEFAULTS[name]) query.set(name, value);
  if (via.length) query.set("via", JSON.stringify(via));
  return query;
}

/** Return the address of a sound within the page: foley/dog_bark/1234?lufs=-23. */
export function addressOf(sound, settings) {
  const query = queryOf(sound, settings).toString();
  return `${sound.instrument}/${sound.label}/${sound.seed}${query ? `?${query}` : ""}`;
}

/** Return { sound, settings } of an address, null if it does not name a sound. */
export function parseAddress(address) {
  const [path, query = ""] = address.split("?");
  const match = path.match(/^([\w.-]+)\/([\w-]+)\/(\d{1,16})$/);
  if (!match || Number(match[3]) > LAST_SEED) return null;
  const values = new URLSearchParams(query);
  const settings = { ...DEFAULTS };
  for (const [name, low, high] of [["temperature", 0, 10], ["seconds", 0.02, 60], ["lufs", -70, 0]]) {
    if (!values.has(name)) continue;
    const value = Number(values.get(name));
    if (!(value >= low && value <= high)) return null;
    settings[name] = value;
  }
  try {
    const via = values.has("via") ? JSON.parse(values.get("via")) : [];
    if (!Array.isArray(via)) return null;
    return { sound: { instrument: match[1], label: match[2].toLowerCase(), seed: Number(match[3]), via }, settings };
  } catch {
    return null;
  }
}

/** Return a file name for a sound, without its extension. */
export function fileName(sound, settings) {
  const steps = sound.via.map(([kind, value, other]) => (kind === "vary" ? `v${other}` : `m${Math.round(100 * value)}`));
  const processed = [settings.temperature !== 1 && `t${settings.temperature}`, settings.seconds && `${settings.seconds}s`];
  const parts = [sound.label, `s${sound.seed}`, ...steps, ...processed.filter(Boolean), settings.lufs !== null && `${settings.lufs}LUFS`];
  return parts.filter(Boolean).join("_");
}
