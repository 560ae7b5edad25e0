// A line chart as SVG: axes, lines, marks, and a reading of it by pointer or by arrow keys.

function svgElement(name, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

// Round numbers that part a range into about `wanted` steps.
function ticks(low, high, wanted) {
  const rough = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(times => times * power).find(size => size >= rough * 0.999);
  const values = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) values.push(i * step);
  return values;
}

class Chart {
  // `onPick` is called with a reading when it is clicked or Enter is pressed on it.
  constructor(figure, legend, onPick) {
    this.figure = figure;
    this.onPick = onPick;
    this.at = null;
    const list = document.createElement("ul");
    list.className = "legend";
    for (const [kind, text] of legend) {
      const item = document.createElement("li"), key = svgElement("svg", { viewBox: "0 0 28 12", "aria-hidden": "true" });
      key.append(kind === "here" || kind === "dot"
        ? svgElement("circle", { cx: 14, cy: 6, r: kind === "here" ? 5 : 3, class: kind })
        : kind === "alone" ? svgElement("rect", { x: 9.5, y: 1.5, width: 9, height: 9, class: kind })
        : kind === "bar" ? svgElement("rect", { x: 4, y: 1, width: 20, height: 10, class: kind })
        : svgElement("line", { x1: 0, x2: 28, y1: 6, y2: 6, class: `line ${kind}` }));
      item.append(key, text);
      list.append(item);
    }
    this.svg = svgElement("svg", { tabindex: "0", role: "application" });
    this.readout = document.createElement("p");
    this.readout.className = "readout";
    this.readout.setAttribute("aria-live", "polite");
    figure.append(list, this.svg, this.readout);
    this.svg.addEventListener("pointermove", event => this.read(this.nearest(event)));
    this.svg.addEventListener("pointerleave", () => this.read(null));
    this.svg.addEventListener("blur", () => this.read(null));
    this.svg.addEventListener("click", event => this.pick(this.nearest(event)));
    this.svg.addEventListener("keydown", event => this.key(event));
    new ResizeObserver(() => {
      if (this.spec && Math.abs(this.width - this.measured()) > 1) this.draw(this.spec);
    }).observe(figure);
  }

  measured() {
    return Math.max(280, this.figure.clientWidth);
  }

  // spec: name, summary, x and y {name, low, high, show, wanted}, bars, lines, marks, readings.
  draw(spec) {
    this.spec = spec;
    this.width = this.measured();
    this.height = Math.min(340, Math.max(230, this.width * 0.62));
    const left = 52, right = 24, top = 8, bottom = 42;
    const along = ({ low, high }, from, to) => value => from + (value - low) / (high - low) * (to - from);
    this.x = along(spec.x, left, this.width - right);
    this.y = along(spec.y, this.height - bottom, top);
    const { svg, x, y } = this, clip = `clip-${this.figure.id}`;
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
    svg.setAttribute("aria-label", `${spec.summary} Arrow keys read the chart`
      + `${spec.pickable ? "; Enter moves the threshold there" : ""}.`);
    const area = svgElement("clipPath", { id: clip });
    area.append(svgElement("rect",
      { x: left, y: top, width: this.width - left - right, height: this.height - top - bottom }));
    svg.append(area);
    for (const value of ticks(spec.y.low, spec.y.high, 5)) {
      svg.append(svgElement("line", { x1: left, x2: this.width - right, y1: y(value), y2: y(value), class: "grid" }));
      svg.append(svgElement("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, spec.y.show(value)));
    }
    const base = this.height - bottom;
    svg.append(svgElement("line", { x1: left, x2: this.width - right, y1: base, y2: base, class: "base" }));
    for (const value of ticks(spec.x.low, spec.x.high, this.width < 420 ? 4 : 6)) {
      svg.append(svgElement("text", { x: x(value), y: base + 16, "text-anchor": "middle" }, spec.x.show(value)));
    }
    svg.append(svgElement("text",
      { x: (left + this.width - right) / 2, y: this.height - 6, "text-anchor": "middle", class: "axis-name" },
      spec.x.name));
    const inside = svgElement("g", { "clip-path": `url(#${clip})` });
    svg.append(inside);
    for (const bar of spec.bars ?? []) {
      inside.append(svgElement("rect", { x: x(bar.from), width: Math.max(0, x(bar.to) - x(bar.from) - 1),
        y: y(bar.height), height: Math.max(0, base - y(bar.height)), class: "bar" }));
    }
    for (const { kind, points } of spec.lines) {
      inside.append(svgElement("polyline", { class: `line ${kind}`,
        points: points.map(([a, b]) => `${x(a).toFixed(2)},${y(b).toFixed(2)}`).join(" ") }));
    }
    for (const mark of spec.marks) this.mark(mark);
    this.cross = svgElement("g", { visibility: "hidden" });
    svg.append(this.cross);
    this.read(this.at);
  }

  mark({ kind, at: [a, b], span, text }) {
    const { svg, x, y } = this, px = x(a), py = y(b);
    if (span) {
      const ends = span.map(value => y(Math.min(Math.max(value, this.spec.y.low), this.spec.y.high)));
      svg.append(svgElement("line", { x1: px, x2: px, y1: ends[0], y2: ends[1],
        class: kind === "here" ? "here-whisker" : "whisker" }));
    }
    svg.append(kind === "alone"
      ? svgElement("rect", { x: px - 5, y: py - 5, width: 10, height: 10, class: kind })
      : svgElement("circle", { cx: px, cy: py, r: kind === "here" ? 6.5 : 3, class: kind }));
    if (text) {
      const atEnd = px > this.width * 0.6;
      svg.append(svgElement("text", { x: px + (atEnd ? -10 : 10), y: py + (py < 24 ? 16 : -8), class: "label",
        "text-anchor": atEnd ? "end" : "start" }, text));
    }
  }

  nearest(event) {
    const box = this.svg.getBoundingClientRect(), scale = this.width / box.width;
    const px = (event.clientX - box.left) * scale, py = (event.clientY - box.top) * scale;
    let best = null, least = Infinity;
    this.spec.readings.forEach((reading, i) => {
      // Along a curve the place across counts; among scattered points, both do.
      const away = Math.abs(this.x(reading.at[0]) - px) + 0.2 * Math.abs(this.y(reading.at[1]) - py);
      if (away < least) [best, least] = [i, away];
    });
    return best;
  }

  read(place) {
    const { readings } = this.spec;
    this.at = place === null || !readings.length ? null : Math.min(place, readings.length - 1);
    this.cross.replaceChildren();
    this.cross.setAttribute("visibility", this.at === null ? "hidden" : "visible");
    if (this.at === null) {
      this.readout.textContent = this.spec.summary;
      return;
    }
    const { at: [a, b], text } = readings[this.at], px = this.x(a);
    const py = this.y(Math.min(Math.max(b, this.spec.y.low), this.spec.y.high));
    this.cross.append(svgElement("line", { x1: px, x2: px, y1: 8, y2: this.height - 42, class: "cross" }));
    this.cross.append(svgElement("circle", { cx: px, cy: py, r: 6, class: "probe" }));
    this.readout.textContent = text;
  }

  pick(place) {
    if (place !== null && this.spec.pickable) this.onPick(this.spec.readings[place]);
  }

  key(event) {
    const last = this.spec.readings.length - 1, { at } = this;
    const to = {
      ArrowRight: at === null ? 0 : Math.min(at + 1, last),
      ArrowLeft: at === null ? last : Math.max(at - 1, 0),
      Home: 0, End: last, Escape: null,
    };
    if (event.key in to) this.read(to[event.key]);
    else if (event.key === "Enter") this.pick(at);
    else return;
    event.preventDefault();
  }
}
