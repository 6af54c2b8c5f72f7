// Tables with the class "sortable", whose headings hold buttons: a cell sorts by its data-value, or else by its text;
// one without a value comes last in both directions.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const compare = (a, b) => isNaN(a) || isNaN(b) ? a.localeCompare(b, "en", {numeric: true}) : a - b;
    const order = (a, b) => (a === "") - (b === "") || compare(a, b) * (up ? 1 : -1);
    body.append(...[...body.rows].sort((a, b) => order(key(a), key(b))));
  }));
}
