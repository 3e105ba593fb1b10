// What a person would see on a page: contrast of WCAG 2.2 over the backgrounds behind an element, focus, collisions.
const channels = (text) => {
  const n = text.match(/[\d.]+/g).map(Number);
  return [n[0], n[1], n[2], n[3] ?? 1];
};
const over = (top, below) => [0, 1, 2].map((k) => top[k] * top[3] + below[k] * (1 - top[3])).concat(1);
function ground(element) {
  const layers = [];
  for (let at = element; at; at = at.parentElement) layers.push(channels(getComputedStyle(at).backgroundColor));
  return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
}
function luminance(colour) {
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const [r, g, b] = colour.slice(0, 3).map((v) => linear(v / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function contrast(text, element) {
  const below = ground(element), [a, b] = [over(channels(text), below), below].map(luminance);
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}

function lowContrast() {
  const low = [];
  const judge = (style, element, colour, words) => {
    const size = parseFloat(style.fontSize), isLarge = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    const found = contrast(colour, element);
    if (found < (isLarge ? 3 : 4.5)) low.push(`${words.trim().slice(0, 40)}: ${found.toFixed(2)}`);
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, words = walker.currentNode.textContent;
    if (!words.trim() || !element.checkVisibility() || element.closest("[aria-hidden=true], option")) continue;
    const style = getComputedStyle(element);
    judge(style, element, element.closest("svg") ? style.fill : style.color, words);
  }
  for (const element of document.querySelectorAll("button, input")) {
    for (const part of ["::after", "::placeholder"]) {
      const style = getComputedStyle(element, part);
      const isThere = part === "::placeholder" ? element.placeholder : style.content !== "none";
      if (isThere) judge(style, element, style.color, part);
    }
  }
  return low;
}

function focus() {
  const at = document.activeElement, style = getComputedStyle(at), box = at.getBoundingClientRect();
  const middle = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
  const name = `${at.tagName} ${at.id} ${(at.ariaLabel ?? at.textContent).trim().slice(0, 60)}`;
  return [
    at === document.body ? "" : name,
    style.outlineStyle === "none" ? 0 : parseFloat(style.outlineWidth),
    contrast(style.outlineColor, at.parentElement ?? at),
    box.height > innerHeight / 2 || at.contains(middle),
  ];
}

function outside() {
  const found = [];
  for (const element of document.querySelectorAll("main *")) {
    const inside = element.parentElement.closest("section, main").getBoundingClientRect();
    const box = element.getBoundingClientRect(), isScrolled = element.closest(".scroll > *, svg *, pre");
    if (box.width && box.right > inside.right + 1 && !isScrolled) found.push(element.outerHTML.slice(0, 80));
  }
  return found;
}

function collisions() {
  const found = [];
  for (const chart of document.querySelectorAll("svg.chart")) {
    const frame = chart.getBoundingClientRect();
    const texts = Array.from(chart.querySelectorAll("text"), (text) => [text.textContent, text.getBoundingClientRect()]);
    texts.forEach(([words, a], k) => {
      const isOut = a.left < frame.left - 1 || a.right > frame.right + 1 || a.bottom > frame.bottom + 1;
      if (isOut) found.push(`${words} leaves the chart`);
      for (const [others, b] of texts.slice(k + 1)) {
        const isApart = a.right <= b.left || b.right <= a.left || a.bottom <= b.top || b.bottom <= a.top;
        if (!isApart) found.push(`${words} on ${others}`);
      }
    });
  }
  return found;
}

function focusable() {
  const elements = document.querySelectorAll('a[href], button, input, select, summary, [tabindex="0"]');
  return Array.from(elements).filter((element) => element.checkVisibility()).length;
}
