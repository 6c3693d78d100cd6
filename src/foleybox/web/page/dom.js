// Making elements.

/** Return an element: h("button", { class: "star", onclick: f, "aria-label": "Star" }, ...children). */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked" || name === "selected") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(2).filter((child) => child !== null && child !== undefined));
  return element;
}

/** Return a control with its label: a caption on the left, the value as text on the right, the input below. */
export function slider(caption, { min, max, step, value, format, hint, name }, onchange) {
  const output = h("span", { class: "value", "aria-hidden": "true" }, format(value));
  const input = h("input", { type: "range", min, max, step, value, name });
  input.value = value;
  const show = () => {
    output.textContent = format(Number(input.value));
    input.setAttribute("aria-valuetext", output.textContent);
  };
  show();
  input.addEventListener("input", show);
  input.addEventListener("change", () => onchange(Number(input.value)));
  const label = h("label", { class: "slider", title: hint }, h("span", {}, caption), output, input);
  return Object.assign(label, {
    set(next) {
      input.value = next;
      show();
    },
  });
}

/** Offer bytes as a file. */
export function save(name, bytes, type) {
  const url = URL.createObjectURL(new Blob([bytes], { type }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** Ask in a dialog; resolve to the form's values, or null. */
export function ask(title, content, action, cancel) {
  const form = h("form", { method: "dialog" }, h("h2", {}, title), ...content);
  const buttons = [h("button", { class: "primary", value: "yes" }, action)];
  if (cancel) buttons.unshift(h("button", { value: "", formnovalidate: true }, cancel));
  form.append(h("div", { class: "row end" }, ...buttons));
  const dialog = h("dialog", { "aria-label": title }, form);
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      resolve(dialog.returnValue ? Object.fromEntries(new FormData(form)) : null);
      dialog.remove();
    });
  });
}
