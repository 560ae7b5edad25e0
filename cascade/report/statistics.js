// The statistics that the page recomputes; cascade.metrics and cascade.binomial are the references.

const Z = 1.959963984540054;

function wilson(count, n) {
  if (!n) return [0, 1];
  const rate = count / n, shrink = 1 + Z * Z / n;
  const center = (rate + Z * Z / (2 * n)) / shrink;
  const spread = Z / shrink * Math.sqrt(rate * (1 - rate) / n + (Z / (2 * n)) ** 2);
  return [count ? Math.max(0, center - spread) : 0, count < n ? Math.min(1, center + spread) : 1];
}

// Lanczos' approximation, g = 7, nine terms: about 15 digits for x > 0.5.
function logGamma(x) {
  const terms = [0.99999999999980993, 676.5203681218851, -1259.1392167224028, 771.32342877765313,
    -176.61502916214059, 12.507343278686905, -0.13857109526572012, 9.9843695780195716e-6,
    1.5056327351493116e-7];
  let sum = terms[0];
  for (let i = 1; i < 9; i++) sum += terms[i] / (x - 1 + i);
  const t = x + 6.5;
  return 0.5 * Math.log(2 * Math.PI) + (x - 0.5) * Math.log(t) - t + Math.log(sum);
}

// Regularised incomplete beta function, by Lentz's continued fraction (Numerical Recipes, §6.4).
function incompleteBeta(x, a, b) {
  if (x <= 0) return 0;
  if (x >= 1) return 1;
  const front = Math.exp(logGamma(a + b) - logGamma(a) - logGamma(b)
    + a * Math.log(x) + b * Math.log1p(-x));
  return x < (a + 1) / (a + b + 2)
    ? front * betaFraction(x, a, b) / a : 1 - front * betaFraction(1 - x, b, a) / b;
}

function betaFraction(x, a, b) {
  const tiny = 1e-300;
  const safe = value => Math.abs(value) < tiny ? tiny : value;
  let c = 1, d = 1 / safe(1 - (a + b) * x / (a + 1)), h = d;
  for (let m = 1; m < 10000; m++) {
    let step = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
    d = 1 / safe(1 + step * d);
    c = safe(1 + step / c);
    h *= d * c;
    step = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1));
    d = 1 / safe(1 + step * d);
    c = safe(1 + step / c);
    h *= d * c;
    if (Math.abs(d * c - 1) < 1e-14) break;
  }
  return h;
}

// One-sided 1 - delta bound of a rate (Clopper and Pearson 1934), to 1e-10.
function upperBound(count, n, delta) {
  if (count >= n) return 1;
  let low = count / n, high = 1;
  while (high - low > 1e-10) {
    const middle = (low + high) / 2;
    if (incompleteBeta(middle, count + 1, n - count) < 1 - delta) low = middle; else high = middle;
  }
  return (low + high) / 2;
}

// Interpolated between neighbours, as numpy does. Sorts what it is given.
function percentile(values, percent) {
  values.sort();
  const place = (values.length - 1) * percent / 100, below = Math.floor(place);
  const above = Math.min(below + 1, values.length - 1);
  return values[below] + (values[above] - values[below]) * (place - below);
}
