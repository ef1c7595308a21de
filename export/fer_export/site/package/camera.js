/** The camera, with messages that tell a user what to do. */

/** The camera cannot be used. The message is meant for the user. */
export class CameraError extends Error {
  name = "CameraError";
}

/** An open camera. `video` plays its images; `stop` turns it off. */
export class Camera {
  #stream;

  constructor(stream, video) {
    this.#stream = stream;
    /** A video element that is in no page. */
    this.video = video;
  }

  /**
   * Ask for the camera and start it.
   *
   * @param {{onLost?: () => void}} [how] `onLost`: called when it was unplugged, taken by another program or forbidden
   * @throws {CameraError}
   */
  static async open({ onLost } = {}) {
    if (!globalThis.navigator?.mediaDevices) {
      throw new CameraError("The camera needs a secure address: https, or localhost.");
    }
    const video = Object.assign(document.createElement("video"), { muted: true, playsInline: true });
    let stream = null;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "user", width: { ideal: 640 } } });
      video.srcObject = stream;
      await video.play();
    } catch (error) {
      stream?.getTracks().forEach((track) => track.stop());
      throw new CameraError(
        error.name === "NotAllowedError"
          ? "The camera was not allowed. Allow it in the browser's settings for this page, or choose an image."
          : `No camera can be used: ${error.message}`,
        { cause: error },
      );
    }
    const camera = new Camera(stream, video);
    stream.getVideoTracks()[0].addEventListener("ended", () => camera.isOpen && onLost?.());
    return camera;
  }

  get isOpen() {
    return this.#stream !== null;
  }

  /** Put the present image into a canvas, which takes its size; false while there is none yet. */
  draw(canvas) {
    const { videoWidth: width, videoHeight: height } = this.video;
    if (!width || !this.isOpen) return false;
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    canvas.getContext("2d", { willReadFrequently: true }).drawImage(this.video, 0, 0);
    return true;
  }

  stop() {
    this.#stream?.getTracks().forEach((track) => track.stop());
    this.#stream = null;
    this.video.srcObject = null;
  }
}
