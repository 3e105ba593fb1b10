// Opacity of the attention layer, marks, and the table of slides, whose filter is that of their pictures too.
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

const reach = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const title = target.querySelector("caption") ?? target.closest("section").querySelector("h2");
    reachTable(target, target.scrollWidth > target.clientWidth, title.textContent);
  }
});
for (const box of document.querySelectorAll(".scroll")) {
  reach.observe(box);
  revealFocus(box);
}

const filters = ["filter-text", "filter-call"].map((name) => document.getElementById(name));
const count = document.getElementById("shown");
pageTable(document.getElementById("slides"), filters, (matching, all) => {
  const names = new Set(matching.map((row) => row.dataset.slide));
  for (const card of cards) card.hidden = !names.has(card.id.slice("slide-".length));
  count.textContent = `${matching.length} of ${all} slides`;
});
const quarantined = document.getElementById("quarantined");
if (quarantined) pageTable(quarantined);

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
