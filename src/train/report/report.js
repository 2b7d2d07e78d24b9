// Shows the values of the step under the pointer. The page is complete without this script.
"use strict";

for (const plot of document.querySelectorAll(".plot")) {
  const { end, rows } = JSON.parse(plot.querySelector("script").textContent);
  const chart = plot.querySelector(".chart");
  const tip = plot.querySelector(".tip");
  const make = (name, label) => {
    const element = document.createElementNS(chart.namespaceURI, name);
    element.setAttribute("class", label);
    element.style.display = "none";
    return chart.appendChild(element);
  };
  const [cross, spot] = [make("line", "cross"), make("circle", "spot")];
  let at = 0;

  // Non-finite numbers are null in JSON; they are left out.
  const figure = (name, value, show) => (value === null ? "" : `\n${name} ${show(value)}`);
  const short = (value) => Number(value.toPrecision(4)).toString();

  const show = (index) => {
    at = Math.max(0, Math.min(rows.length - 1, index));
    const [step, y, loss, smooth, rate, norm, speed] = rows[at];
    const x = (100 * step) / end;
    for (const [name, value] of [["x1", `${x}%`], ["x2", `${x}%`], ["y1", "0"], ["y2", "100%"]]) {
      cross.setAttribute(name, value);
    }
    for (const [name, value] of [["cx", `${x}%`], ["cy", `${y}%`], ["r", "5"]]) {
      spot.setAttribute(name, value);
    }
    tip.textContent =
      `step ${short(step)}` +
      figure("loss", loss, short) +
      figure("smoothed", smooth, short) +
      figure("learning rate", rate, (value) => (value === 0 ? "0" : value.toExponential(2))) +
      figure("gradient norm", norm, short) +
      figure("tokens per second", speed, (value) => Math.round(value).toLocaleString("en"));
    cross.style.display = spot.style.display = "";
    tip.hidden = false;
    // Place the tip on the side of the line that has room, clear of the curve.
    const box = chart.getBoundingClientRect();
    const left = box.left - plot.getBoundingClientRect().left + (box.width * x) / 100;
    const right = left + 14;
    const fits = right + tip.offsetWidth <= plot.offsetWidth;
    tip.style.left = `${Math.max(0, fits ? right : left - 14 - tip.offsetWidth)}px`;
    tip.classList.toggle("low", y < 50);
  };
  const hide = () => {
    cross.style.display = spot.style.display = "none";
    tip.hidden = true;
  };
  const nearest = (event) => {
    const box = chart.getBoundingClientRect();
    const step = ((event.clientX - box.left) / box.width) * end;
    let best = 0;
    for (let index = 1; index < rows.length; index += 1) {
      if (Math.abs(rows[index][0] - step) < Math.abs(rows[best][0] - step)) best = index;
    }
    show(best);
  };

  if (rows.length > 0) {
    plot.addEventListener("pointermove", nearest);
    plot.addEventListener("pointerdown", nearest);
    plot.addEventListener("pointerleave", hide);
    plot.addEventListener("blur", hide);
    plot.addEventListener("focus", () => plot.matches(":focus-visible") && show(at));
    plot.addEventListener("keydown", (event) => {
      const targets = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: rows.length - 1 };
      if (event.key in targets) {
        event.preventDefault();
        show(targets[event.key]);
      }
    });
  }
}

// Open every section before printing: a closed one would be missing on paper.
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
});
