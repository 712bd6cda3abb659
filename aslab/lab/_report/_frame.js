"use strict";
// Zoom, and the values under the pointer. Everything is already drawn: this only looks closer.
const tip = document.body.appendChild(Object.assign(document.createElement("div"), { className: "tip", hidden: true }));

// Tooltips without the browser's delay, which also work on a touch screen.
for (const title of document.querySelectorAll(".plot title")) {
  title.parentNode.told = title.textContent;
  title.remove();
}

function show(event) {
  const told = document.elementFromPoint(event.clientX, event.clientY)?.told;  // also while dragging
  tip.hidden = !told;
  if (!told) return;
  tip.textContent = told;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = Math.max(4, Math.min(event.clientX + 12, innerWidth - width - 4)) + "px";
  tip.style.top = (event.clientY + height + 24 > innerHeight ? event.clientY - height - 10 : event.clientY + 16) + "px";
}

// As `nice` in _figures.py, but between any two numbers.
function ticks(from, to) {
  const rough = (to - from) / 8;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= rough * 0.999);
  const found = [];
  for (let n = Math.ceil(from / step - 1e-6); n * step <= to + step * 1e-6; n++) found.push(n * step);
  const digits = Math.max(0, Math.min(12, -Math.floor(Math.log10(step) + 1e-9)));
  return found.map((time) => [time, +time.toFixed(digits)]);
}

class Curve {
  constructor(path, output) {
    this.output = output;
    this.rest = output?.textContent;
    const [x, y, ...more] = path.getAttribute("d").match(/-?[\d.]+(?:e[-+]?\d+)?/g).map(Number);
    this.points = [[x, y]];
    for (let n = 0; n < more.length; n += 2) this.points.push([more[n], more[n + 1]]);
  }

  at(time) {
    let low = 0, high = this.points.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.points[middle][0] <= time) low = middle + 1; else high = middle;
    }
    return low ? this.points[low - 1][1] : undefined;
  }

  tell(time) {
    if (!this.output) return;
    const value = time === undefined ? undefined : this.at(time);
    const words = value === undefined ? "" : value.toLocaleString("en") + " " + this.output.dataset.unit;
    this.output.textContent = time === undefined ? this.rest : words;
  }
}

class Chart {
  constructor(chart) {
    this.chart = chart;
    this.end = Number(chart.dataset.end);
    this.plots = [...chart.querySelectorAll(".plot")];
    const outputs = new Map([...chart.querySelectorAll("output")].map((one) => [one.dataset.of, one]));
    this.curves = [...chart.querySelectorAll(".step")].map((path) => new Curve(path, outputs.get(path.dataset.of)));
    for (const plot of this.plots) this.listen(plot);
    const tools = chart.querySelector(".tools");
    tools.hidden = false;
    const touch = matchMedia("(pointer: coarse)").matches;
    tools.querySelector(".hint").textContent = touch ? "or draw a finger sideways over a chart" : "or drag over a chart; double-click for all";
    this.buttons = [...tools.querySelectorAll("button")];
    for (const button of this.buttons) {
      button.addEventListener("click", () => this.look(Number(button.dataset.from), Number(button.dataset.to)));
    }
    this.look(0, this.end);
  }

  look(from, to) {
    const least = this.end / 1e5;  // no closer: there is nothing to see
    if (to - from < least) [from, to] = [Math.max(0, from - least / 2), Math.min(this.end, from + least / 2)];
    this.from = from;
    this.to = to;
    this.chart.dataset.shown = from + " " + to;
    for (const button of this.buttons) {
      button.setAttribute("aria-pressed", Number(button.dataset.from) === from && Number(button.dataset.to) === to);
    }
    const marks = ticks(from, to);
    for (const plot of this.plots) {
      const svg = plot.firstElementChild;
      const height = svg.viewBox.baseVal.height;
      svg.setAttribute("viewBox", `${from} 0 ${to - from} ${height}`);
      svg.querySelector(".upright").setAttribute("d", marks.map(([time]) => `M${time} 0V${height}`).join(""));
    }
    for (const axis of this.chart.querySelectorAll(".times > div")) {
      axis.replaceChildren(...marks.map(([time, words]) => {
        const mark = Object.assign(document.createElement("span"), { textContent: words + " s" });
        const share = (time - from) / (to - from);
        mark.style.left = share * 100 + "%";
        mark.className = share < 0.03 ? "first" : share > 0.97 ? "last" : "";
        return mark;
      }));
    }
  }

  time(event, plot) {
    const { left, width } = plot.getBoundingClientRect();
    return this.from + Math.max(0, Math.min(1, (event.clientX - left) / width)) * (this.to - this.from);
  }

  // The same line in every plot.
  mark(name, from, to) {
    for (const plot of this.plots) {
      let line = plot.querySelector("." + name);
      if (!line) line = plot.appendChild(Object.assign(document.createElement("div"), { className: name }));
      line.hidden = from === undefined;
      if (from === undefined) continue;
      const share = (time) => (time - this.from) / (this.to - this.from) * 100;
      line.style.left = share(from) + "%";
      line.style.width = share(to) - share(from) + "%";
    }
  }

  listen(plot) {
    let began;
    const rest = () => {
      began = undefined;
      this.mark("choice");
    };
    const tell = (event) => {
      const time = this.time(event, plot);
      this.mark("cursor", time, time);
      for (const curve of this.curves) curve.tell(time);
      show(event);
      return time;
    };
    plot.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      tell(event);
      began = this.time(event, plot);
      plot.setPointerCapture(event.pointerId);
    });
    plot.addEventListener("pointermove", (event) => {
      const time = tell(event);
      if (began !== undefined) this.mark("choice", Math.min(began, time), Math.max(began, time));
    });
    plot.addEventListener("pointerup", (event) => {
      if (began === undefined) return;
      const [from, to] = [began, this.time(event, plot)].sort((one, other) => one - other);
      rest();
      if ((to - from) / (this.to - this.from) > 0.01) this.look(from, to);
    });
    plot.addEventListener("pointercancel", rest);  // the finger scrolls the page instead
    plot.addEventListener("dblclick", () => this.look(0, this.end));
    plot.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "touch") return;  // the tooltip stays until the next touch
      tip.hidden = true;
      this.mark("cursor");
      for (const curve of this.curves) curve.tell();
    });
  }
}

for (const chart of document.querySelectorAll(".chart:not(.fixed)")) new Chart(chart);
document.addEventListener("pointerdown", show);  // a touch elsewhere hides the tooltip
for (const plot of document.querySelectorAll(".fixed .plot")) {
  plot.addEventListener("pointermove", show);
  plot.addEventListener("pointerleave", () => { tip.hidden = true; });
}
