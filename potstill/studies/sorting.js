/* A click on a column's name sorts its table by it: the largest first, then the smallest. */
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement;
    const column = [...head.parentElement.children].indexOf(head);
    const body = head.closest("table").tBodies[0];
    const order = head.getAttribute("aria-sort") === "descending" ? "ascending" : "descending";
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    const sign = order === "descending" ? -1 : 1;
    const value = (row) => row.children[column].dataset.value;
    const rows = [...body.rows].sort((one, two) => {
      const known = [value(one), value(two)];
      if (known.includes(undefined)) return (known[0] === undefined) - (known[1] === undefined);
      return sign * (known[0] - known[1]);
    });
    body.append(...rows);
  });
}
