// The rows of the page, and what a threshold, a price and a group make of them. Draws nothing.

function decode(text, Type) {
  if (text === null) return null;
  const bytes = Uint8Array.from(atob(text), character => character.charCodeAt(0));
  return new Type(bytes.buffer);
}

// All rows, by falling score. A latency or cost that is not known for every row is null.
function readRows(data) {
  const bits = decode(data.right, Uint8Array);
  return {
    score: decode(data.score, Float64Array),
    tiers: data.tiers.map((tier, place) => ({
      name: tier.name,
      right: bits.map(value => value >> place & 1),
      latency: decode(tier.latency, Float32Array),
      cost: decode(tier.unit_cost, Float32Array),
    })),
    deviceCost: decode(data.device_usd, Float32Array),
    stays: decode(data.stays, Uint8Array),
    blind: decode(data.blind, Uint8Array),
    gainOrder: decode(data.gain_order, Float64Array),
    groups: data.groups.map(group => ({ ...group, codes: decode(group.codes, Uint8Array) })),
  };
}

// The rows of one value of one group; all for null.
function chosenRows(rows, group, value) {
  if (group === null) return rows;
  const { codes } = rows.groups[group];
  const take = array => array && array.filter((_, row) => codes[row] === value);
  return {
    ...rows,
    score: take(rows.score),
    deviceCost: take(rows.deviceCost),
    stays: take(rows.stays),
    blind: take(rows.blind),
    gainOrder: take(rows.gainOrder),
    tiers: rows.tiers.map(tier =>
      ({ ...tier, right: take(tier.right), latency: take(tier.latency), cost: take(tier.cost) })),
  };
}

// Rows with score >= threshold; scores fall.
function keptAt(score, threshold) {
  let low = 0, high = score.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (score[middle] >= threshold) low = middle + 1; else high = middle;
  }
  return low;
}

// Numbers of rows that a threshold can keep: 0, and wherever the next score is lower.
function reachable(score) {
  const counts = [0];
  for (let row = 1; row <= score.length; row++) {
    if (row === score.length || score[row] < score[row - 1]) counts.push(row);
  }
  return counts;
}

// The numbers nearest above 0, 1/steps ... 1 of all rows; see cascade.report.front.kept_counts.
function steppedCounts(counts, n, steps) {
  const chosen = new Set();
  for (let step = 0, place = 0; step <= steps; step++) {
    while (counts[place] < Math.ceil(step * n / steps)) place++;
    chosen.add(counts[place]);
  }
  return [...chosen];
}

// Sums over the first rows, from none to all.
function runningSums(n, value) {
  const sums = new Float64Array(n + 1);
  for (let row = 0; row < n; row++) sums[row + 1] = sums[row] + value(row);
  return sums;
}

// What does not change when the threshold or the price is moved.
function summarise(rows, compared, steps) {
  const n = rows.score.length, [device, strong] = rows.tiers;
  const counts = reachable(rows.score);
  const summary = {
    rows, n, counts, compared,
    shown: steppedCounts(counts, n, steps),
    wrong: runningSums(n, row => 1 - device.right[row]),
    right: runningSums(n, row => device.right[row]),
    deviceCost: runningSums(n, row => rows.deviceCost[row])[n] / n,
  };
  if (compared) {
    // What comes of not keeping a row: some stay on the device all the same, unverified.
    const up = row => !(rows.stays && rows.stays[row]);
    summary.strongRight = runningSums(n, row => (up(row) ? strong : device).right[row]);
    summary.strongAll = runningSums(n, row => strong.right[row]);
    summary.staying = runningSums(n, row => up(row) ? 0 : 1);
    summary.cost = strong.cost && runningSums(n, row => up(row) ? strong.cost[row] : 0);
  }
  summary.timed = Boolean(device.latency && (!compared || strong.latency));
  if (summary.timed && compared) {
    summary.deviceLatency = runningSums(n, row => device.latency[row])[n];
    summary.strongLatency = runningSums(n, row => rows.stays && rows.stays[row] ? 0 : strong.latency[row]);
  }
  summary.p95 = new Map();
  return summary;
}

// An escalated request waits for the device first.
function p95At(summary, kept) {
  if (!summary.timed || !summary.compared) return null;
  if (!summary.p95.has(kept)) {
    const [device, strong] = summary.rows.tiers;
    const latency = Float64Array.from(device.latency);
    const { stays } = summary.rows;
    for (let row = kept; row < summary.n; row++) {
      if (!(stays && stays[row])) latency[row] += strong.latency[row];
    }
    summary.p95.set(kept, percentile(latency, 95));
  }
  return summary.p95.get(kept);
}

// The cascade that keeps the first `kept` rows. `setting` has price and weight (dollars a second).
function pointAt(summary, kept, setting) {
  const { n } = summary;
  const point = {
    kept, n, share: kept / n, wrong: summary.wrong[kept],
    risk: kept ? summary.wrong[kept] / kept : null,
    threshold: kept ? summary.rows.score[kept - 1] : null,
  };
  if (!summary.compared) return point;
  const { strongRight } = summary;
  point.correct = summary.right[kept] + strongRight[n] - strongRight[kept];
  point.accuracy = point.correct / n;
  point.unverified = (summary.staying[n] - summary.staying[kept]) / n;
  point.escalated = 1 - point.share - point.unverified;
  point.p95 = p95At(summary, kept);
  point.money = summary.cost === null ? null
    : summary.deviceCost + setting.price * (summary.cost[n] - summary.cost[kept]) / n;
  point.meanLatency = !summary.timed ? null
    : (summary.deviceLatency + summary.strongLatency[n] - summary.strongLatency[kept]) / n;
  point.cost = point.money === null ? null
    : point.money + (setting.weight ? setting.weight * point.meanLatency : 0);
  return point;
}

// A tier that answers everything by itself.
function aloneAt(summary, place, setting) {
  const tier = summary.rows.tiers[place], { n } = summary;
  const mean = values => values.reduce((sum, value) => sum + value, 0) / n;
  const money = place === 0 ? summary.deviceCost : tier.cost && setting.price * mean(tier.cost);
  const latency = tier.latency && mean(tier.latency);
  return {
    name: tier.name,
    accuracy: mean(tier.right),
    cost: money === null ? null : money + (setting.weight && latency !== null ? setting.weight * latency : 0),
    p95: tier.latency && percentile(Float64Array.from(tier.latency), 95),
  };
}

// No other point is at least as good in everything and better in something.
function markEfficient(points) {
  const losses = points.map(point => [-point.accuracy, point.cost ?? 0, point.p95 ?? 0]);
  points.forEach((point, i) => {
    point.efficient = !losses.some(other =>
      other.every((loss, k) => loss <= losses[i][k] + 1e-12)
      && other.some((loss, k) => loss < losses[i][k] - 1e-12));
  });
}

// Accuracy when the best possible order is escalated: first what only the strong tier gets right.
function oracleAt(summary, escalated) {
  const { n } = summary, [device, strong] = summary.rows.tiers;
  if (!summary.gains) {
    summary.gains = { better: 0, worse: 0 };
    for (let row = 0; row < n; row++) {
      if (strong.right[row] > device.right[row]) summary.gains.better++;
      if (strong.right[row] < device.right[row]) summary.gains.worse++;
    }
  }
  const { better, worse } = summary.gains;
  const lost = Math.max(0, escalated - (n - worse));
  return (summary.right[n] + Math.min(escalated, better) - lost) / n;
}

// Accuracy by the share escalated if all that is not kept were.
function orderCurve(summary) {
  const { n, right, strongAll } = summary;
  return summary.shown.map(kept => [1 - kept / n, (right[kept] + strongAll[n] - strongAll[kept]) / n]).reverse();
}

// Accuracy by the share escalated, the largest gains first; ties are straight.
function gainCurve(summary) {
  const { n } = summary, { gainOrder, tiers: [device, strong] } = summary.rows;
  const places = Array.from({ length: n }, (_, row) => row).sort((a, b) => gainOrder[a] - gainOrder[b]);
  const points = [[0, summary.right[n] / n]];
  let right = summary.right[n];
  places.forEach((row, i) => {
    right += strong.right[row] - device.right[row];
    if (i === n - 1 || gainOrder[places[i + 1]] > gainOrder[row]) points.push([(i + 1) / n, right / n]);
  });
  return points;
}

// Ten bins of equal width over [0, 1]; the last includes 1.
function reliabilityBins(summary) {
  const bins = Array.from({ length: 10 }, (_, i) =>
    ({ lower: i / 10, upper: (i + 1) / 10, count: 0, sum: 0, right: 0 }));
  summary.rows.score.forEach((score, row) => {
    if (summary.rows.blind && summary.rows.blind[row]) return;
    // The edges as numpy.linspace rounds them: 0.30000000000000004, not 0.3.
    let place = Math.min(9, Math.floor(score * 10));
    if (place < 9 && score >= (place + 1) * 0.1) place++;
    if (place > 0 && score < place * 0.1) place--;
    const bin = bins[place];
    bin.count++;
    bin.sum += score;
    bin.right += summary.rows.tiers[0].right[row];
  });
  return bins;
}

// Who was right, and how many of those rows the device keeps.
function confusionAt(summary, kept) {
  const cells = { both: [0, 0], only_device: [0, 0], only_strong: [0, 0], neither: [0, 0] };
  const [device, strong] = summary.rows.tiers;
  for (let row = 0; row < summary.n; row++) {
    const name = device.right[row] ? (strong.right[row] ? "both" : "only_device")
      : (strong.right[row] ? "only_strong" : "neither");
    cells[name][0]++;
    if (row < kept) cells[name][1]++;
  }
  return cells;
}
