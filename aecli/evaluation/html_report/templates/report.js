"use strict";
{
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children); // text nodes: a name is never parsed as HTML
    return element;
  };
  const option = (value, text) => make("option", { value, textContent: text });
  const BATCH = 60; // cards added at a time
  const labels = ["Ground truth", ...data.predictions];

  const url = (image, column) =>
    data.embedded ? data.embedded[image][column] : `${data.folder}/${data.files[image]}-${column}.webp`;
  const picture = (image, column, properties) => {
    const [height, width] = data.sizes[image];
    return make("img", { width, height, decoding: "async", ...properties, src: url(image, column) });
  };
  const valueOf = (metric, prediction, image) => data.values[data.metrics[metric].name][prediction][image];
  const goodness = (metric, prediction, image) => {
    const value = valueOf(metric, prediction, image) ?? Infinity; // identical images: nothing is better
    return data.metrics[metric].higher ? value : -value;
  };
  const format = (metric, prediction, image) => {
    const value = valueOf(metric, prediction, image);
    return value === null ? "identical" : value.toFixed(data.metrics[metric].digits);
  };
  addEventListener("error", (event) => { if (event.target.tagName === "IMG") at("lost").hidden = false; }, true);

  // ---------------------------------------------------------------------------------------------- filter and order of the images
  const orderedPairs = [];
  data.predictions.forEach((_, a) => data.predictions.forEach((_, b) => { if (a !== b) orderedPairs.push([a, b]); }));
  data.predictions.forEach((name, index) => at("subject").append(option(index, name)));
  orderedPairs.forEach(([a, b]) => {
    const [first, second] = [data.predictions[a], data.predictions[b]];
    at("subject").append(option(`${a},${b}`, `${first} against ${second}`));
    at("winner").append(option(`${a},${b}`, `where ${first} beats ${second}`));
  });
  const lowerNames = data.names.map((name) => name.toLowerCase());
  let order = [];
  let cardCount = 0;

  function difference(metric, a, b, image) {
    const [one, other] = [goodness(metric, a, image), goodness(metric, b, image)];
    return one === other ? 0 : one - other; // both may be infinite, whose difference is NaN
  }

  function choose() {
    const metric = Number(at("metric").value);
    const [a, b] = at("subject").value.split(",").map(Number);
    const winner = at("winner").value ? at("winner").value.split(",").map(Number) : null;
    const query = at("search").value.trim().toLowerCase();
    const direction = at("direction").value;
    order = [...data.names.keys()].filter(
      (image) => lowerNames[image].includes(query) && (!winner || difference(metric, ...winner, image) > 0));
    if (direction !== "name") {
      const sign = direction === "worst" ? 1 : -1;
      const keys = data.names.map(
        (_, image) => (b === undefined ? goodness(metric, a, image) : difference(metric, a, b, image)));
      order.sort((one, other) => (keys[one] === keys[other] ? one - other : sign * (keys[one] - keys[other])));
    }
    at("status").textContent = `${order.length.toLocaleString("en")} of ${data.names.length.toLocaleString("en")} images`;
    at("cards").replaceChildren();
    cardCount = 0;
    addCards();
  }

  function addCards() {
    const metric = Number(at("metric").value);
    const end = Math.min(cardCount + BATCH, order.length);
    const items = [];
    for (let position = cardCount; position < end; position++) {
      const image = order[position];
      const thumbs = make("span", { className: "thumbs" });
      labels.forEach((_, column) => thumbs.append(picture(image, column, { alt: "", loading: "lazy" })));
      const figures = data.predictions.map((name, index) => `${name} ${format(metric, index, image)}`).join(", ");
      const button = make("button", { type: "button", className: "card", tabIndex: position ? -1 : 0 }, thumbs,
        make("span", { className: "name", textContent: data.names[image] }),
        make("span", { className: "figures", textContent: `${data.metrics[metric].title}: ${figures}` }));
      button.dataset.position = position;
      items.push(make("li", {}, button));
    }
    at("cards").append(...items);
    cardCount = end;
    at("more").hidden = cardCount >= order.length;
  }

  const cardAt = (position) => at("cards").children[position]?.firstChild;
  function focusCard(position) {
    position = Math.max(0, Math.min(position, order.length - 1));
    while (position >= cardCount && cardCount < order.length) addCards();
    const card = cardAt(position);
    if (!card) return;
    at("cards").querySelectorAll('[tabindex="0"]').forEach((other) => { other.tabIndex = -1; });
    card.tabIndex = 0;
    card.focus();
  }

  for (const id of ["direction", "metric", "subject", "winner"]) at(id).addEventListener("change", choose);
  at("search").addEventListener("input", choose);
  at("controls").addEventListener("submit", (event) => event.preventDefault());
  at("more").addEventListener("click", () => { const first = cardCount; addCards(); focusCard(first); });
  new IntersectionObserver((entries) => { if (entries.some((entry) => entry.isIntersecting)) addCards(); },
    { rootMargin: "600px" }).observe(at("more"));
  at("cards").addEventListener("click", (event) => {
    const card = event.target.closest(".card");
    if (card) open(Number(card.dataset.position));
  });
  at("cards").addEventListener("keydown", (event) => {
    const position = Number(event.target.dataset.position);
    const goal = { ArrowRight: position + 1, ArrowLeft: position - 1, Home: 0, End: cardCount - 1 }[event.key];
    if (goal === undefined) return;
    event.preventDefault();
    focusCard(goal);
  });
  addEventListener("keydown", (event) => {
    const typing = event.target.closest?.("input, select, textarea, dialog");
    if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    at("search").focus();
  });

  // ------------------------------------------------------------------------------------------------------ one image
  const viewer = at("viewer");
  let current = 0;
  let outside = null; // an image opened from a chart that the filter leaves out
  labels.forEach((label, column) => {
    at("left").append(option(column, label));
    at("right").append(option(column, label));
  });
  at("right").value = 1;

  function open(position, image = null) {
    outside = image;
    current = position;
    show();
    if (!viewer.open) viewer.showModal();
    at("viewer-name").focus();
  }

  function show() {
    const image = outside ?? order[current];
    const [height, width] = data.sizes[image];
    at("viewer-name").textContent = data.names[image];
    at("viewer-place").textContent =
      (outside === null ? `${current + 1} of ${order.length}, ` : "") + `${width}×${height} pixels`;
    at("previous").disabled = outside !== null || current === 0;
    at("next").disabled = outside !== null || current >= order.length - 1;
    at("sides").replaceChildren(...labels.map((label, column) => {
      const figures = column ? data.metrics.map((m, i) => `${m.title} ${format(i, column - 1, image)}`).join(", ") : "";
      return make("figure", {}, picture(image, column, { alt: label }),
        make("figcaption", {}, make("strong", { textContent: label }), figures && make("br"), figures));
    }));
    at("figures").replaceChildren(...data.predictions.map((name, index) => make("tr", {},
      Object.assign(make("th", { textContent: name }), { scope: "row" }),
      ...data.metrics.map((_, metric) => make("td", { className: "number", textContent: format(metric, index, image) },
        make("span", { className: "under", textContent: rank(metric, index, image) }))))));
    const isReduced = Math.max(height, width) > data.view_side;
    at("reduced").hidden = !isReduced;
    at("reduced").textContent = isReduced
      ? `Shown reduced to ${data.view_side} pixels, and so is the difference; the values are of the full-size image.` : "";
    compare();
  }

  function rank(metric, prediction, image) {
    const own = goodness(metric, prediction, image);
    let worse = 0;
    for (let other = 0; other < data.names.length; other++) if (goodness(metric, prediction, other) < own) worse++;
    return `${worse + 1}. from the worst of ${data.names.length}`;
  }

  function compare() {
    const image = outside ?? order[current];
    const [left, right] = [Number(at("left").value), Number(at("right").value)];
    at("over").src = at("heat-over").src = url(image, left);
    at("under").src = at("heat-under").src = url(image, right);
    at("slider-caption").textContent = `Left of the line: ${labels[left]}. Right of it: ${labels[right]}.`;
    at("heat-caption").textContent =
      `Absolute difference of ${labels[left]} and ${labels[right]}, mean over R, G and B, in 8-bit levels`;
    at("over").alt = labels[left];
    at("under").alt = labels[right];
    at("heat-over").alt = "";
    at("heat-under").alt = `Difference of ${labels[left]} and ${labels[right]}`;
  }

  function slide() {
    const percent = Number(at("slider").value);
    at("over").style.clipPath = `inset(0 ${100 - percent}% 0 0)`;
    at("handle").style.left = `${percent}%`;
  }

  function gain() {
    const factor = Number(at("gain").value);
    const row = `${factor / 3} ${factor / 3} ${factor / 3} 0 0`;
    at("heat-gain").setAttribute("values", `${row}  ${row}  ${row}  0 0 0 1 0`);
    at("gain-value").textContent = `${factor}×`;
    at("scale-end").textContent = `${Math.round(255 / factor)} or more`;
  }

  function drag(event) {
    const box = at("stage").getBoundingClientRect();
    at("slider").value = Math.round((100 * (event.clientX - box.left)) / box.width);
    slide();
  }

  function step(by) {
    const next = current + by;
    if (outside !== null || next < 0 || next >= order.length) return;
    current = next;
    show();
  }

  for (const id of ["left", "right"]) at(id).addEventListener("change", compare);
  at("slider").addEventListener("input", slide);
  at("gain").addEventListener("input", gain);
  at("stage").addEventListener("pointerdown", (event) => {
    event.preventDefault();
    at("stage").setPointerCapture(event.pointerId);
    drag(event);
  });
  at("stage").addEventListener("pointermove", (event) => { if (event.buttons) drag(event); });
  at("previous").addEventListener("click", () => step(-1));
  at("next").addEventListener("click", () => step(1));
  at("close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
  viewer.addEventListener("close", () => { if (outside === null) focusCard(current); });
  viewer.addEventListener("keydown", (event) => {
    if (event.target.closest("input, select")) return;
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });

  // ---------------------------------------------------------------------------------------------------------- charts
  const scatters = document.querySelectorAll(".scatter");
  at("scatter")?.addEventListener("change", () => {
    scatters.forEach((figure, index) => { figure.hidden = index !== Number(at("scatter").value); });
  });
  document.querySelectorAll(".points").forEach((group) => {
    const images = group.dataset.images.split(".");
    group.querySelectorAll("use").forEach((point, index) => {
      const image = Number(images[index]);
      const title = document.createElementNS("http://www.w3.org/2000/svg", "title");
      title.textContent = data.names[image];
      point.append(title);
      point.addEventListener("click", () => {
        const position = order.indexOf(image);
        if (position < 0) open(0, image); else open(position);
      });
    });
  });

  const [reds, greens, blues] = [...document.querySelectorAll("#heat-map [tableValues]")].map(
    (table) => table.getAttribute("tableValues").split(" "));
  const colours = reds.map((red, index) => `rgb(${[red, greens[index], blues[index]].map((v) => 255 * v).join(" ")})`);
  document.querySelector(".scale i").style.background = `linear-gradient(to right, ${colours.join(", ")})`;
  at("cards").style.setProperty("--card", `${102 * labels.length + 16}px`);
  slide();
  gain();
  choose();
}
