/**
 * <fer-camera model="model.onnx" detector="face_detection_yunet_2023mar.onnx"></fer-camera>
 *
 * A camera with the expressions of the faces drawn in. It shows answers only if the model passes its self-test here.
 *
 * Attributes: `model`, an address; `detector`, that of YuNet's file, without which the face is read in the middle;
 * `backend`, "auto", "webgpu" or "wasm". Property `ort`: the module to use instead of the peer dependency.
 * Methods: `load()`, `start()`, `stop()`.
 * Events: `fer-ready` {model, selfTest}, `fer-faces` {faces}, `fer-error` {message}.
 */

import { Camera } from "./camera.js";
import { Follower } from "./following.js";
import { FaceModel } from "./model.js";
import { middleFrame, Recognizer } from "./recognizer.js";
import { YuNet } from "./yunet.js";

const LONG_SIDE = 320; // pixels that a frame is shrunk to before faces are looked for
const SPOKEN_EVERY = 1000; // ms between changes that a screen reader is told

const STYLE = `
  :host { display: block; color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif; }
  :host([hidden]) { display: none; }
  .screen { display: grid; place-items: center; aspect-ratio: 4 / 3; border-radius: 0.75rem; overflow: hidden;
    background: #16191f; }
  canvas { grid-area: 1 / 1; width: 100%; height: 100%; object-fit: contain; }
  .bar { display: flex; flex-wrap: wrap; align-items: center; gap: 0.25rem 1rem; margin-top: 0.75rem; }
  button { padding: 0.5rem 1.1rem; border: 0; border-radius: 0.5rem; background: #3451c7; color: #fff; font: inherit;
    font-weight: 600; cursor: pointer; }
  button:focus-visible { outline: 3px solid #8ea4ff; outline-offset: 2px; }
  button:disabled { background: #5c6470; cursor: default; }
  p { margin: 0; flex: 1 1 12rem; }
  p.problem { color: light-dark(#b3261e, #ffb4ab); }
`;
const SHADOW = `
  <div class="screen" part="screen"><canvas width="640" height="480" role="img" aria-label="The camera is off"></canvas></div>
  <div class="bar">
    <button type="button" part="button" aria-pressed="false" disabled>Start camera</button>
    <p role="status" part="status"></p>
  </div>
`;

export class FerCamera extends HTMLElement {
  /** The module to use instead of the peer dependency onnxruntime-web. */
  ort = undefined;
  /** The model, once it is loaded. */
  model = null;
  /** The faces of the last frame: {number, box, expression, confidence, uncertain, probabilities, reasons, notChecked}. */
  faces = [];

  #canvas;
  #context;
  #button;
  #status;
  #source = document.createElement("canvas"); // the frame without boxes
  #recognizer = null;
  #camera = null;
  #isStarting = false;
  #loading = null;
  #spokenAt = 0;

  constructor() {
    super();
    const root = this.attachShadow({ mode: "open" });
    // A constructed sheet: a page's Content-Security-Policy may forbid style elements.
    const sheet = new CSSStyleSheet();
    sheet.replaceSync(STYLE);
    root.adoptedStyleSheets = [sheet];
    root.innerHTML = SHADOW;
    this.#canvas = root.querySelector("canvas");
    this.#context = this.#canvas.getContext("2d");
    this.#button = root.querySelector("button");
    this.#status = root.querySelector("p");
    this.#button.addEventListener("click", () => (this.#camera ? this.stop() : this.start()));
  }

  connectedCallback() {
    // Afterwards, so that whoever creates the element can set its properties first.
    queueMicrotask(() => this.load());
  }

  disconnectedCallback() {
    this.stop();
  }

  /** Load the model and test it, once; true if its answers can be shown. */
  load() {
    this.#loading ??= this.#load();
    return this.#loading;
  }

  async #load() {
    this.#say("Loading the model …");
    try {
      const options = { ort: this.ort, backend: this.getAttribute("backend") ?? "auto" };
      this.model = await FaceModel.load(this.#address("model"), options);
      const selfTest = await this.model.selfTest();
      if (selfTest && !selfTest.passed) {
        throw new Error(
          `This browser does not compute what was exported (${selfTest.flips} of ${selfTest.faces} faces change).`,
        );
      }
      const detector = this.hasAttribute("detector") ? await YuNet.load(this.#address("detector"), this.model.ort) : null;
      this.#recognizer = new Recognizer(this.model, detector);
      this.#button.disabled = false;
      this.#say("Ready.");
      this.#tell("fer-ready", { model: this.model, selfTest });
      return true;
    } catch (error) {
      this.#fail(error);
      return false;
    }
  }

  /** Open the camera; resolves when it runs, or when the reason why not is shown. */
  async start() {
    if (this.#camera || this.#isStarting || !(await this.load())) return;
    this.#isStarting = true;
    try {
      const lost = () => (this.stop(), this.#fail(new Error("The camera gives no more images.")));
      this.#camera = await Camera.open({ onLost: lost });
    } catch (error) {
      this.#fail(error);
      return;
    } finally {
      this.#isStarting = false;
    }
    if (!this.isConnected) return this.stop();
    this.#label("Stop camera", true);
    this.#follow(this.#camera);
  }

  /** Turn the camera off. */
  stop() {
    if (!this.#camera) return;
    this.#camera.stop();
    this.#camera = null;
    this.faces = [];
    this.#label("Start camera", false);
    this.#context.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
    this.#canvas.setAttribute("aria-label", "The camera is off");
    this.#say("Ready.");
  }

  async #follow(camera) {
    const follower = new Follower();
    while (this.#camera === camera) {
      try {
        if (camera.draw(this.#source)) await this.#frame(camera, follower);
      } catch (error) {
        this.stop();
        this.#fail(error);
      }
      // A hidden tab gets no animation frames: the loop rests there, as it should.
      await new Promise((resolve) => requestAnimationFrame(resolve));
    }
  }

  async #frame(camera, follower) {
    const { faces } = await this.#recognizer.recognize(this.#source, { longSide: LONG_SIDE });
    if (this.#camera !== camera) return;
    const now = performance.now();
    const followed = follower.update(now / 1000, faces);
    this.faces = faces.map(({ box, doubts }, index) => {
      const { number, probabilities, best } = followed[index];
      // The followed label, which changes less than the largest of one frame's probabilities.
      return { ...this.model.answer(probabilities, doubts, best), number, box };
    });
    this.#draw();
    this.#tell("fer-faces", { faces: this.faces });
    if (now - this.#spokenAt > SPOKEN_EVERY) {
      const names = this.faces.map((face) => nameOf(face) + (reasonsOf(face) && ` (${reasonsOf(face)})`));
      const text = names.length ? `${names.length === 1 ? "One face" : `${names.length} faces`}: ${names.join(", ")}.` : "No face found.";
      this.#say(text);
      this.#canvas.setAttribute("aria-label", `The camera. ${text}`);
      this.#spokenAt = now;
    }
  }

  #draw() {
    const [canvas, context] = [this.#canvas, this.#context];
    const { width, height } = this.#source;
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    context.drawImage(this.#source, 0, 0);
    // Lines and letters as large on a phone as on a desk, whatever the camera's own size.
    const unit = Math.max(width / Math.max(canvas.clientWidth, 1), height / Math.max(canvas.clientHeight, 1));
    context.lineWidth = 3 * unit;
    if (this.#recognizer.needsFrame(width, height)) {
      const { x, y, width: side } = middleFrame(width, height);
      context.strokeStyle = "#fff";
      context.strokeRect(x, y, side, side);
    }
    const letters = 15 * unit;
    context.font = `600 ${letters}px system-ui, sans-serif`;
    context.textBaseline = "middle";
    for (const face of this.faces) {
      const { box } = face;
      context.strokeStyle = "#8ea4ff";
      context.strokeRect(box.x, box.y, box.width, box.height);
      const text = `${nameOf(face)} ${Math.round(100 * face.probabilities[face.expression])} %`;
      const [wide, high] = [context.measureText(text).width + letters, 1.6 * letters];
      const x = Math.min(Math.max(box.x, 0), Math.max(width - wide, 0));
      const y = Math.max(box.y - high, 0);
      context.fillStyle = "#8ea4ff";
      context.fillRect(x, y, wide, high);
      context.fillStyle = "#0f1217";
      context.fillText(text, x + letters / 2, y + high / 2);
      if (face.reasons.length) {
        // Along the lower edge of the box: the eyes are above.
        const words = reasonsOf(face);
        const [across, low] = [context.measureText(words).width + letters, Math.min(box.y + box.height, height - high)];
        const left = Math.min(Math.max(box.x, 0), Math.max(width - across, 0));
        context.fillStyle = "#8ea4ff";
        context.fillRect(left, low, across, high);
        context.fillStyle = "#0f1217";
        context.fillText(words, left + letters / 2, low + high / 2);
      }
    }
  }

  #address(attribute) {
    const value = this.getAttribute(attribute);
    if (!value) throw new Error(`<fer-camera> needs the attribute ${attribute}, the address of a file.`);
    return new URL(value, this.ownerDocument.baseURI);
  }

  #label(text, isPressed) {
    this.#button.textContent = text;
    this.#button.setAttribute("aria-pressed", String(isPressed));
  }

  #say(text) {
    this.#status.className = "";
    if (this.#status.textContent !== text) this.#status.textContent = text;
  }

  #fail(error) {
    this.#say(error.message);
    this.#status.className = "problem";
    this.#tell("fer-error", { message: error.message });
  }

  #tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail, bubbles: true, composed: true }));
  }
}

function nameOf({ expression, uncertain }) {
  return expression + (uncertain ? "?" : "");
}

function reasonsOf({ reasons }) {
  return reasons.map((reason) => reason.replace("_", " ")).join(", ");
}

if (!customElements.get("fer-camera")) customElements.define("fer-camera", FerCamera);
