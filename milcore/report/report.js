"use strict";
// One control per slide and one for all: the opacity of the attention layer and whether marks are drawn.
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
