"use strict";
const MARKS = {better: "▲", worse: "▼", "cannot tell": "○"};

for (const script of document.querySelectorAll("script.figure")) {
  const figure = script.previousElementSibling;
  const draw = () => {
    const {data, layout} = JSON.parse(script.textContent);
    const font = {family: getComputedStyle(document.body).fontFamily, size: 13};
    for (const axis of [layout.xaxis, layout.yaxis]) if (axis.title) axis.title.font = {size: 13};
    Object.assign(layout, {font, paper_bgcolor: "transparent", plot_bgcolor: "transparent",
      hovermode: "closest", hoverlabel: {bgcolor: "#20242c", bordercolor: "#20242c", align: "left",
      font: {color: "#ffffff"}}, dragmode: false});
    Plotly.newPlot(figure, data, layout, {responsive: true, displayModeBar: false, typesetMath: false});
    addEventListener("beforeprint", () => Plotly.relayout(figure, {width: 640}));
    addEventListener("afterprint", () => Plotly.relayout(figure, {autosize: true, width: null}));
  };
  // What nobody sees yet is drawn when they come to it, or print.
  let waits = true;
  const once = () => { if (waits) { waits = false; draw(); } };
  new IntersectionObserver((seen) => { if (seen.some((each) => each.isIntersecting)) once(); },
    {rootMargin: "600px"}).observe(figure);
  addEventListener("beforeprint", once);
}

// A cell's place in an order: numbers by size, an interval by its lower end, what is unknown last.
function key(text) {
  if (text === "–" || text === "" || text === "no interval") return null;
  const number = Number(text.replace(/^\[/, "").split(/, (?=[−+.0-9])/)[0].replaceAll("−", "-").replaceAll(",", "").replace(/ %$/, ""));
  return Number.isNaN(number) ? text : number;
}

function compare(one, other) {
  if (typeof one === typeof other) return typeof one === "string" ? one.localeCompare(other) : one - other;
  return typeof one === "number" ? -1 : 1;
}

for (const box of document.querySelectorAll(".table")) {
  const table = box.querySelector("table"), body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const rest = box.querySelector("script.rest"), more = box.querySelector(".more");
  const text = (cell) => cell.textContent.replace(/^[▲▼○] /, "");
  const first = [...body.rows].map((row) => [...row.cells].map(text));
  if (first.length < 2) continue;
  // The other rows are read when somebody sorts, filters or asks for more.
  let everything = null;
  const all = () => everything ??= first.concat(rest ? JSON.parse(rest.textContent) : []);
  // As many rows are laid out as the page came with; more when asked for.
  let chosen = null, shown = first.length, sorted = -1, falling = false;

  function cell(value, column) {
    const td = document.createElement("td");
    if (heads[column].className.includes("number")) td.className = "number";
    if (!(value in MARKS)) { td.textContent = value; return td; }
    const span = td.appendChild(document.createElement("span"));
    span.className = "verdict " + value.replace(" ", "-");
    span.textContent = MARKS[value] + " " + value;
    return td;
  }
  function show() {
    chosen ??= all();
    const rows = chosen.slice(0, shown).map((values) => {
      const row = document.createElement("tr");
      row.append(...values.map(cell));
      return row;
    });
    body.replaceChildren(...rows);
    if (more) more.textContent = `${rows.length.toLocaleString("en")} of ${chosen.length.toLocaleString("en")} rows are shown.`;
    if (button) button.hidden = rows.length === chosen.length;
  }
  function choose() {
    const words = search ? search.value.toLowerCase() : "", verdict = select ? select.value : "";
    chosen = all().filter((values) => (!words || values.some((value) => value.toLowerCase().includes(words))) &&
      (!verdict || values.includes(verdict)));
    if (sorted >= 0) {
      const keyed = chosen.map((values) => [key(values[sorted]), values]);
      keyed.sort(([a], [b]) => a === null || b === null ? (a === null) - (b === null) : falling ? compare(b, a) : compare(a, b));
      chosen = keyed.map(([, values]) => values);
    }
    show();
  }
  heads.forEach((head, column) => {
    head.classList.add("sortable");
    head.tabIndex = 0;
    const sort = () => {
      falling = sorted === column ? !falling : head.className.includes("number");
      sorted = column;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      choose();
    };
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
  });
  let search, select, button;
  if (first.length > 12) {
    const tools = document.createElement("div");
    tools.className = "tools";
    search = tools.appendChild(document.createElement("input"));
    Object.assign(search, {type: "search", placeholder: "filter", ariaLabel: "Filter " + table.ariaLabel});
    search.addEventListener("input", () => { shown = first.length; choose(); });
    if (first.some((values) => values.some((value) => value in MARKS))) {
      select = tools.appendChild(document.createElement("select"));
      select.ariaLabel = "Verdict";
      for (const word of ["", ...Object.keys(MARKS)]) select.append(new Option(word || "any verdict", word));
      select.addEventListener("change", () => { shown = first.length; choose(); });
    }
    if (more) tools.append(more);
    box.prepend(tools);
  }
  if (rest) {
    button = box.appendChild(document.createElement("button"));
    button.textContent = "show more";
    button.addEventListener("click", () => { shown *= 4; show(); });
  }
}
