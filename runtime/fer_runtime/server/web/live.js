"use strict";

const notice = document.getElementById("notice");
const list = document.getElementById("faces");
const none = document.getElementById("none");
const picture = document.getElementById("picture");

function say(isOn, text) {
  notice.dataset.camera = isOn ? "on" : "off";
  notice.textContent = text;
}

function show(face) {
  const item = document.createElement("li");
  const name = document.createElement("p");
  name.className = "name";
  const share = `${Math.round(face.confidence * 100)} %`;
  name.textContent = `${face.track}: ${face.expression} ${share}${face.uncertain ? ", uncertain" : ""}`;
  item.append(name);
  if (face.reasons.length) {
    const reasons = document.createElement("p");
    reasons.className = "reasons";
    reasons.textContent = face.reasons.map((reason) => reason.replace("_", " ")).join(", ");
    item.append(reasons);
  }
  for (const [label, value] of Object.entries(face.probabilities)) {
    const row = document.createElement("p");
    row.className = label === face.expression ? "row best" : "row";
    const bar = document.createElement("progress");
    bar.max = 1;
    bar.value = value;
    bar.setAttribute("aria-label", `${label} ${Math.round(value * 100)} %`);
    row.append(label, bar);
    item.append(row);
  }
  return item;
}

let wasOn = false;
const events = new EventSource("/live/events");
events.onmessage = (event) => {
  const moment = JSON.parse(event.data);
  say(moment.camera, moment.camera ? `Camera is on: ${moment.source}` : `Camera is off: ${moment.reason}`);
  const faces = moment.faces ?? [];
  list.replaceChildren(...faces.map(show));
  none.hidden = faces.length > 0;
  // An <img> whose stream broke does not come back by itself, and without a camera it would load for ever.
  if (moment.camera && !wasOn) {
    picture.src = `/live/video?${Date.now()}`;
  }
  picture.hidden = !moment.camera;
  wasOn = moment.camera;
};
events.onerror = () => {
  wasOn = false;
  say(false, "No connection to the service");
};
