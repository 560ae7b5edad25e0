// The page: reads the settings, and shows what they come to.

const data = JSON.parse(document.getElementById("data").textContent);
const allRows = readRows(data);
const byId = id => document.getElementById(id);

// The threshold of the page as it opens: the policy's, or the one that keeps half.
function firstThreshold() {
  if (data.policy) return data.threshold ?? Infinity;
  return allRows.score[Math.ceil(allRows.score.length / 2) - 1];
}

const opening = { threshold: firstThreshold(), price: data.price, weight: 0, group: null, value: 0 };
const state = { ...opening };
const whole = summarise(allRows, data.compared, data.steps);
let summary = whole;
const device = data.tiers[0].name, strong = data.compared ? data.tiers[1].name : "";

// Figures as people read them.

const percent = (rate, digits = 1) => `${(100 * rate).toFixed(digits)} %`;
const span = ([low, high]) => `${(100 * low).toFixed(1)}–${(100 * high).toFixed(1)} %`;
const points = difference => `${difference < 0 ? "−" : "+"}${(100 * Math.abs(difference)).toFixed(1)} points`;
const wholePercent = rate => `${+(100 * rate).toFixed(1)} %`;
const plain = (value, digits) => String(+value.toPrecision(digits));
const dollars = usd => `$${usd >= 100 ? usd.toFixed(0) : usd >= 1 ? usd.toFixed(2) : plain(usd, 2)}`;
const seconds = s => s >= 10 ? `${s.toFixed(1)} s` : s >= 1 ? `${s.toFixed(2)} s` : `${plain(1000 * s, 3)} ms`;
// Scores close to 1 are told apart by what is missing.
function score(threshold) {
  if (threshold === null || threshold === Infinity) return "–";
  return 0.999 < threshold && threshold < 1 ? `1 − ${plain(1 - threshold, 2)}` : threshold.toFixed(4);
}

function put(id, value, text, small = "") {
  const place = byId(id);
  place.textContent = text;
  if (value === null) delete place.dataset.value; else place.dataset.value = value;
  if (small) place.append(Object.assign(document.createElement("small"), { textContent: small }));
}

// Scales: a price goes from a hundredth to a hundred times where it started.

const priceAt = place => data.price * 10 ** (place / 20);
const weightAt = place => place === 0 ? 0 : 10 ** (-1 + 3 * (place - 1) / 59) / 3600;

function priceText() {
  if (data.basis === "recorded") return `× ${plain(state.price, 3)}`;
  return dollars(state.price) + (data.basis === "tokens" ? " / million tokens" : " / 1,000 requests");
}

// Settings

// A control that is being moved is left alone: written back, it could not be moved by small steps.
function showSettings(moved) {
  const n = whole.n, escalated = 1 - keptAt(allRows.score, state.threshold) / n;
  const text = state.threshold === Infinity ? "keeps nothing" : `${data.score_name} ≥ ${score(state.threshold)}`;
  if (moved !== "escalated") byId("escalated").value = Math.round(1000 * escalated);
  byId("escalated").setAttribute("aria-valuetext", `${text}, ${percent(1 - escalated)} kept`);
  byId("threshold-text").textContent = text;
  if (moved !== "threshold") byId("threshold").value = state.threshold === Infinity ? "" : state.threshold;
  byId("price-text").textContent = priceText();
  byId("price").setAttribute("aria-valuetext", priceText());
  const worth = state.weight ? dollars(3600 * state.weight) : "nothing";
  byId("weight-text").textContent = worth;
  byId("weight").setAttribute("aria-valuetext", worth);
}

function listen() {
  byId("escalated").addEventListener("input", event => {
    const wanted = Math.ceil(whole.n * (1000 - event.target.value) / 1000);
    const kept = whole.counts.find(count => count >= wanted);
    state.threshold = kept ? allRows.score[kept - 1] : Infinity;
    show("escalated");
  });
  byId("threshold").addEventListener("input", event => {
    const value = event.target.valueAsNumber;
    if (value >= 0 && value <= 1) {
      state.threshold = value;
      show("threshold");
    }
  });
  byId("price").addEventListener("input", event => {
    state.price = priceAt(+event.target.value);
    show();
  });
  byId("weight").addEventListener("input", event => {
    state.weight = weightAt(+event.target.value);
    show();
  });
  byId("group").addEventListener("change", event => {
    const [group, value] = event.target.value.split(":").map(Number);
    choose(event.target.value === "" ? null : group, value);
    show();
  });
  byId("reset").addEventListener("click", () => {
    Object.assign(state, opening);
    byId("price").value = byId("weight").value = 0;
    byId("group").value = "";
    choose(null, 0);
    show();
  });
}

function choose(group, value) {
  state.group = group;
  state.value = value;
  summary = group === null ? whole : summarise(chosenRows(allRows, group, value), data.compared, data.steps);
}

function fillGroups() {
  const select = byId("group");
  select.append(new Option(`all ${whole.n.toLocaleString("en")} rows`, ""));
  data.groups.forEach((group, place) => {
    const options = document.createElement("optgroup");
    options.label = group.name;
    group.values.forEach((value, code) => {
      const n = allRows.groups[place].codes.filter(each => each === code).length;
      if (n) options.append(new Option(`${value || "(none)"} · ${n.toLocaleString("en")} rows`, `${place}:${code}`));
    });
    select.append(options);
  });
}

// What the settings come to

function showFigures(point) {
  const bound = upperBound(point.wrong, point.kept, data.delta);
  put("kept", point.share, percent(point.share), `${point.kept} of ${point.n}`);
  put("risk", point.risk, point.risk === null ? "–" : percent(point.risk),
    point.risk === null ? "nothing is kept"
      : `bound ${percent(bound)}, at ${percent(1 - data.delta, 0)}, for this threshold alone`);
  byId("risk").dataset.bound = bound;
  if (!data.compared) return;
  const difference = point.accuracy - summary.strongAll[point.n] / point.n;
  if (data.stays) byId("kept").lastChild.textContent += `; ${percent(point.unverified)} more stay unverified`;
  put("accuracy", point.accuracy, percent(point.accuracy),
    `${span(wilson(point.correct, point.n))}; ${points(difference)} from ${strong} alone`);
  put("cost", point.cost === null ? null : 1000 * point.cost,
    point.cost === null ? "–" : dollars(1000 * point.cost),
    point.cost === null ? "not recorded"
      : state.weight ? `${dollars(1000 * point.money)} of it money` : costNote());
  put("p95", point.p95, point.p95 === null ? "–" : seconds(point.p95),
    point.meanLatency === null ? "not recorded" : `${seconds(point.meanLatency)} on average`);
}

function costNote() {
  if (data.basis !== "recorded") return "at an assumed price";
  return state.price === 1 ? "as recorded" : "at the price set above";
}

function showState() {
  const atPolicy = data.policy && state.threshold === opening.threshold;
  let text = `Without a policy no threshold is certified; the ${data.score_name} is no confidence.`;
  if (data.policy && data.threshold === null) text = "The policy keeps nothing: no threshold could be certified.";
  else if (data.policy && data.alpha === null) text = atPolicy
    ? "This is the policy's threshold. It does not promise anything about the error among the answers kept."
    : `You are looking around: the policy's threshold is ${score(data.threshold)}.`;
  else if (data.policy) text = atPolicy && state.group === null
    ? `This is the certified threshold; the promise is at most ${percent(data.alpha)} wrong.`
    : `You are looking around: the certificate is about ${score(data.threshold)} and all inputs together.`;
  byId("state").textContent = text;
}

// Charts

const HERE = ["here", "at this threshold"];
const charts = {};

function makeCharts() {
  const pick = reading => {
    if (reading.threshold === undefined) return;
    state.threshold = reading.threshold ?? Infinity;
    show();
  };
  const add = (id, legend) => { charts[id] = new Chart(byId(id), legend, pick); };
  const name = data.score_name;
  if (data.compared) {
    add("deferral", [["curve", data.stays ? "the policy at every threshold" : `lowest ${name} first`],
      ...(data.stays ? [["order", `lowest ${name} first, whatever there is to gain`]] : []),
      ...(data.gain_order ? [["gain", "largest expected gain first"]] : []), ["oracle", "oracle: who is right is known"], ["random", "at random"], HERE]);
  }
  add("coverage", [["curve", "observed"],
    ["bound", `bound at ${percent(1 - data.delta, 0)}, each threshold alone`],
    ...(data.alpha === null ? [] : [["target", `certified target, ${wholePercent(data.alpha)}`]]), HERE]);
  add("reliability", [["dot", "share right, 95 % interval"], ["random", "perfect"], ["bar", "share of rows"]]);
  if (data.compared) {
    const front = [["curve", "all thresholds"], ["dot", "not beaten in accuracy, cost and p95"], ["alone", "one tier alone"], HERE];
    add("front-cost", front);
    if (whole.timed) add("front-latency", front);
  }
}

function padded(values, low = -Infinity, high = Infinity) {
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const space = Math.max(0.06 * (most - least), 0.01);
  return { low: Math.max(low, least - space), high: Math.min(high, most + space) };
}

function drawDeferral(points, here) {
  const curve = points.map(point => [point.escalated, point.accuracy]).reverse();
  const byGain = summary.rows.gainOrder ? gainCurve(summary) : [];
  const ends = [summary.right[summary.n] / summary.n, summary.strongAll[summary.n] / summary.n];
  const oracle = Array.from({ length: 201 }, (_, i) => [i / 200, oracleAt(summary, i / 200 * summary.n)]);
  const interval = wilson(here.correct, here.n);
  charts.deferral.draw({
    summary: `${strong} answers ${percent(here.escalated)}: ${percent(here.accuracy)} right `
      + `(95 % interval ${span(interval)}).`,
    pickable: true,
    x: { name: `share answered by ${strong}`, low: 0, high: 1, show: wholePercent },
    y: { ...padded([...curve.map(at => at[1]), ...oracle.map(at => at[1]), ...byGain.map(at => at[1]), ...interval], 0, 1), show: wholePercent },
    lines: [{ kind: "random", points: [[0, ends[0]], [1, ends[1]]] }, { kind: "oracle", points: oracle },
      ...(data.stays ? [{ kind: "order", points: orderCurve(summary) }] : []),
      ...(byGain.length ? [{ kind: "gain", points: byGain }] : []), { kind: "curve", points: curve }],
    marks: [{ kind: "here", at: [here.escalated, here.accuracy], span: interval }],
    readings: points.slice().reverse().map(point => ({
      at: [point.escalated, point.accuracy], threshold: point.threshold,
      text: `${percent(point.escalated)} escalated (${data.score_name} below ${score(point.threshold)}): `
        + `${percent(point.accuracy)} right; at random ${percent(ends[0] + point.escalated * (ends[1] - ends[0]))}, `
        + `oracle ${percent(oracleAt(summary, point.escalated * point.n))}.`,
    })),
  });
}

function drawCoverage(points, here) {
  const kept = points.filter(point => point.kept);
  for (const point of kept) point.bound = upperBound(point.wrong, point.kept, data.delta);
  const settled = kept.filter(point => point.share >= 0.1);
  const tops = [...settled.map(point => point.bound), here.risk ?? 0, data.alpha ?? 0, 0.02];
  charts.coverage.draw({
    summary: here.kept ? `${percent(here.share)} kept: ${percent(here.risk)} of these wrong `
      + `(bound ${percent(upperBound(here.wrong, here.kept, data.delta))}).` : "Nothing is kept.",
    pickable: true,
    x: { name: "share kept on the device", low: 0, high: 1, show: wholePercent },
    y: { low: 0, high: Math.min(1, 1.1 * Math.max(...tops)), show: wholePercent },
    lines: [
      ...(data.alpha === null ? [] : [{ kind: "target", points: [[0, data.alpha], [1, data.alpha]] }]),
      { kind: "bound", points: kept.map(point => [point.share, point.bound]) },
      { kind: "curve", points: kept.map(point => [point.share, point.risk]) },
    ],
    marks: here.kept ? [{ kind: "here", at: [here.share, here.risk] }] : [],
    readings: kept.map(point => ({
      at: [point.share, point.risk], threshold: point.threshold,
      text: `${percent(point.share)} kept (${data.score_name} ≥ ${score(point.threshold)}): ${point.wrong} of `
        + `${point.kept} wrong, ${percent(point.risk)}; bound ${percent(point.bound)}.`,
    })),
  });
}

function drawReliability() {
  const bins = reliabilityBins(summary), filled = bins.filter(bin => bin.count);
  const error = filled.reduce((sum, bin) => sum + Math.abs(bin.right - bin.sum), 0)
    / Math.max(1, filled.reduce((sum, bin) => sum + bin.count, 0));
  charts.reliability.draw({
    summary: data.policy ? `Expected calibration error ${error.toFixed(3)} over ${filled.length} bins.`
      : "A raw score: nothing says that it should lie on the line.",
    x: { name: data.score_name, low: 0, high: 1, show: value => plain(value, 2) },
    y: { low: 0, high: 1, show: wholePercent },
    bars: filled.map(bin => ({ from: bin.lower, to: bin.upper, height: bin.count / summary.n })),
    lines: [{ kind: "random", points: [[0, 0], [1, 1]] },
      { kind: "curve", points: filled.map(bin => [bin.sum / bin.count, bin.right / bin.count]) }],
    marks: filled.map(bin => ({ kind: "dot", at: [bin.sum / bin.count, bin.right / bin.count], span: wilson(bin.right, bin.count) })),
    readings: filled.map(bin => ({
      at: [bin.sum / bin.count, bin.right / bin.count],
      text: `${plain(bin.lower, 1)} to ${plain(bin.upper, 1)}: ${bin.count} rows, on average `
        + `${(bin.sum / bin.count).toFixed(3)}, of which ${percent(bin.right / bin.count)} are right `
        + `(95 % interval ${span(wilson(bin.right, bin.count))}).`,
    })),
  });
}

function drawFronts(points, here) {
  const alone = data.tiers.map((_, place) => aloneAt(summary, place, state)).filter(point => point.cost !== null);
  markEfficient([...points, ...alone]);
  const efficient = [...points, ...alone].filter(point => point.efficient).length;
  const note = `${efficient} of ${points.length + alone.length} ways to run are not beaten.`;
  drawFront("front-cost", points, alone, here, {
    of: point => 1000 * point.cost, show: dollars, note,
    name: `cost of 1,000 requests${state.weight ? ", waiting included" : ""}`,
  });
  if (charts["front-latency"]) drawFront("front-latency", points, alone.filter(point => point.p95 !== null), here,
    { of: point => point.p95, show: seconds, name: "95th percentile of the latency", note });
}

function drawFront(id, points, alone, here, { of, show, name, note }) {
  const everything = [...points, ...alone], xs = padded(everything.map(of), 0);
  if (xs.high - xs.low <= 0.02) { // costs may be tiny: the padding is relative there
    const most = Math.max(...everything.map(of));
    Object.assign(xs, { low: 0, high: most > 0 ? 1.06 * most : 1 });
  }
  const interval = wilson(here.correct, here.n);
  const tell = point => `${show(of(point))}, ${percent(point.accuracy)} right${point.efficient ? "" : ": beaten by another"}.`;
  charts[id].draw({
    summary: `${show(of(here))}, ${percent(here.accuracy)} right. ${note}`,
    pickable: true,
    x: { name, ...xs, show },
    y: { ...padded([...everything.map(point => point.accuracy), ...interval], 0, 1), show: wholePercent },
    lines: [{ kind: "curve", points: points.map(point => [of(point), point.accuracy]) }],
    marks: [
      ...points.filter(point => point.efficient).map(point => ({ kind: "dot", at: [of(point), point.accuracy] })),
      ...alone.map(point => ({ kind: "alone", at: [of(point), point.accuracy], text: point.name })),
      { kind: "here", at: [of(here), here.accuracy], span: interval },
    ],
    readings: [
      ...points.map(point => ({ at: [of(point), point.accuracy], threshold: point.threshold,
        text: `${percent(point.share)} kept (${data.score_name} ≥ ${score(point.threshold)}): ${tell(point)}` })),
      ...alone.map(point => ({ at: [of(point), point.accuracy], text: `${point.name} alone: ${tell(point)}` })),
    ].sort((one, two) => one.at[0] - two.at[0]),
  });
}

function showConfusion(kept) {
  for (const [name, [rows, keptRows]] of Object.entries(confusionAt(summary, kept))) {
    put(`who-${name}`, rows, percent(rows / summary.n), `${rows} rows, ${keptRows} kept`);
  }
}

function show(moved = "") {
  const here = pointAt(summary, keptAt(summary.rows.score, state.threshold), state);
  const points = summary.shown.map(kept => pointAt(summary, kept, state));
  showSettings(moved);
  showFigures(here);
  showState();
  drawCoverage(points, here);
  drawReliability();
  if (!data.compared) return;
  drawDeferral(points, here);
  drawFronts(points, here);
  showConfusion(here.kept);
}

byId("board").hidden = byId("charts").hidden = false;
const met = new Set([...(data.compared ? ["compared"] : []), ...(data.compared && whole.timed ? ["latency"] : [])]);
for (const element of document.querySelectorAll("[data-needs]")) {
  element.hidden = !element.dataset.needs.split(" ").every(need => met.has(need));
}
fillGroups();
listen();
makeCharts();
show();
