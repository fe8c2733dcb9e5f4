// Histograms as SVG: of one image with its window, and of a source as a small area.

const short = (value) => {
  const size = Math.abs(value);
  if (size >= 1e6) return `${Number((value / 1e6).toPrecision(3))} M`;
  if (size >= 1e4) return `${Number((value / 1e3).toPrecision(3))} k`;
  return String(size >= 100 ? Math.round(value) : Number(value.toPrecision(3)));
};

/** Outline of bars, from heights of 0 to 1. */
function stairs(heights, width, height) {
  const step = width / heights.length;
  const points = heights.map((share, place) => `V${(height * (1 - share)).toFixed(1)}H${((place + 1) * step).toFixed(1)}`);
  return `M0,${height}${points.join("")}V${height}Z`;
}

/** Root scale: background would leave nothing else to see. */
function imageHistogram({ edges, window: shown, counts }) {
  const [width, height] = [300, 84];
  const most = Math.max(1, ...counts.flat());
  const at = (value) => Math.min(width, Math.max(0, ((value - edges[0]) / (edges[1] - edges[0])) * width));
  const [low, high] = shown.map(at);
  const curves = counts.map((channel, number) => {
    const path = stairs(channel.map((count) => Math.sqrt(count / most)), width, height);
    return `<path class="curve ${counts.length > 1 ? ["red", "green", "blue"][number] : "grey"}" d="${path}"/>`;
  });
  return `<svg class="histogram" viewBox="0 0 ${width} ${height + 16}" role="img" aria-label="Histogram from ${short(edges[0])} to ${short(edges[1])}; shown from ${short(shown[0])} as black to ${short(shown[1])} as white">
<rect class="window" x="${low.toFixed(1)}" y="0" width="${Math.max(1, high - low).toFixed(1)}" height="${height}"/>${curves.join("")}
<path class="axis" d="M0,${height}H${width}"/><text x="0" y="${height + 13}">${short(edges[0])}</text><text x="${width}" y="${height + 13}" text-anchor="end">${short(edges[1])}</text></svg>
<p class="soft small">shown from ${short(shown[0])} (black) to ${short(shown[1])} (white); heights by square root</p>`;
}

const COLUMNS = [
  ["side", "longer side, px"],
  ["slices", "slices"],
  ["spacing", "mm in plane"],
  ["slice_spacing", "mm across"],
  ["middle", "median intensity"],
  ["foreground", "foreground"],
  ["bytes", "bytes stored"],
];

function sourceCurve(found, name) {
  if (!found) return '<td class="none">–</td>';
  const most = Math.max(1, ...found.histogram);
  const path = stairs(found.histogram.map((count) => count / most), 96, 22);
  const says = `${DATA.quantities[name].label}: median ${short(found.middle)}, from ${short(found.low)} to ${short(found.high)}`;
  return `<td><svg class="spark" viewBox="0 0 96 22" preserveAspectRatio="none" role="img" aria-label="${esc(says)}"><title>${esc(says)}</title><path class="curve grey" d="${path}"/></svg><span>${short(found.middle)}</span></td>`;
}

function drawSources() {
  const used = COLUMNS.filter(([name]) => DATA.sources.some((source) => source.quantities[name]));
  const head = ["source", "samples", "subjects", "labelled", "licence", ...used.map(([, label]) => label)];
  const rows = DATA.sources.map((source) => {
    const subjects = source.read < source.samples ? "–" : number(source.subjects);
    const masks = source.read < source.samples ? "–" : number(source.masks);
    const facts = [number(source.samples), subjects, masks].map((text) => `<td class="n">${text}</td>`).join("");
    const curves = used.map(([name]) => sourceCurve(source.quantities[name], name)).join("");
    return `<tr><th scope="row">${esc(source.id)}</th>${facts}<td>${esc(source.licence)}</td>${curves}</tr>`;
  });
  const titles = head.map((name, place) => `<th scope="col"${place > 0 && place < 4 ? ' class="n"' : ""}>${esc(name)}</th>`);
  byId("sources").innerHTML = `<thead><tr>${titles.join("")}</tr></thead><tbody>${rows.join("")}</tbody>`;
}
