/* A click on a column's name sorts a table by it: numbers by size, the largest first, then words. */
for (const table of document.querySelectorAll("article table")) {
  if (!table.tHead || table.tBodies[0].rows.length < 3) continue;
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    button.title = "sort by this column";
    head.append(button);
    button.addEventListener("click", () => {
      const falls = head.getAttribute("aria-sort") !== "descending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", falls ? "descending" : "ascending");
      const text = (row) => row.cells[column].textContent.trim();
      const number = (row) => parseFloat(text(row).replace(/,/g, ""));
      const compare = (one, other) => {
        const [a, b] = [number(one), number(other)];
        if (isNaN(a) || isNaN(b)) {
          if (isNaN(a) !== isNaN(b)) return isNaN(a) - isNaN(b);
          return falls ? text(one).localeCompare(text(other)) : text(other).localeCompare(text(one));
        }
        return falls ? b - a : a - b;
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
    });
  });
}
