"use strict";
// Everything can be read without this script; it sorts, filters, enlarges and copies. Nothing here builds markup from
// text: names only ever become text content.
const byId = (id) => document.getElementById(id);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const press = (buttons, chosen) => buttons.forEach((b) => b.setAttribute("aria-pressed", String(b === chosen)));

function sortClasses() {
  const table = byId("class-table");
  if (!table) return;
  const buttons = all("[data-sort]");
  const body = table.tBodies[0];
  const orders = {
    order: (a, b) => a.dataset.order - b.dataset.order,
    iou: (a, b) => a.dataset.iou - b.dataset.iou,
    pixels: (a, b) => b.dataset.pixels - a.dataset.pixels,
    ap: (a, b) => a.dataset.ap - b.dataset.ap,
    objects: (a, b) => b.dataset.objects - a.dataset.objects,
    name: (a, b) => a.dataset.name.localeCompare(b.dataset.name),
  };
  for (const button of buttons) {
    button.addEventListener("click", () => {
      body.append(...[...body.rows].sort(orders[button.dataset.sort]));
      press(buttons, button);
    });
  }
}

function readConfusion() {
  const table = byId("confusion-table");
  if (!table) return;
  const reading = byId("confusion-reading");
  const columns = all("thead th", table).map((th) => th.textContent);
  const rows = [...table.tBodies[0].rows];
  let here = rows[0].cells[1];
  const show = (cell) => {
    const row = cell.parentElement;
    const pixels = Number(cell.dataset.n || 0);
    const total = Number(row.dataset.total);
    const share = total ? `${((100 * pixels) / total).toFixed(2)} % of ${row.cells[0].textContent}` : "no labelled pixel";
    const told = `${row.cells[0].textContent} → ${columns[cell.cellIndex - 1]}`;
    reading.textContent = `${told}: ${pixels.toLocaleString("en")} pixels, ${share}`;
    here.classList.remove("here");
    here.tabIndex = -1;
    here = cell;
    here.tabIndex = 0;
    here.classList.add("here");
  };
  here.tabIndex = 0;
  table.addEventListener("pointerover", (event) => {
    const cell = event.target.closest("tbody td");
    if (cell) show(cell);
  });
  table.addEventListener("focusin", (event) => show(event.target));
  table.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    const row = rows[rows.indexOf(here.parentElement) + step[0]];
    const next = row && row.cells[here.cellIndex + step[1]];
    if (!next || next.tagName !== "TD") return;
    show(next);
    next.focus();
  });
}

// Each input picture is in the file once; the label pictures get it laid under them here.
function layUnder() {
  for (const card of all(".image")) {
    const input = card.querySelector(".under");
    for (const over of all(".over", card)) {
      const copy = input.cloneNode();
      copy.alt = "";
      over.before(copy);
    }
  }
  const sliders = all(".opacity");
  for (const slider of sliders) {
    slider.addEventListener("input", () => {
      document.documentElement.style.setProperty("--opacity", slider.value / 100);
      sliders.forEach((other) => (other.value = slider.value));
    });
  }
}

function filterImages() {
  const list = byId("worst-list");
  if (!list) return;
  const cards = [...list.children];
  const select = byId("class-filter");
  const classChips = all("[data-class]");
  const kindChips = all("[data-kind]");
  let kind = null;
  const pixels = (card) => Number(card.getAttribute(`data-${kind.dataset.kind.replaceAll("_", "-")}`));
  const apply = () => {
    const place = (a, b) => a.dataset.place - b.dataset.place;
    cards.sort(kind ? (a, b) => pixels(b) - pixels(a) || place(a, b) : place);
    list.append(...cards);
    let shown = 0;
    for (const card of cards) {
      const has = !select.value || card.dataset.classes.split(" ").includes(select.value);
      card.hidden = !has || (kind !== null && pixels(card) === 0);
      shown += !card.hidden;
    }
    press(classChips, classChips.find((chip) => chip.dataset.class === select.value));
    press(kindChips, kind);
    const ordered = kind ? `, most ${kind.dataset.many} first` : "";
    byId("worst-said").textContent = `${shown} of ${cards.length} images${ordered}`;
  };
  select.addEventListener("change", apply);
  for (const chip of classChips) {
    chip.addEventListener("click", () => {
      select.value = select.value === chip.dataset.class ? "" : chip.dataset.class;
      apply();
    });
  }
  for (const chip of kindChips) {
    chip.addEventListener("click", () => {
      kind = kind === chip ? null : chip;
      apply();
    });
  }
  apply();
}

function enlarge() {
  const dialog = byId("large");
  if (!dialog) return;
  let card = null;
  const neighbour = (step) => {
    const shown = all(".image:not([hidden])");
    return shown[shown.indexOf(card) + step];
  };
  const show = (next) => {
    if (!next) return;
    card = next;
    byId("large-title").textContent = card.querySelector("h3").textContent;
    byId("large-facts").textContent = card.querySelector(".facts").textContent;
    byId("large-held").replaceChildren(...card.querySelector(".held").cloneNode(true).children);
    const panels = byId("large-panels");
    panels.replaceChildren(...card.querySelector(".panels").cloneNode(true).children);
    const input = card.querySelector(".under");
    panels.style.setProperty("--aspect", input.naturalWidth / input.naturalHeight || 1);
    byId("large-previous").disabled = !neighbour(-1);
    byId("large-next").disabled = !neighbour(1);
  };
  for (const button of all(".open")) {
    button.addEventListener("click", () => {
      show(button.closest(".image"));
      dialog.showModal();
      byId("large-close").focus();
    });
  }
  byId("large-close").addEventListener("click", () => dialog.close());
  byId("large-previous").addEventListener("click", () => show(neighbour(-1)));
  byId("large-next").addEventListener("click", () => show(neighbour(1)));
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("keydown", (event) => {
    if (event.target.type === "range") return;
    if (event.key === "ArrowLeft") show(neighbour(-1));
    if (event.key === "ArrowRight") show(neighbour(1));
  });
  // The reader goes on at the image last shown, which need not be the one that was opened.
  dialog.addEventListener("close", () => card.querySelector(".open").focus());
}

function copyProtocol() {
  const button = byId("copy-protocol");
  if (!button) return;
  const table = byId("protocol-table");
  const said = byId("copy-said");
  button.addEventListener("click", async () => {
    const lines = all("tr", table).map((row) => `${row.cells[0].textContent}: ${row.cells[1].textContent}`);
    try {
      await navigator.clipboard.writeText(lines.join("\n"));
      said.textContent = "Copied.";
    } catch (refused) {
      getSelection().selectAllChildren(table);
      said.textContent = "The browser refused; the table is selected, copy it with the keyboard.";
    }
  });
}

sortClasses();
readConfusion();
layUnder();
filterImages();
enlarge();
copyProtocol();
