// Answers as a person reads them: words, bars, trees, boxes and masks over the picture.

export function make(name, { text, cls, parent } = {}) {
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text;
  if (cls) node.className = cls;
  if (parent) parent.append(node);
  return node;
}

export const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;

export function size(count) {
  const units = [[1e9, "G"], [1e6, "M"], [1e3, "k"]];
  const [scale, unit] = units.find(([least]) => count >= least) ?? [1, ""];
  return `${(count / scale).toFixed(scale === 1 ? 0 : 2)} ${unit}`.trim();
}

function bar(parent, share) {
  const track = make("div", { cls: "bar", parent });
  make("i", { parent: track }).style.width = `${100 * Math.min(1, Math.max(0, share))}%`;
  return track;
}

function bars(scores, { inOrder, parent }) {
  const list = make("dl", { cls: "bars", parent });
  const rows = Object.entries(scores); // names that are numbers come first, whatever was sent
  if (!inOrder) rows.sort(([, one], [, other]) => other - one);
  for (const [name, share] of rows) {
    make("dt", { text: name, parent: list });
    bar(list, share);
    make("dd", { text: percent(share), cls: "number", parent: list });
  }
}

// "(S (NP (DT the) (NN dog)))" to {label, word, children}
export function readTree(text) {
  const symbols = text.match(/[()]|[^\s()]+/g) ?? [];
  let place = 0;
  const read = () => {
    place += 1; // (
    const node = { label: symbols[place] === "(" ? "" : symbols[place++], word: "", children: [] };
    while (place < symbols.length && symbols[place] !== ")") {
      if (symbols[place] === "(") node.children.push(read());
      else node.word = symbols[place++];
    }
    place += 1; // )
    return node;
  };
  return read();
}

function tree(text, parent) {
  const add = (node, list) => {
    const item = make("li", { parent: list });
    make("span", { text: node.label, cls: "label", parent: item });
    if (node.word) make("span", { text: node.word, cls: "word", parent: item });
    if (!node.children.length) return;
    const inner = make("ul", { parent: item });
    for (const child of node.children) add(child, inner);
  };
  const list = make("ul", { cls: "tree", parent });
  add(readTree(text), list);
}

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

// Colours of a palette PNG: chunks are a length, four letters, the bytes and a checksum.
export function palette(png) {
  const view = new DataView(png.buffer);
  for (let place = 8; place + 8 <= png.length; ) {
    const length = view.getUint32(place);
    const name = String.fromCharCode(...png.subarray(place + 4, place + 8));
    if (name === "PLTE") {
      const colours = png.subarray(place + 8, place + 8 + length);
      return Array.from({ length: length / 3 }, (_, i) => colours.subarray(3 * i, 3 * i + 3));
    }
    place += length + 12;
  }
  return [];
}

async function picture(answer, { file, classes, parent }) {
  const figure = make("figure", { cls: "picture", parent });
  const canvas = make("canvas", { parent: figure });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `The picture with the answer: ${answer.text}`);
  const image = file ? await createImageBitmap(file).catch(() => null) : null;
  const wide = image ? image.width / image.height : 1;
  canvas.width = 768;
  canvas.height = Math.round(768 / wide);
  const pen = canvas.getContext("2d");
  pen.imageSmoothingEnabled = !image || image.width > 200;
  if (image) pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  if (answer.mask) await drawMask(answer, { pen, canvas, figure, classes });
  if (answer.box) drawBox(answer.box, { pen, canvas });
}

async function drawMask(answer, { pen, canvas, figure, classes }) {
  const bytes = bytesOf(answer.mask);
  const mask = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
  pen.imageSmoothingEnabled = false;
  pen.globalAlpha = 0.6;
  pen.drawImage(mask, 0, 0, canvas.width, canvas.height);
  pen.globalAlpha = 1;
  const list = make("ul", { cls: "legend", parent: figure });
  const colours = palette(bytes);
  classes.forEach((name, number) => {
    if (!colours[number]) return;
    const item = make("li", { parent: list });
    make("span", { cls: "swatch", parent: item }).style.background = `rgb(${colours[number].join(" ")})`;
    make("span", { text: name, parent: item });
  });
}

function drawBox(box, { pen, canvas }) {
  const sides = [
    box.left * canvas.width,
    box.top * canvas.height,
    (box.right - box.left) * canvas.width,
    (box.bottom - box.top) * canvas.height,
  ];
  for (const [width, colour] of [[10, "#000"], [5, "#ffd43b"]]) {
    pen.lineWidth = width;
    pen.strokeStyle = colour;
    pen.strokeRect(...sides);
  }
}

export async function showAnswer(answer, { file, task, parent }) {
  const card = make("article", { cls: "card", parent });
  make("h2", { text: answer.task, parent: card });
  make("p", { text: answer.tree ? "" : answer.text, cls: "said", parent: card });
  if (answer.tree) tree(answer.tree, card);
  if (Object.keys(answer.scores).length) bars(answer.scores, { inOrder: task?.answers === "labels", parent: card });
  if (answer.log_prob !== null && !Object.keys(answer.scores).length) {
    const surprise = answer.log_prob.toFixed(2);
    make("p", { text: `log-probability ${surprise}`, cls: "aside", parent: card });
  }
  if (answer.mask || answer.box) {
    await picture(answer, { file, classes: task?.classes ?? [], parent: card });
  }
}

export function showNetwork(network, { seconds, parent }) {
  const card = make("article", { cls: "card", parent });
  make("h2", { text: "Answered by", parent: card });
  make("p", { text: network.uri, parent: card }).style.margin = "0";
  const share = network.parameters / network.whole_parameters;
  const whole = share < 1 ? ` of ${size(network.whole_parameters)} (${percent(share)})` : "";
  const text = `${size(network.parameters)}${whole} parameters, ${(1000 * seconds).toFixed(0)} ms`;
  make("p", { text, cls: "aside", parent: card });
  bar(card, share).setAttribute("aria-hidden", "true");
}
