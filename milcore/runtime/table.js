// A table that sorts, filters and pages. Rows after the first page wait in a template, where they cost no layout.
function pageTable(table, filters = [], changed = () => {}) {
  const body = table.tBodies[0], size = Number(table.dataset.page);
  const heads = Array.from(table.querySelectorAll("th[data-kind]"));
  const more = document.getElementById(table.id + "-more");
  const rows = [...body.rows, ...(more?.content.children ?? [])];
  const collator = new Intl.Collator("en", { numeric: true });
  const pagers = [];
  let matching = rows, page = 0;

  function show() {
    const pages = Math.max(1, Math.ceil(matching.length / size));
    page = Math.min(Math.max(page, 0), pages - 1);
    body.replaceChildren(...matching.slice(page * size, (page + 1) * size));
    for (const [bar, previous, text, next] of pagers) {
      bar.hidden = pages === 1;
      text.textContent = `Rows ${page * size + 1} to ${Math.min((page + 1) * size, matching.length)} of ${matching.length}`;
      previous.setAttribute("aria-disabled", page === 0);
      next.setAttribute("aria-disabled", page === pages - 1);
    }
  }
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
    const compare = kind === "number" ? (a, b) => (a < b ? -1 : a > b ? 1 : 0) : collator.compare;
    const keyed = rows.map((row) => [key(row, column, kind), row]);
    keyed.sort((a, b) => (descending ? -1 : 1) * compare(a[0], b[0]));
    rows.splice(0, rows.length, ...keyed.map(([, row]) => row));
    filter();
  }
  // a filter is a field: text that a row holds (its data-text, where it has one), or an option among its data-tags
  function filter() {
    matching = rows.filter((row) => filters.every((field) => field.type === "search"
      ? (row.dataset.text ?? row.textContent).toLowerCase().includes(field.value.trim().toLowerCase())
      : field.value === "" || row.dataset.tags.split(" ").includes(field.value)));
    page = 0;
    show();
    changed(matching, rows.length);
  }
  function button(text, step, below) {
    const made = Object.assign(document.createElement("button"), { type: "button", textContent: text });
    made.addEventListener("click", () => {
      page += step;
      show();
      if (below) table.scrollIntoView();
    });
    return made;
  }
  function addPager(below) {
    const bar = Object.assign(document.createElement("nav"), { className: "pages", ariaLabel: `Pages of the table, ${below ? "below" : "above"}` });
    const text = document.createElement("span");
    const pager = [bar, button("\u2039 Previous", -1, below), text, button("Next \u203a", 1, below)];
    bar.append(...pager.slice(1));
    const box = table.closest(".scroll") ?? table;
    below ? box.after(bar) : box.before(bar);
    pagers.push(pager);
  }

  if (rows.length > size) for (const below of [false, true]) addPager(below);
  for (const head of heads) head.querySelector("button").addEventListener("click", () => sort(head));
  for (const field of filters) field.addEventListener(field.type === "search" ? "input" : "change", filter);
  show();
}

// a table wider than the screen is reached by Tab and scrolled by arrows
function reachTable(box, isWide, name) {
  if (isWide) Object.assign(box, { tabIndex: 0, role: "group", ariaLabel: name });
  else for (const attribute of ["tabindex", "role", "aria-label"]) box.removeAttribute(attribute);
}
// a browser scrolls to what is hidden, not to what is cut
function revealFocus(box) {
  box.addEventListener("focusin", (event) => event.target === box || event.target.scrollIntoView({ block: "nearest", inline: "nearest" }));
}
