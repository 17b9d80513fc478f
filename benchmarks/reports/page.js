"use strict";
(function () {
  const all = (selector, root) => Array.from((root || document).querySelectorAll(selector));
  const kinds = ["setting", "solver", "nfe", "metric"];

  // What is not chosen is hidden, wherever it stands: rows, columns, lines of charts, pictures.
  function apply() {
    const chosen = {};
    for (const kind of kinds) {
      const inputs = all(`input[name="${kind}"]`);
      chosen[kind] = inputs.length ? new Set(inputs.filter((i) => i.checked).map((i) => i.value)) : null;
    }
    for (const kind of kinds) {
      if (!chosen[kind]) continue;
      for (const element of all(`[data-${kind}]`)) {
        const wanted = kinds.every((k) => !chosen[k] || !element.hasAttribute(`data-${k}`)
          || chosen[k].has(element.getAttribute(`data-${k}`)));
        element.classList.toggle("off", !wanted);
      }
    }
    for (const chart of all("svg.chart")) redraw(chart);
  }

  // A line goes through the markers that are left.
  function redraw(chart) {
    for (const series of all(".series", chart)) {
      const line = series.querySelector(".line");
      const full = line.dataset.full || (line.dataset.full = line.getAttribute("d"));
      const places = full.slice(1).split("L");
      const marks = all("[data-nfe]", series);
      const kept = places.filter((_, i) => !marks[i].classList.contains("off"));
      line.setAttribute("d", kept.length ? "M" + kept.join("L") : "M0 0");
      const band = series.querySelector(".band");
      if (!band) continue;
      const whole = band.dataset.full || (band.dataset.full = band.getAttribute("d"));
      const edge = whole.slice(1, -1).split("L");
      const last = edge.length - 1;
      const up = edge.slice(0, places.length).filter((_, i) => !marks[i].classList.contains("off"));
      const down = edge.filter((_, i) => i >= places.length && !marks[last - i].classList.contains("off"));
      band.setAttribute("d", kept.length ? "M" + up.concat(down).join("L") + "Z" : "M0 0");
    }
  }

  // Numbers by their value, words by their letters; gaps stay last.
  function sort(button) {
    const head = button.closest("th");
    const table = head.closest("table");
    const place = Array.from(head.parentNode.children).indexOf(head);
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of all("th[aria-sort]", table)) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const body = table.tBodies[0];
    const value = (row) => row.children[place].dataset.v;
    const rows = Array.from(body.rows);
    rows.sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (!x || !y) return (x ? 0 : 1) - (y ? 0 : 1);
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y, undefined, { numeric: true }) : x - y;
      return up ? order : -order;
    });
    body.append(...rows);
  }

  // Pointing at a contender anywhere lifts its lines out of the others.
  function light(name) {
    for (const chart of all("svg.chart")) {
      chart.classList.toggle("lit", name !== null);
      for (const series of all(".series", chart)) {
        series.classList.toggle("on", series.dataset.solver === name);
      }
    }
  }

  document.addEventListener("change", (event) => {
    if (event.target.matches(".filters input")) apply();
  });
  document.addEventListener("click", (event) => {
    const head = event.target.closest("th button");
    if (head) sort(head);
    const pick = event.target.closest(".pick");
    if (pick) {
      for (const input of all('input[name="solver"]')) {
        const ours = input.dataset.ours === "1";
        input.checked = { all: true, none: false, ours: ours, theirs: !ours }[pick.dataset.pick];
      }
      apply();
    }
  });
  document.addEventListener("mouseover", (event) => {
    const over = event.target.closest("[data-solver], [data-light]");
    light(over ? over.dataset.solver || over.dataset.light : null);
  });
  apply();
})();
