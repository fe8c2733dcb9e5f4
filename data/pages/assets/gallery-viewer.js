// One sample at a time: a plane is one image of all its frames, so that scrolling only draws another part of it.

// Of OUTLINES in data/inspect/thumbnails.py, in order of the class value.
const COLOURS = ["#ffd140", "#40c4ff", "#ff698c", "#78e68c", "#c896ff", "#ff9650"];
const SIDES = { axial: ["R", "L", "A", "P"], coronal: ["R", "L", "S", "I"], sagittal: ["A", "P", "S", "I"] };

class Viewer {
  constructor(order) {
    this.order = order; // gives the samples that are shown in the grid
    this.dialog = byId("viewer");
    this.canvas = byId("canvas");
    this.images = new Map();
    byId("slice").addEventListener("input", () => this.draw());
    byId("alpha").addEventListener("input", () => this.draw());
    byId("mask").addEventListener("change", () => this.draw());
    byId("planes").addEventListener("click", (event) => event.target.dataset.view && this.choose(Number(event.target.dataset.view)));
    byId("before").addEventListener("click", () => this.step(-1));
    byId("after").addEventListener("click", () => this.step(1));
    byId("close").addEventListener("click", () => this.dialog.close());
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
    byId("screen").addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    addEventListener("keydown", (event) => this.key(event));
  }

  show(sample) {
    this.sample = sample;
    this.images.clear();
    byId("viewer-title").textContent = [spelt(sample.modality), sample.organ].join(" · ");
    byId("told").innerHTML = this.facts(sample);
    byId("classes").innerHTML = sample.classes.map(([, name]) => `<li><i></i>${esc(name)}</li>`).join("");
    [...byId("classes").children].forEach((item, place) => {
      item.firstElementChild.style.background = COLOURS[(sample.classes[place][0] - 1) % COLOURS.length];
    });
    byId("histogram").innerHTML = imageHistogram(sample.histogram);
    byId("overlay").hidden = !sample.views[0].mask && !sample.shapes.length;
    byId("scroll").hidden = sample.ndim !== 3;
    const planes = sample.views.map((view, place) => `<button type="button" class="quiet" data-view="${place}" aria-pressed="false">${view.plane}</button>`);
    byId("planes").innerHTML = planes.join("");
    if (!this.dialog.open) this.dialog.showModal();
    this.choose(0);
  }

  facts(sample) {
    const [channels, ...extent] = sample.shape;
    const rows = [
      ["Dataset", sample.dataset],
      ["Size", `${extent.join(" × ")}${channels > 1 ? `, ${channels} channels` : ""}, ${sample.dtype}`],
      ["Spacing", sample.spacing.length ? `${sample.spacing.join(" × ")} mm` : ""],
      ["Split", sample.split || ""],
      ...Object.entries(sample.labels),
      ["Licence", sample.licence],
      ["Key", sample.key],
    ];
    const volume = sample.ndim === 3 && channels > 1 ? `<div><dt>Shown</dt><dd>channel 1 of ${channels}</dd></div>` : "";
    return rows.filter(([, text]) => text).map(([name, text]) => `<div><dt>${esc(name)}</dt><dd>${esc(text)}</dd></div>`).join("") + volume;
  }

  choose(place) {
    if (!this.sample.views[place]) return;
    this.view = this.sample.views[place];
    const slider = byId("slice");
    slider.max = String(this.view.places.length - 1);
    slider.value = String(this.view.best);
    [...byId("planes").children].forEach((button, number) => button.setAttribute("aria-pressed", String(number === place)));
    const sides = this.sample.oriented ? SIDES[this.view.plane] || [] : [];
    document.querySelectorAll("#screen .side").forEach((side, number) => {
      side.textContent = sides[number] || "";
    });
    this.draw();
  }

  image(source) {
    if (!this.images.has(source)) {
      const image = new Image();
      image.onload = () => this.draw();
      image.src = source;
      this.images.set(source, image);
    }
    const image = this.images.get(source);
    return image.complete && image.naturalWidth ? image : null;
  }

  draw() {
    const { view, canvas } = this;
    const [height, width] = view.size;
    const frame = Number(byId("slice").value);
    const scale = Math.max(1, Math.ceil(900 / Math.max(height, width)));
    canvas.width = width * scale;
    canvas.height = height * scale;
    const pen = canvas.getContext("2d");
    const from = [(frame % view.columns) * width, Math.floor(frame / view.columns) * height, width, height];
    const image = this.image(view.image);
    if (image) pen.drawImage(image, ...from, 0, 0, canvas.width, canvas.height);
    const labels = view.mask && this.image(view.mask);
    const wanted = byId("mask").checked;
    if (labels && wanted) {
      pen.globalAlpha = byId("alpha").value / 100;
      pen.imageSmoothingEnabled = false;
      pen.drawImage(labels, ...from, 0, 0, canvas.width, canvas.height);
      pen.globalAlpha = 1;
    }
    if (wanted) this.sample.shapes.forEach((shape) => this.outline(pen, shape));
    this.say(frame);
    canvas.dataset.drawn = image && (labels || !view.mask) ? `${this.sample.key} ${view.plane} ${frame}` : "";
  }

  outline(pen, { kind, points }) {
    const [width, height] = [this.canvas.width, this.canvas.height];
    const path = points.map(([y, x]) => [x * width, y * height]);
    pen.strokeStyle = pen.fillStyle = COLOURS[0];
    pen.lineWidth = 3;
    pen.beginPath();
    if (kind === "box") pen.rect(...path[0], path[1][0] - path[0][0], path[1][1] - path[0][1]);
    else if (kind === "point") pen.arc(...path[0], 6, 0, 7);
    else path.forEach(([x, y], place) => (place ? pen.lineTo(x, y) : pen.moveTo(x, y)));
    if (kind === "polygon") pen.closePath();
    if (kind === "point") pen.fill();
    else pen.stroke();
  }

  say(frame) {
    const place = `slice ${this.view.places[frame] + 1} of ${this.view.of}`;
    byId("place").textContent = place;
    byId("slice").setAttribute("aria-valuetext", place);
    const what = `${this.sample.modality}, ${this.sample.organ}`;
    this.canvas.setAttribute("aria-label", this.sample.ndim === 3 ? `${what}, ${this.view.plane}, ${place}` : what);
  }

  scroll(by) {
    const slider = byId("slice");
    slider.value = String(Number(slider.value) + by);
    this.draw();
  }

  wheel(event) {
    if (this.sample.ndim !== 3) return;
    event.preventDefault();
    this.turned = (this.turned || 0) + event.deltaY;
    const steps = Math.trunc(this.turned / 40);
    this.turned -= steps * 40;
    if (steps) this.scroll(-steps);
  }

  step(by) {
    const order = this.order();
    const next = order[order.indexOf(this.sample) + by];
    if (next) location.replace(`#/sample/${encodeURIComponent(next.key)}`);
  }

  key(event) {
    if (!this.dialog.open || isTyping(event)) return;
    const slider = event.target.type === "range" && event.target.id === "alpha";
    const does = {
      ArrowUp: () => this.scroll(1),
      ArrowDown: () => this.scroll(-1),
      ArrowLeft: () => this.step(-1),
      ArrowRight: () => this.step(1),
      m: () => byId("mask").click(),
      1: () => this.choose(0),
      2: () => this.choose(1),
      3: () => this.choose(2),
    }[event.key];
    if (!does || (slider && event.key.startsWith("Arrow"))) return;
    event.preventDefault();
    does();
  }
}
