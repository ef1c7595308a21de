/** fer-edge for the browser and for Node; see README.md. */

export { Camera, CameraError } from "./camera.js";
export { prepareFace } from "./face.js";
export { Follower } from "./following.js";
export { FaceModel } from "./model.js";
export { ModelFileError, readMetadata } from "./onnx-file.js";
export { middleFrame, Recognizer } from "./recognizer.js";
export { REASONS } from "./quality.js";
export { BackendError } from "./runtime.js";
export { YuNet } from "./yunet.js";
