"use strict";
// Opacity of the attention layer, marks, and a table of slides that sorts and filters together with their pictures.
function setOpacity(card, value) {
  card.style.setProperty("--attention", value / 100);
  const range = card.querySelector("input[type=range]");
  range.value = value;
  range.setAttribute("aria-valuetext", value + " percent");
}
const cards = Array.from(document.querySelectorAll(".slide"));
for (const card of cards) {
  const range = card.querySelector("input[type=range]");
  if (range) range.addEventListener("input", () => setOpacity(card, range.value));
}
const all = document.getElementById("opacity-all");
all?.addEventListener("input", () => {
  for (const card of cards) if (card.querySelector("input[type=range]")) setOpacity(card, all.value);
});
for (const name of ["outline", "places"]) {
  const box = document.getElementById("show-" + name);
  box?.addEventListener("change", () => document.body.classList.toggle("hide-" + name, !box.checked));
}

// a table wider than the screen is reached by Tab and scrolled by arrows
function setReach(box) {
  if (box.scrollWidth <= box.clientWidth) {
    for (const name of ["tabindex", "role", "aria-label"]) box.removeAttribute(name);
    return;
  }
  box.tabIndex = 0;
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", (box.querySelector("caption") ?? box.closest("section").querySelector("h2")).textContent);
}
const reach = new ResizeObserver((entries) => entries.forEach((entry) => setReach(entry.target)));
for (const box of document.querySelectorAll(".scroll")) {
  reach.observe(box);
  // a browser scrolls to what is hidden, not to what is cut
  box.addEventListener("focusin", (event) => event.target === box || event.target.scrollIntoView({ block: "nearest", inline: "nearest" }));
}

const body = document.querySelector("#slides tbody");
const rows = body ? Array.from(body.rows) : [];
const heads = Array.from(document.querySelectorAll("#slides th[data-kind]"));
const count = document.getElementById("shown");

function key(row, column, kind) {
  const cell = row.cells[column];
  const text = cell.dataset.value ?? cell.textContent.trim();
  return kind === "number" ? (text === "" || isNaN(text) ? -Infinity : Number(text)) : text;
}
function sort(head) {
  const column = head.cellIndex, kind = head.dataset.kind;
  const descending = head.getAttribute("aria-sort") === "ascending";
  for (const other of heads) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const compare = kind === "number" ? (a, b) => (a < b ? -1 : a > b ? 1 : 0)
    : (a, b) => a.localeCompare(b, "en", { numeric: true });
  const keyed = rows.map((row) => [key(row, column, kind), row]);
  keyed.sort((a, b) => (descending ? -1 : 1) * compare(a[0], b[0]));
  body.append(...keyed.map(([, row]) => row));
}
for (const head of heads) head.querySelector("button").addEventListener("click", () => sort(head));

const search = document.getElementById("filter-text");
const which = document.getElementById("filter-call");
function filter() {
  const text = search.value.trim().toLowerCase(), call = which.value;
  let shown = 0;
  for (const row of rows) {
    const visible = row.dataset.text.toLowerCase().includes(text)
      && (call === "" || row.dataset.call === call || row.dataset.truth === call);
    row.hidden = !visible;
    const card = document.getElementById("slide-" + row.dataset.slide);
    if (card) card.hidden = !visible;
    shown += visible;
  }
  count.textContent = shown + " of " + rows.length + " slides";
}
search?.addEventListener("input", filter);
which?.addEventListener("change", filter);

// in a frame that was handed the page as text, a link to a place would load the page around the frame into it
function goTo(event) {
  const link = event.target.closest('a[href^="#"]');
  const place = link && document.getElementById(link.getAttribute("href").slice(1));
  if (!place) return;
  event.preventDefault();
  place.scrollIntoView();
  place.tabIndex = -1;
  place.focus({ preventScroll: true });
}
if (location.protocol === "about:") document.addEventListener("click", goTo);
