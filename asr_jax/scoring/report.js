"use strict";
const rows = JSON.parse(document.getElementById("rows").textContent);
const collator = new Intl.Collator(undefined, {numeric: true});
const NOTHING = "∅", CHUNK = 50;
const metric = document.querySelector("[data-metric]").dataset.metric;
// Characters, unlike words, have no space between two.
const SPACE = metric === "wer" ? " " : "";
for (const row of rows) {
  const references = [], hypotheses = [];
  row.mistakes = [];
  for (const piece of row.text) {
    const [reference, hypothesis] = typeof piece === "string" ? [piece, piece] : piece;
    if (reference !== null) references.push(reference);
    if (hypothesis !== null) hypotheses.push(hypothesis);
    if (typeof piece !== "string")
      row.mistakes.push(`${reference ?? NOTHING}→${hypothesis ?? NOTHING}`);
  }
  row.reference = references.join(SPACE);
  row.searchable =
    [row.id, row.speaker, row.reference, hypotheses.join(SPACE)].join("\n").toLowerCase();
  row.rate = row.words ? 100 * row.errors / row.words : null;
  row.gain ??= null;
}
const compared = rows.some(row => row.gain !== null);

const search = document.querySelector("[type=search]");
const onlyErrors = document.querySelector("[type=checkbox]");
const body = document.querySelector("tbody");
const end = document.getElementById("end");
let key = "errors", direction = -1, shown = [], drawn = 0;

function compare(firstRow, secondRow) {
  const a = firstRow[key], b = secondRow[key];
  if (a === null || b === null) return (a === null) - (b === null);
  return direction * (typeof a === "string" ? collator.compare(a, b) : a - b);
}

function element(name, className, text) {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function transcript(row) {
  const cell = element("td", "text");
  cell.dir = "auto";
  if (!row.text.length) cell.append(element("span", "none", "empty reference, nothing recognized"));
  for (const piece of row.text) {
    if (typeof piece === "string") { cell.append(piece, SPACE); continue; }
    const [reference, hypothesis] = piece;
    const kind = reference === null ? "ins" : hypothesis === null ? "del" : "sub";
    const word = element("span", `word ${kind}`);
    word.title = {ins: "insertion", del: "deletion", sub: "substitution"}[kind];
    word.append(element("span", "", reference ?? NOTHING),
                element("span", "", hypothesis ?? NOTHING));
    cell.append(word, SPACE);
  }
  return cell;
}

function draw(row) {
  const line = element("tr"), name = element("div", "name"), label = element("div");
  if (source(row)) name.append(playButton(row));
  label.title = row.id;
  label.append(row.id, element("small", "", row.speaker));
  name.append(label);
  line.append(element("td"), transcript(row));
  line.firstChild.append(name);
  line.onclick = event => { if (!event.target.closest("button") && !String(getSelection())) toggle(row, line); };
  line.tabIndex = 0;
  line.onkeydown = event => { if (event.key === "Enter" && event.target === line) toggle(row, line); };
  const rate = row.rate === null ? "–" : row.rate.toFixed(1);
  const cells = [[row.seconds.toFixed(2), "s"], [row.words, metric === "wer" ? "words" : "characters"], [row.errors, "errors"],
                 [rate, `% ${metric.toUpperCase()}`], [row.sure?.toFixed(0) ?? "–", "% confidence"]];
  if (compared) cells.push([row.gain === null ? "–" : row.gain, "gain"]);
  for (const [value, unit] of cells) {
    const cell = element("td", "", value);
    cell.dataset.unit = unit;
    line.append(cell);
  }
  return line;
}

// Drawing ten thousand rows takes seconds: draw them down to one screen below the visible part.
function fill() {
  while (drawn < shown.length && end.getBoundingClientRect().top < 2 * innerHeight)
    body.append(...shown.slice(drawn, drawn += CHUNK).map(draw));
}

function refresh() {
  stop();
  const query = search.value.trim(), lower = query.toLowerCase();
  shown = rows.filter(row => (!onlyErrors.checked || row.errors) &&
    (query.includes("→") ? row.mistakes.includes(query) : row.searchable.includes(lower)));
  shown.sort(compare);
  for (const button of document.querySelectorAll("[data-sort]")) {
    const head = button.parentElement;
    if (button.dataset.sort !== key) head.removeAttribute("aria-sort");
    else head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
  }
  const count = shown.length.toLocaleString("en");
  document.querySelector("output").textContent =
    shown.length === rows.length ? `${count} utterances` :
    `${count} of ${rows.length.toLocaleString("en")} utterances`;
  body.replaceChildren();
  drawn = 0;
  fill();
}

// The recording as a data: URI of this page, or as a path relative to it.
function source(row) {
  return row.audio !== null ? document.getElementById(`audio-${row.audio}`).textContent : row.file;
}

const player = new Audio();
let playing = null;
function stop() {
  player.pause();
  if (playing) {
    playing.button.textContent = "▶";
    playing.button.setAttribute("aria-label", "Play");
    playing.button.style.removeProperty("--played");
  }
  for (const line of document.querySelectorAll(".playhead")) line.style.visibility = "hidden";
  playing = null;
}
function play(row, button, from) {
  stop();
  playing = {row, button};
  button.textContent = "■";
  button.setAttribute("aria-label", "Stop");
  player.src = source(row);
  player.currentTime = row.offset + from;
  player.play().catch(() => {
    if (playing?.row !== row) return;
    stop();
    button.disabled = true;
    button.title = "This recording cannot be played: it is missing or of another format.";
  });
}
function playButton(row) {
  const button = element("button", "play", "▶");
  button.type = "button";
  button.setAttribute("aria-label", "Play");
  button.onclick = () => playing?.row === row ? stop() : play(row, button, 0);
  return button;
}
player.onended = stop;
player.ontimeupdate = () => {
  if (!playing) return;
  const fraction = (player.currentTime - playing.row.offset) / playing.row.seconds;
  if (fraction >= 1) return stop();
  playing.button.style.setProperty("--played", `${100 * fraction}%`);
  const line = playing.row.timeline?.querySelector(".playhead");
  if (line) { line.style.left = `${100 * fraction}%`; line.style.visibility = "visible"; }
};

function toggle(row, line) {
  if (line.nextSibling?.className === "detail") {
    line.nextSibling.remove();
    line.classList.remove("open");
    return;
  }
  line.classList.add("open");
  const detail = element("tr", "detail"), cell = element("td"), panel = element("div", "panel");
  cell.colSpan = line.children.length;
  line.after(detail);
  detail.append(cell);
  cell.append(panel);
  if (row.other !== undefined) {
    const baseline = element("p", "", "Baseline: ");
    const other = element("b", "", row.other || "nothing");
    other.dir = "auto";
    baseline.append(other);
    panel.append(baseline);
  }
  const timeline = row.timeline = element("div", "timeline");
  timeline.onclick = event => {
    const button = line.querySelector(".play"), box = timeline.getBoundingClientRect();
    if (button) play(row, button, row.seconds * (event.clientX - box.left) / box.width);
  };
  timeline.append(wordsInTime(row));
  panel.append(timeline);
  const captions = ["Recognized words at the times when they were emitted."];
  if (row.audio !== null) {
    const canvas = element("canvas", "spectrogram");
    timeline.append(canvas);
    spectrogram(row, canvas).catch(() => canvas.remove());
    captions.push("Spectrogram, 0 to 8 kHz.");
  }
  if (row.lattice) {
    timeline.append(lattice(row, timeline.clientWidth));
    captions.push("For each label of the reference, its probability at each frame.");
  } else captions.push("evaluate --lattices N adds the labels' probabilities over time.");
  timeline.append(element("div", "playhead"));
  panel.append(element("p", "", captions.join(" ")));
}

function wordsInTime(row) {
  const strip = element("div", "words");
  const kinds = [], normalized = [];
  for (const piece of row.text) {
    if (typeof piece === "string")
      for (const word of piece.split(" ")) { kinds.push(""); normalized.push(word); }
    else if (piece[1] !== null) {
      kinds.push(piece[0] === null ? "ins" : "sub");
      normalized.push(piece[1]);
    }
  }
  const words = row.heard ?? normalized;
  for (let n = 0; n < words.length; n++) {
    const [start, end, confidence] = row.times.slice(3 * n, 3 * n + 3);
    const word = element("span", row.heard ? "" : kinds[n], words[n]);
    const times = `${(start / 1000).toFixed(2)} to ${(end / 1000).toFixed(2)} s`;
    word.title = `${times}, confidence ${confidence} %`;
    word.style.left = `${start / 10 / row.seconds}%`;
    word.style.top = `${1.4 * (n % 3)}rem`;
    strip.append(word);
  }
  return strip;
}

// Dark violet to light yellow, in even steps of lightness.
const COLORS = [[13, 8, 40], [84, 21, 109], [169, 46, 94], [232, 105, 45], [250, 190, 70],
                [252, 253, 191]];
function color(level) {
  const position = Math.min(Math.max(level, 0), 0.9999) * (COLORS.length - 1);
  const n = Math.floor(position), rest = position - n;
  return COLORS[n].map((value, k) => value + rest * (COLORS[n + 1][k] - value));
}

// The discrete Fourier transform in place; the length must be a power of two.
function fourier(re, im) {
  const size = re.length;
  for (let i = 1, j = 0; i < size; i++) {
    let bit = size >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) [re[i], re[j]] = [re[j], re[i]];
  }
  for (let length = 2; length <= size; length <<= 1) {
    for (let k = 0; k < length / 2; k++) {
      const cos = Math.cos(2 * Math.PI * k / length), sin = -Math.sin(2 * Math.PI * k / length);
      for (let i = k; i < size; i += length) {
        const j = i + length / 2;
        const x = re[j] * cos - im[j] * sin, y = re[j] * sin + im[j] * cos;
        re[j] = re[i] - x; im[j] = im[i] - y;
        re[i] += x; im[i] += y;
      }
    }
  }
}

async function spectrogram(row, canvas) {
  const RATE = 16000, SIZE = 512, HOP = 160, SPAN = 70;
  canvas.width = Math.max(1, Math.floor(row.seconds * RATE / HOP));
  canvas.height = SIZE / 4;
  canvas.style.height = "8rem";
  const stored = Uint8Array.from(atob(source(row).split(",")[1]), c => c.charCodeAt(0)).buffer;
  const sound = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(stored);
  const samples = sound.getChannelData(0), start = Math.round(row.offset * RATE);
  const levels = new Float32Array(canvas.width * canvas.height);
  let loudest = -Infinity;
  for (let t = 0; t < canvas.width; t++) {
    const re = new Float64Array(SIZE), im = new Float64Array(SIZE);
    for (let n = 0; n < 400; n++)
      re[n] = (samples[start + t * HOP + n - 200] ?? 0) * (0.5 - 0.5 * Math.cos(Math.PI * n / 200));
    fourier(re, im);
    for (let y = 0; y < canvas.height; y++) {
      const power = (k => re[k] ** 2 + im[k] ** 2)(2 * y) + (k => re[k] ** 2 + im[k] ** 2)(2 * y + 1);
      const level = 10 * Math.log10(power + 1e-12);
      levels[(canvas.height - 1 - y) * canvas.width + t] = level;
      loudest = Math.max(loudest, level);
    }
  }
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  levels.forEach((level, n) => image.data.set([...color(1 + (level - loudest) / SPAN), 255], 4 * n));
  context.putImageData(image, 0, 0);
}

function lattice(row, width) {
  const ROW = 14, scale = devicePixelRatio, canvas = element("canvas", "lattice");
  canvas.width = width * scale;
  canvas.height = row.lattice.length * ROW * scale;
  canvas.style.height = `${row.lattice.length * ROW}px`;
  const context = canvas.getContext("2d"), style = getComputedStyle(document.body);
  context.scale(scale, scale);
  context.font = "11px system-ui, sans-serif";
  context.textBaseline = "middle";
  const pixels = width / row.seconds / 1000;
  row.lattice.forEach(([piece, start, frame, percents], n) => {
    context.fillStyle = style.getPropertyValue("--line");
    context.fillRect(0, (n + 1) * ROW - 1, width, 1);
    context.fillStyle = style.getPropertyValue("--ins");
    percents.forEach((percent, k) => {
      context.globalAlpha = percent / 100;
      context.fillRect((start + k * frame) * pixels, n * ROW + 1, Math.max(1, frame * pixels), ROW - 3);
    });
    context.globalAlpha = 1;
    context.fillStyle = style.getPropertyValue("--ink");
    const right = (start + percents.length * frame) * pixels + 4;
    const label = piece.replace("▁", "·"), labelWidth = context.measureText(label).width;
    const left = start * pixels - labelWidth - 4;
    context.fillText(label, right + labelWidth < width ? right : left, (n + 0.5) * ROW);
  });
  return canvas;
}

for (const button of document.querySelectorAll("[data-sort]")) {
  button.onclick = () => {
    const words = ["id", "reference"].includes(button.dataset.sort);
    direction = button.dataset.sort === key ? -direction : words ? 1 : -1;
    key = button.dataset.sort;
    refresh();
  };
}
for (const button of document.querySelectorAll("[data-find]")) {
  button.onclick = () => {
    search.value = button.dataset.find;
    refresh();
    search.scrollIntoView({behavior: "smooth"});
  };
}
document.querySelector("form").onsubmit = event => event.preventDefault();
search.oninput = onlyErrors.onchange = refresh;
addEventListener("scroll", fill, {passive: true});
addEventListener("resize", fill);
refresh();
