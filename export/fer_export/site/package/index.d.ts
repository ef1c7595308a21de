/** Facial expressions with models of fer-edge and onnxruntime-web. */

export interface Box {
  x: number;
  y: number;
  width: number;
  height: number;
}

/** x and y in pixels. */
export type Point = [number, number];

/** An ImageData, or red, green, blue and alpha of each pixel. */
export interface PixelImage {
  readonly data: ArrayLike<number>;
  readonly width: number;
  readonly height: number;
}

export interface Answer {
  expression: string;
  confidence: number;
  /** Less sure than the threshold that the export fitted. */
  uncertain: boolean;
  probabilities: Record<string, number>;
  /** Reasons to doubt the answer; [] if no check found one. */
  reasons: Reason[];
  /** Reasons that could not be checked: the file has no threshold, or there are no landmarks. */
  notChecked: Reason[];
}

export type Reason = "low_confidence" | "turned" | "small" | "blurred" | "dark" | "unfamiliar";

/** All reasons, in the order in which they are named. */
export const REASONS: readonly Reason[];

/** The reasons that are known before the confidence is; null: could not be checked. */
export type Doubts = Partial<Record<Exclude<Reason, "low_confidence">, boolean | null>>;

export interface SelfTest {
  /** Golden faces in the file. */
  faces: number;
  passed: boolean;
  /** The largest |Δlogit| / (1 + |logit|) from what the file gave at export. */
  difference: number;
  /** The largest |Δp|. */
  probabilityDifference: number;
  /** As `difference`, of the output `unfamiliarity`; 0 where the file has none. */
  unfamiliarityDifference: number;
  /** As `difference`, from PyTorch's logits; a quantized file is meant to differ. */
  networkDifference: number;
  /** Golden faces with another label. */
  flips: number;
}

export type Backend = "webgpu" | "wasm" | "cpu";

export interface LoadOptions {
  /** onnxruntime-web's or onnxruntime-node's module; without it the peer dependency is imported. */
  ort?: unknown;
  /** "auto" takes WebGPU where the self-test passes on it, otherwise WebAssembly. */
  backend?: "auto" | "webgpu" | "wasm";
  /** Of WebAssembly; by default up to 4 if the page is cross-origin isolated, otherwise 1. */
  threads?: number;
}

/** URL or content of a file; in Node also a path. */
export type Source = string | URL | ArrayBuffer | Uint8Array;

export class FaceModel {
  private constructor();
  /** Throws a ModelFileError for a file that is missing, damaged or not of fer-export. */
  static load(source: Source, options?: LoadOptions): Promise<FaceModel>;
  readonly ort: unknown;
  readonly metadata: Record<string, unknown>;
  readonly labels: readonly string[];
  readonly size: number;
  readonly color: "gray" | "rgb";
  readonly backend: Backend;
  readonly refused: readonly { backend: Backend; reason: string }[];
  classify(image: PixelImage, box?: Box, how?: { roll?: number; landmarks?: Point[] }): Promise<Answer>;
  /** `faces`: one or more of `prepareFace`, one after the other. `unfamiliarity` is null if the file has no such output. */
  run(
    faces: Uint8Array,
  ): Promise<{ logits: Float32Array; probabilities: Float32Array; unfamiliarity: Float32Array | null }>;
  answer(probabilities: ArrayLike<number>, doubts?: Doubts, best?: number): Answer;
  /** Replays the golden faces of the file; null if it has none. */
  selfTest(): Promise<SelfTest | null>;
  release(): Promise<void>;
}

/** The part of an image that is a face, as a model takes it: size x size gray values, or RGB. `roll` in degrees. */
export function prepareFace(
  image: PixelImage,
  box?: Box,
  roll?: number,
  wanted?: { size?: number; color?: "gray" | "rgb" },
): Uint8Array;

/** The file's `fer` entry, read without a runtime. */
export function readMetadata(content: Uint8Array, name?: string): Record<string, unknown>;

export interface Detection {
  box: Box;
  /** Degrees that the face is turned clockwise. */
  roll: number;
  score: number;
  /** Right eye, left eye, nose, right and left corner of the mouth. */
  landmarks: Point[];
}

/** Faces by YuNet; browsers only. */
export class YuNet {
  private constructor();
  static load(source: Source, ort: unknown): Promise<YuNet>;
  detect(image: CanvasImageSource, width: number, height: number, longSide?: number): Promise<Detection[]>;
}

export interface FoundFace {
  box: Box;
  roll: number;
  probabilities: Float32Array;
  /** For `model.answer(probabilities, doubts)`. */
  doubts: Doubts;
}

/** The faces of a canvas; browsers only. */
export class Recognizer {
  constructor(model: FaceModel, detector?: YuNet | null);
  needsFrame(width: number, height: number): boolean;
  recognize(
    canvas: HTMLCanvasElement,
    how?: { longSide?: number; frame?: Box | null },
  ): Promise<{ faces: FoundFace[]; times: { find: number; crop: number; classify: number } }>;
}

export function middleFrame(width: number, height: number): Box;

/** Numbers faces from frame to frame, and averages their probabilities. */
export class Follower {
  update(
    seconds: number,
    faces: readonly { box: Box; probabilities: Float32Array }[],
  ): { number: number; probabilities: Float32Array; best: number }[];
}

export class Camera {
  private constructor();
  static open(how?: { onLost?: () => void }): Promise<Camera>;
  readonly video: HTMLVideoElement;
  readonly isOpen: boolean;
  draw(canvas: HTMLCanvasElement): boolean;
  stop(): void;
}

export class ModelFileError extends Error {}
export class BackendError extends Error {}
export class CameraError extends Error {}
