// Tables that can be sorted by their columns.

import {h} from "./dom.js";

/**
 * A table whose columns sort it.
 *
 * columns: {title, cell(row) -> node or text, key(row) -> number, text or null, about, text: whether it is aligned left};
 * without a key a column does not sort. Unknown values come last. `first`: {column, descending} to start with.
 */
export function sortedTable(label, columns, rows, first = null, rowAttributes = () => ({})) {
  const body = h("tbody");
  const heads = columns.map((column, i) => head(column, i));
  let order = first;

  function head(column, i) {
    const attributes = { scope: "col", class: column.text ? "text" : null, title: column.about ?? null };
    if (!column.key) return h("th", attributes, column.title || h("span", { class: "unseen" }, "drawn"));
    return h("th", attributes, h("button", { type: "button", onclick: () => sort(i) }, column.title));
  }

  function sort(i) {
    const descending = order?.column === i ? !order.descending : !columns[i].text;
    order = { column: i, descending };
    fill();
  }

  function fill() {
    const sorted = [...rows];
    if (order) {
      const { key } = columns[order.column];
      sorted.sort((a, b) => compare(key(a), key(b), order.descending));
    }
    heads.forEach((cell, i) => {
      if (columns[i].key) cell.setAttribute("aria-sort", order?.column === i ? (order.descending ? "descending" : "ascending") : "none");
    });
    body.replaceChildren(
      ...sorted.map((row) => h("tr", rowAttributes(row), columns.map((column) => h("td", { class: column.text ? "text" : null }, column.cell(row))))),
    );
  }

  fill();
  return h(
    "div",
    { class: "scroll", role: "region", "aria-label": label, tabindex: "0" },
    h("table", {}, h("caption", { class: "unseen" }, label), h("thead", {}, h("tr", {}, heads)), body),
  );
}

function compare(a, b, descending) {
  const unknown = (value) => value === null || value === undefined || Number.isNaN(value);
  if (unknown(a) || unknown(b)) return Number(unknown(a)) - Number(unknown(b));
  const sign = typeof a === "string" ? a.localeCompare(b) : a - b;
  return descending ? -sign : sign;
}
