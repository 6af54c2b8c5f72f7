// Tables with the class "sortable", whose last row of headings holds buttons: a cell sorts by its data-value, or else
// by its text; one without a value comes last in both directions. A third click brings back the first order. Each body
// is sorted on its own; its title stays on top, and a row "beside" another stays below it.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...[...table.tHead.rows].at(-1).cells];
  const groups = [...table.tBodies].map(body => {
    const found = [];
    for (const row of body.rows)
      if (row.className === "beside") found.at(-1).push(row);
      else if (row.className !== "block") found.push([row]);
    return [body, found];
  });
  const next = {none: "ascending", ascending: "descending", descending: "none"};
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const order = next[head.getAttribute("aria-sort") ?? "none"];
    heads.forEach(other => other.removeAttribute("aria-sort"));
    if (order !== "none") head.setAttribute("aria-sort", order);
    const key = ([row]) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const compare = (a, b) => isNaN(a) || isNaN(b) ? a.localeCompare(b, "en", {numeric: true}) : a - b;
    const before = (a, b) => (a === "") - (b === "") || compare(a, b) * (order === "ascending" ? 1 : -1);
    for (const [body, rows] of groups)
      body.append(...(order === "none" ? rows : rows.toSorted((a, b) => before(key(a), key(b)))).flat());
  }));
}
