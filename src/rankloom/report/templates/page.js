"use strict";

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const ascending = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const body = table.tBodies[table.tBodies.length - 1]; // means stand in one before it
      const key = (row) => row.cells[column].dataset.value;
      const rows = [...body.rows].sort((a, b) => compare(key(a), key(b), ascending));
      body.append(...rows);
    });
  });
}

// Cells without a value stay at the end in both directions.
function compare(a, b, ascending) {
  if (a === "" || b === "") return (a === "") - (b === "");
  const difference = a - b;
  const order = Number.isNaN(difference) ? a.localeCompare(b) : difference;
  return ascending ? order : -order;
}

for (const link of document.querySelectorAll('a[href^="#"]')) {
  link.addEventListener("click", () => {
    const target = document.getElementById(link.hash.slice(1));
    if (target) target.open = true;
  });
}

function themed(layout) {
  const style = getComputedStyle(document.documentElement);
  const value = (name) => style.getPropertyValue(name).trim();
  const axis = (given) => ({
    ...given,
    gridcolor: value("--grid"),
    linecolor: value("--line"),
    tickcolor: value("--line"),
    showline: true,
    ticks: "outside",
    ticklen: 4,
  });
  return {
    ...layout,
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: value("--text") },
    hoverlabel: { bgcolor: value("--panel"), bordercolor: value("--line"), font: { color: value("--text") } },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: value("--quiet"), activecolor: value("--accent") },
    xaxis: axis(layout.xaxis),
    yaxis: axis(layout.yaxis),
  };
}

if (window.Plotly) {
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  for (const element of document.querySelectorAll(".chart")) {
    const figure = JSON.parse(element.nextElementSibling.textContent);
    const config = {
      responsive: true,
      displaylogo: false,
      modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]],
    };
    Plotly.newPlot(element, figure.data, themed(figure.layout), config);
    scheme.addEventListener("change", () => Plotly.react(element, figure.data, themed(figure.layout), config));
  }
}
