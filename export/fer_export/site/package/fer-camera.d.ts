import type { Answer, Box, FaceModel, SelfTest } from "./index.js";

export interface CameraFace extends Answer {
  /** The same from frame to frame. */
  number: number;
  box: Box;
}

/** The custom element <fer-camera>; importing this module defines it. */
export class FerCamera extends HTMLElement {
  ort: unknown;
  readonly model: FaceModel | null;
  readonly faces: readonly CameraFace[];
  load(): Promise<boolean>;
  start(): Promise<void>;
  stop(): void;
}

declare global {
  interface HTMLElementTagNameMap {
    "fer-camera": FerCamera;
  }
  interface HTMLElementEventMap {
    "fer-ready": CustomEvent<{ model: FaceModel; selfTest: SelfTest | null }>;
    "fer-faces": CustomEvent<{ faces: readonly CameraFace[] }>;
    "fer-error": CustomEvent<{ message: string }>;
  }
}
