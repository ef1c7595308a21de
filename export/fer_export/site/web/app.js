/** The page: images and camera frames in, boxes and bars out. What is done with a face is in the package fer-edge. */

import { Camera, FaceModel, Follower, middleFrame, prepareFace, Recognizer, YuNet } from "./fer-edge/index.js";
import { ort } from "./runtime.js";

const MAX_SIDE = 4096; // pixels of an image that are kept; more than a phone's canvas holds helps nobody
const LEAST_FRAME = 48; // pixels, side of the frame
const CAMERA_LONG_SIDE = 320; // pixels that a frame is shrunk to before faces are looked for
const MOST_BARS = 12; // of a face; of more labels the most probable are shown
const SPOKEN_EVERY = 1000; // ms between changes that a screen reader is told

const element = (id) => document.getElementById(id);
const canvas = element("picture");
const context = canvas.getContext("2d");
const source = document.createElement("canvas"); // the image or frame without boxes
const sourceContext = source.getContext("2d", { willReadFrequently: true });

let model = null;
let recognizer = null;
let camera = null;
let frame = null; // where the face is read when no detector is there: {x, y, width, height}
let shown = 0; // number of the image that is on the screen; an older one's answer is dropped
let spokenAt = 0;
let frameTimes = [];

async function start() {
  try {
    const site = await (await fetch("site.json")).json();
    model = await FaceModel.load(site.model, { ort });
    recognizer = new Recognizer(model, site.yunet ? await YuNet.load(site.yunet, ort) : null);
    addSamples(site.samples);
    describeModel(site);
    element("camera").disabled = element("file").disabled = false;
    say("Ready.");
    // Kept for whoever looks in from outside, such as the tests.
    window.fer = { model, prepareFace, ort, source, answers: [] };
    showCertificate(await model.selfTest());
  } catch (error) {
    const isForUsers = ["ModelFileError", "BackendError"].includes(error.name);
    fail(isForUsers ? error.message : `The page cannot start: ${error.message}`);
  }
  document.documentElement.dataset.ready = model ? "yes" : "no";
}

function addSamples(samples) {
  for (const { file, title, face } of samples) {
    const button = document.createElement("button");
    const image = Object.assign(new Image(), { src: file, alt: title });
    Object.assign(button, { type: "button", title });
    button.append(image);
    button.addEventListener("click", async () => {
      stopCamera();
      await showPicture(
        fetch(file).then((answer) => answer.blob()),
        title,
        face,
      );
    });
    element("samples").append(button);
  }
}

function describeModel(site) {
  const { name, precision, verdict, training, calibration } = model.metadata;
  const accuracy = verdict?.accuracy ?? training?.accuracy;
  const agrees = calibration?.labels?.startsWith("votes") ? "agrees with the majority of the raters" : "right";
  element("model").textContent =
    `${name} ${precision}, ${(site.model_bytes / 1e6).toFixed(2)} MB` +
    (accuracy ? `, ${agrees} on ${(100 * accuracy).toFixed(1)} % of its validation images.` : ".") +
    (model.metadata.uncertain_below ? ` A question mark: less sure than ${Math.round(100 * model.metadata.uncertain_below)} %.` : "") +
    " Below an answer: reasons not to trust it.";
}

function showCertificate(result) {
  const line = element("certificate");
  if (result === null) return;
  line.className = result.passed ? "passed" : "failed";
  line.textContent = result.passed
    ? `Checked: this browser computes what was exported, on ${result.faces} faces to ${result.difference.toExponential(0)}.`
    : `This browser does not compute what was exported (${result.flips} of ${result.faces} faces change). Do not trust the answers.`;
}

function say(text) {
  const status = element("status");
  if (status.textContent !== text) status.textContent = text;
}

function fail(text) {
  element("problem").textContent = text;
  element("problem").hidden = false;
  say("");
}

/** Find and classify the faces of what is in `source`. */
function recognise(longSide) {
  const { width, height } = source;
  if (recognizer.needsFrame(width, height)) frame ??= middleFrame(width, height);
  return recognizer.recognize(source, { longSide, frame });
}

/**
 * @param {Blob | Promise<Blob>} content a promise while it is loaded: the image counts from the moment it is chosen
 * @param {number[]} [face] x, y and side of a frame that shows the face in the image
 */
async function showPicture(content, title, face = null) {
  const number = ++shown;
  element("problem").hidden = true;
  let bitmap;
  try {
    bitmap = await createImageBitmap(await content);
  } catch {
    if (number === shown) fail(`${title} is no image that this browser reads.`);
    return;
  }
  if (number !== shown) {
    // A newer image or the camera came first; `source` is theirs.
    bitmap.close();
    return;
  }
  const shrink = Math.min(1, MAX_SIDE / Math.max(bitmap.width, bitmap.height));
  source.width = Math.round(bitmap.width * shrink);
  source.height = Math.round(bitmap.height * shrink);
  sourceContext.drawImage(bitmap, 0, 0, source.width, source.height);
  bitmap.close();
  frame = face && { x: face[0], y: face[1], width: face[2], height: face[2] };
  await answerPicture(number, title);
}

let pictureTitle = "";

async function answerPicture(number, title = pictureTitle) {
  pictureTitle = title;
  try {
    const { faces, times } = await recognise();
    if (number !== shown) return;
    const numbered = faces.map((face, index) => ({
      ...face,
      number: index + 1,
      best: face.probabilities.indexOf(Math.max(...face.probabilities)),
    }));
    const spoken = present(numbered, times, title);
    element("fps").textContent = "–";
    say(spoken);
  } catch (error) {
    fail(`${title}: ${error.message}`);
  }
}

let isStarting = false; // the browser may be asking for permission

async function startCamera() {
  if (isStarting) return;
  element("problem").hidden = true;
  const before = shown;
  let opened;
  isStarting = true;
  try {
    opened = await Camera.open({ onLost: lostCamera });
  } catch (error) {
    fail(error.message);
    return;
  } finally {
    isStarting = false;
  }
  if (shown !== before) {
    // An image was chosen while the browser asked.
    opened.stop();
    return;
  }
  camera = opened;
  const button = element("camera");
  button.textContent = "Stop camera";
  button.setAttribute("aria-pressed", "true");
  frame = null;
  frameTimes = [];
  const number = ++shown;
  const follower = new Follower();
  while (camera && number === shown) {
    try {
      await answerFrame(number, follower);
    } catch (error) {
      fail(`The camera's image cannot be read: ${error.message}`);
      stopCamera();
    }
    await nextFrame();
  }
}

async function answerFrame(number, follower) {
  const { width, height } = source;
  if (!camera.draw(source)) return;
  if (source.width !== width || source.height !== height) frame = null;
  const { faces, times } = await recognise(CAMERA_LONG_SIDE);
  if (number !== shown || !camera) return;
  const now = performance.now();
  const followed = follower.update(now / 1000, faces);
  const numbered = faces.map((face, index) => ({ ...face, ...followed[index] }));
  const spoken = present(numbered, times, "The camera");
  frameTimes = [...frameTimes.filter((time) => now - time < 1000), now];
  element("fps").textContent = String(frameTimes.length);
  if (now - spokenAt > SPOKEN_EVERY) {
    say(spoken);
    spokenAt = now;
  }
}

function nextFrame() {
  // A hidden tab gets no animation frames: the loop rests there, as it should.
  return new Promise((resolve) => requestAnimationFrame(resolve));
}

function lostCamera() {
  stopCamera();
  fail("The camera gives no more images: it was unplugged, taken by another program or forbidden.");
}

function stopCamera() {
  if (!camera) return;
  camera.stop();
  camera = null;
  shown++;
  element("camera").textContent = "Start camera";
  element("camera").setAttribute("aria-pressed", "false");
}

/** The expression, with a question mark below the confidence that the export fitted for an answer. */
function nameOf({ best, answer }) {
  return model.labels[best] + (answer.uncertain ? "?" : "");
}

/** The reasons against a face's answer in words; "" where there is none. */
function reasonsOf({ answer }) {
  return answer.reasons.map((reason) => reason.replace("_", " ")).join(", ");
}

function summary(faces) {
  if (faces.length === 0) return "No face found.";
  const names = faces.map((face) => nameOf(face) + (reasonsOf(face) && ` (${reasonsOf(face)})`));
  return `${faces.length === 1 ? "One face" : `${faces.length} faces`}: ${names.join(", ")}.`;
}

/** Show the faces; returns what a screen reader is told. */
function present(found, times, title) {
  const began = performance.now();
  const faces = found.map((face) => ({ ...face, answer: model.answer(face.probabilities, face.doubts, face.best) }));
  element("empty").hidden = true;
  draw(faces);
  list(faces);
  const spoken = summary(faces);
  canvas.setAttribute("aria-label", `${title}. ${spoken}`);
  const isFramed = !recognizer.detector && frame !== null;
  canvas.classList.toggle("movable", isFramed);
  canvas.tabIndex = isFramed ? 0 : -1; // a stop for the keyboard only where keys do something
  element("framing").hidden = !isFramed;
  times.draw = performance.now() - began;
  for (const [stage, value] of Object.entries(times)) {
    element(stage).textContent = value < 10 ? value.toFixed(1) : value.toFixed(0);
  }
  window.fer.answers = faces.map(({ box, probabilities, best, answer }) => ({
    box,
    expression: model.labels[best],
    probabilities: Array.from(probabilities),
    reasons: answer.reasons,
    notChecked: answer.notChecked,
  }));
  return spoken;
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// The style sheet has a colour for each of the default data set's labels, and eight for other labels.
const NAMED = ["angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"];
const UNNAMED = 8;

/** The custom property with the colour of a label. */
function inkOf(index) {
  const label = model.labels[index];
  if (NAMED.includes(label)) return `--${label}`;
  const others = model.labels.slice(0, index).filter((other) => !NAMED.includes(other));
  return `--label-${others.length % UNNAMED}`;
}

function draw(faces) {
  const { width, height } = source;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  context.drawImage(source, 0, 0);
  // Lines and letters as large on a phone as on a desk, whatever the size of the image.
  const unit = Math.max(width / Math.max(canvas.clientWidth, 1), height / Math.max(canvas.clientHeight, 1));
  const letters = Math.max(14 * unit, 6);
  context.font = `600 ${letters}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  for (const face of faces) {
    const { box, number, best, probabilities } = face;
    const ink = colour(inkOf(best));
    context.lineWidth = 3 * unit;
    context.strokeStyle = ink;
    context.beginPath();
    context.roundRect(box.x, box.y, box.width, box.height, 8 * unit);
    context.stroke();
    const short = `${faces.length > 1 ? `${number} ` : ""}${nameOf(face)}`;
    let text = `${short} ${Math.round(100 * probabilities[best])} %`;
    // Among small faces a long tag would cover the neighbours; the share is beside the image, too.
    if (faces.length > 1 && context.measureText(text).width > 2 * box.width) text = short;
    const tagWidth = context.measureText(text).width + letters;
    const tagHeight = 1.6 * letters;
    const x = Math.min(Math.max(box.x, 0), Math.max(width - tagWidth, 0));
    const y = box.y >= tagHeight + 2 * unit ? box.y - tagHeight - 2 * unit : Math.max(box.y, 0);
    context.fillStyle = ink;
    context.beginPath();
    context.roundRect(x, y, tagWidth, tagHeight, 6 * unit);
    context.fill();
    context.fillStyle = colour("--on-accent");
    context.fillText(text, x + letters / 2, y + tagHeight / 2);
    drawReasons(face, ink, letters, unit);
  }
}

/** The reasons along the lower edge of a face's box, outside it where there is room; the eyes are above. */
function drawReasons(face, ink, letters, unit) {
  const lines = face.answer.reasons.map((reason) => reason.replace("_", " "));
  if (lines.length === 0) return;
  const { box } = face;
  const small = 0.8 * letters;
  context.font = `600 ${small}px system-ui, sans-serif`;
  const [wide, high] = [Math.max(...lines.map((line) => context.measureText(line).width)) + small, 1.4 * small * lines.length];
  const x = Math.min(Math.max(box.x, 0), Math.max(source.width - wide, 0));
  const y = Math.min(box.y + box.height + 2 * unit, source.height - high);
  context.fillStyle = ink;
  context.fillRect(x, y, wide, high);
  context.fillStyle = colour("--on-accent");
  lines.forEach((line, row) => context.fillText(line, x + small / 2, y + 1.4 * small * (row + 0.5)));
  context.font = `600 ${letters}px system-ui, sans-serif`;
}

function list(faces) {
  const parent = element("faces");
  while (parent.children.length > faces.length) parent.lastChild.remove();
  while (parent.children.length < faces.length) parent.append(card());
  faces.forEach((face, index) => {
    const { number, best, probabilities } = face;
    const item = parent.children[index];
    item.querySelector(".name").textContent = nameOf(face);
    const reasons = item.querySelector(".reasons");
    reasons.textContent = reasonsOf(face);
    reasons.hidden = face.answer.reasons.length === 0;
    item.querySelector("small").textContent = `face ${number}`;
    const rows = shownLabels(probabilities);
    item.querySelectorAll("dt").forEach((term, place) => {
      const at = rows[place];
      const row = term.nextElementSibling;
      term.textContent = model.labels[at];
      const share = row.nextElementSibling;
      const fill = row.firstChild;
      term.classList.toggle("best", at === best);
      share.classList.toggle("best", at === best);
      share.textContent = `${Math.round(100 * probabilities[at])} %`;
      fill.style.transform = `scaleX(${probabilities[at]})`;
      fill.style.backgroundColor = `var(${inkOf(at)})`;
    });
  });
}

/** Indices of the labels on a face's card: all of them in their order, or the most probable of many. */
function shownLabels(probabilities) {
  const all = Array.from(model.labels.keys());
  if (all.length <= MOST_BARS) return all;
  return all.sort((one, other) => probabilities[other] - probabilities[one]).slice(0, MOST_BARS);
}

function card() {
  const item = Object.assign(document.createElement("li"), { className: "face" });
  const heading = document.createElement("h3");
  heading.append(Object.assign(document.createElement("span"), { className: "name" }), document.createElement("small"));
  const bars = Object.assign(document.createElement("dl"), { className: "bars" });
  for (let place = 0; place < Math.min(model.labels.length, MOST_BARS); place++) {
    const track = Object.assign(document.createElement("dd"), { className: "track" });
    track.setAttribute("aria-hidden", "true");
    track.append(document.createElement("span"));
    bars.append(
      document.createElement("dt"),
      track,
      Object.assign(document.createElement("dd"), { className: "share" }),
    );
  }
  item.append(heading, Object.assign(document.createElement("p"), { className: "reasons", hidden: true }), bars);
  return item;
}

// The frame, where no detector is there.

const frameStep = () => Math.max(2, Math.round(source.width / 60));

function moveFrame(dx, dy, growth = 0) {
  if (!frame || recognizer.detector) return;
  const { width, height } = source;
  const side = Math.min(Math.max(frame.width + growth, LEAST_FRAME), Math.min(width, height));
  const [x, y] = [frame.x + dx - (side - frame.width) / 2, frame.y + dy - (side - frame.height) / 2];
  frame = {
    x: Math.round(Math.min(Math.max(x, 0), width - side)),
    y: Math.round(Math.min(Math.max(y, 0), height - side)),
    width: Math.round(side),
    height: Math.round(side),
  };
  if (!camera) answerPicture(++shown);
}

canvas.addEventListener("keydown", (event) => {
  const step = frameStep();
  const moves = {
    ArrowLeft: [-step, 0],
    ArrowRight: [step, 0],
    ArrowUp: [0, -step],
    ArrowDown: [0, step],
    "+": [0, 0, 2 * step],
    "=": [0, 0, 2 * step],
    "-": [0, 0, -2 * step],
  };
  if (!frame || recognizer.detector || !(event.key in moves)) return;
  event.preventDefault();
  moveFrame(...moves[event.key]);
});

let grip = null;
canvas.addEventListener("pointerdown", (event) => {
  if (!frame || recognizer.detector) return;
  grip = [event.clientX, event.clientY];
  canvas.setPointerCapture(event.pointerId);
});
canvas.addEventListener("pointermove", (event) => {
  if (!grip) return;
  // The canvas is letterboxed by object-fit: one factor for both directions.
  const scale = Math.max(source.width / canvas.clientWidth, source.height / canvas.clientHeight);
  moveFrame((event.clientX - grip[0]) * scale, (event.clientY - grip[1]) * scale);
  grip = [event.clientX, event.clientY];
});
for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (grip = null));

// For fingers, which have no plus and minus.
element("smaller").addEventListener("click", () => moveFrame(0, 0, -4 * frameStep()));
element("larger").addEventListener("click", () => moveFrame(0, 0, 4 * frameStep()));

element("camera").addEventListener("click", () => (camera ? stopCamera() : startCamera()));

async function showFile(file) {
  if (!model || !file) return;
  stopCamera();
  await showPicture(file, file.name || "The pasted image");
}

element("file").addEventListener("change", async (event) => {
  await showFile(event.target.files[0]);
  event.target.value = ""; // so that the same file can be chosen again
});
const screen = element("drop");
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  screen.classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) screen.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  screen.classList.remove("over");
  showFile(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => showFile(event.clipboardData.files[0]));

if ("serviceWorker" in navigator && window.isSecureContext) {
  navigator.serviceWorker.register("sw.js").catch(() => {}); // the page works without it, online
}
start();
