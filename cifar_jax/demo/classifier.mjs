// A picture's file to what the page shows of it: the browser's part of decode.py (in cifar_jax/data)
// and of heat_map.py and predictor.py (in cifar_jax/predict), with the same numbers.

import * as ort from "./ort.wasm.min.mjs";

ort.env.wasm.numThreads = 1;  // more need headers that few web hosts send

const MAX_PIXELS = 2 ** 26;  // of a picture
const PARTS = 4;  // covering squares side by side in each dimension; they overlap by half
const FALLS = [214, 40, 40], RISES = [38, 84, 200], FAINT = 0.01;
const BITS = 22;  // of the fraction of Pillow's fixed-point weights

// The network of `facts`, as {class_names, image_shape, seen_shape}: a function of a picture's file
// to {classes: [{name, probability}, …], seen, heat, milliseconds}, with the `shown` most probable.
export async function load(facts, shown) {
  const session = await ort.InferenceSession.create("./model.onnx");
  const [height, width, channels] = facts.seen_shape, area = height * width;

  // The image under each of the covers: their probabilities, and what the network sees of it.
  async function run(image, covers) {
    const images = new Uint8Array(covers.length * image.length);
    const uncovered = new Float32Array(covers.length * area).fill(1);
    covers.forEach((cover, n) => {
      images.set(image, n * image.length);
      for (const place of cover) uncovered[n * area + place] = 0;
    });
    const [first, second] = session.inputNames;
    const outputs = await session.run({
      [first]: new ort.Tensor("uint8", images, [covers.length, ...facts.image_shape]),
      [second]: new ort.Tensor("float32", uncovered, [covers.length, height, width, 1]),
    });
    const [probabilities, seen] = session.outputNames.map((name) => outputs[name].data);
    const count = facts.class_names.length;
    const rows = covers.map((_, n) => probabilities.subarray(n * count, (n + 1) * count));
    return {rows, seen: seen.subarray(0, area * channels)};
  }

  await run(new Uint8Array(facts.image_shape.reduce((a, b) => a * b)), [[]]);  // warms up
  return async (file) => {
    const start = performance.now();
    const image = await decode(file, facts.image_shape);
    const {rows: [row], seen} = await run(image, [[]]);
    const milliseconds = Math.round(10 * (performance.now() - start)) / 10;
    const best = row.indexOf(Math.max(...row));
    const covers = squares(height, width);
    const heat = new Float32Array(area), counts = new Float32Array(area);
    const {rows} = await run(image, covers);
    covers.forEach((cover, n) => {
      for (const place of cover) {
        heat[place] += row[best] - rows[n][best];
        counts[place] += 1;
      }
    });
    heat.forEach((value, place) => { heat[place] = value / counts[place]; });
    const classes = [...row].map((probability, n) => ({name: facts.class_names[n], probability}));
    const visible = rgb(seen, channels).map((value) => clip(Math.trunc(value * (127.5 / 2.5) + 127.5)));
    return {
      classes: classes.sort((a, b) => b.probability - a.probability).slice(0, shown),
      seen: url(visible, height, width),
      heat: url(overlay(visible, heat), height, width),
      milliseconds,
    };
  };
}

// The places that each square covers, as numbers in row-major order.
function squares(height, width) {
  const spans = (side) => {
    const size = Math.ceil(side / PARTS), step = Math.max(1, Math.floor(size / 2));
    const starts = new Set();
    for (let start = 0; start <= side - size; start += step) starts.add(start);
    return [...starts.add(side - size)].map((start) => [...Array(size).keys()].map((n) => start + n));
  };
  const columns = spans(width);
  return spans(height).flatMap((rows) =>
    columns.map((part) => rows.flatMap((row) => part.map((column) => row * width + column))));
}

// What the network saw in grey, red where covering it lowers the probability, blue where it raises.
function overlay(visible, heat) {
  const most = Math.max(FAINT, ...heat.map(Math.abs));
  return visible.map((_, place) => {
    const pixel = Math.floor(place / 3), first = 3 * pixel;
    const grey = (visible[first] + visible[first + 1] + visible[first + 2]) / 6 + 96;
    const colour = (heat[pixel] > 0 ? FALLS : RISES)[place % 3];
    return clip(Math.trunc(grey + 0.7 * Math.abs(heat[pixel]) / most * (colour - grey)));
  });
}

function rgb(values, channels) {
  const found = new Float32Array(values.length / channels * 3);
  return found.map((_, n) => values[Math.floor(n / 3) * channels + (channels === 1 ? 0 : n % 3)]);
}

function url(values, height, width) {
  const canvas = Object.assign(document.createElement("canvas"), {height, width});
  const data = new ImageData(width, height);
  values.forEach((value, n) => { data.data[Math.floor(n / 3) * 4 + n % 3] = value; });
  for (let n = 3; n < data.data.length; n += 4) data.data[n] = 255;
  canvas.getContext("2d").putImageData(data, 0, 0);
  return canvas.toDataURL();
}

const clip = (value) => Math.max(0, Math.min(255, value));

// The picture's centre as uint8 of `shape`, upright, over white unless it has 4 channels.
async function decode(file, [height, width, channels]) {
  const address = URL.createObjectURL(file), header = new Image();
  try {
    header.src = address;
    await new Promise((resolve, reject) => {
      header.onload = resolve;
      header.onerror = () => reject(new Error("it is not a picture that this browser knows"));
    });
  } finally {
    URL.revokeObjectURL(address);
  }
  if (header.naturalWidth * header.naturalHeight > MAX_PIXELS) {
    throw new Error(`it has more than ${MAX_PIXELS.toLocaleString("en")} pixels`);
  }
  const bitmap = await createImageBitmap(file, {colorSpaceConversion: "none", premultiplyAlpha: "none"});
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", {willReadFrequently: true});
  if (channels !== 4) {
    context.fillStyle = "white";
    context.fillRect(0, 0, bitmap.width, bitmap.height);
  }
  context.drawImage(bitmap, 0, 0);
  const {data} = context.getImageData(0, 0, bitmap.width, bitmap.height);
  const pixels = new Uint8Array(data.length / 4 * channels).map((_, n) => {
    const at = 4 * Math.floor(n / channels);
    return channels > 1 ? data[at + n % channels]
      : (data[at] * 19595 + data[at + 1] * 38470 + data[at + 2] * 7471 + 0x8000) >> 16;
  });
  return fit(pixels, bitmap.height, bitmap.width, channels, height, width);
}

// Pillow's ImageOps.fit with its bilinear filter, to the last bit: rows, then columns, in fixed point.
// (Where Pillow 13 finds columns cheaper to begin with, a value may differ by one.)
function fit(pixels, rows, columns, channels, height, width) {
  const ratio = width / height, wide = columns / rows >= ratio;
  const [kept, across] = wide ? [rows, ratio * rows] : [columns / ratio, columns];
  const left = (columns - across) * 0.5, top = (rows - kept) * 0.5;
  const horizontal = weights(columns, left, left + across, width);
  const vertical = weights(rows, top, top + kept, height);
  const narrow = new Uint8Array(rows * width * channels), found = new Uint8Array(height * width * channels);
  const resize = (from, start, step, {first, factors}, into, place) => {
    let sum = 2 ** (BITS - 1);
    factors.forEach((factor, n) => { sum += from[start + (first + n) * step] * factor; });
    into[place] = clip(Math.floor(sum / 2 ** BITS));
  };
  for (let y = 0; y < rows; y++) for (let x = 0; x < width; x++) for (let c = 0; c < channels; c++) {
    resize(pixels, y * columns * channels + c, channels, horizontal[x], narrow, (y * width + x) * channels + c);
  }
  for (let y = 0; y < height; y++) for (let n = 0; n < width * channels; n++) {
    resize(narrow, n, width * channels, vertical[y], found, y * width * channels + n);
  }
  return found;
}

// For each of `count` pixels, which of the `size` values from `start` to `end` it is made of.
function weights(size, start, end, count) {
  const scale = (end - start) / count, support = Math.max(scale, 1);
  return [...Array(count).keys()].map((place) => {
    const centre = start + (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const last = Math.min(size, Math.trunc(centre + support + 0.5));
    const values = [...Array(last - first).keys()].map(
      (n) => Math.max(0, 1 - Math.abs((n + first - centre + 0.5) / support)));
    const total = values.reduce((a, b) => a + b, 0);
    return {first, factors: values.map((value) => Math.trunc(0.5 + value / total * 2 ** BITS))};
  });
}
