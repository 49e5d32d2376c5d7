// Makes elements. Text always becomes a text node, never HTML.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes, listeners (`onclick`, ...) and children; null children and attributes are left out. */
export function h(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [property, text] of Object.entries(value)) element.style.setProperty(property, text);
    else element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
  return element;
}

/** A name, which may be written in either direction. */
export function name(text) {
  return h("bdi", {}, text);
}

/** A labelled choice; `options` are [value, text] pairs. */
export function choice(label, options, value, onChange, attributes = {}) {
  const select = h(
    "select",
    { ...attributes, "aria-label": label, onchange: () => onChange(select.value) },
    options.map(([key, text]) => h("option", { value: key }, text)),
  );
  select.value = String(value);
  return h("label", { class: "choice" }, h("span", {}, label), select);
}
