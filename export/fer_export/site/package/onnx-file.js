/** What an .onnx file of fer-export says about itself, read without a runtime. */

const METADATA_KEY = "fer";
const SCHEMA_VERSION = 2; // 1 had `expressions` for `labels`; its faces are 48 x 48 in gray

/** The model file is missing, damaged or not one of ours. The message is meant for the user. */
export class ModelFileError extends Error {
  name = "ModelFileError";
}

/**
 * The bytes of a file.
 *
 * @param {string | URL | ArrayBuffer | Uint8Array} source an address, in Node also a path
 * @throws {ModelFileError}
 */
export async function readSource(source) {
  if (source instanceof Uint8Array) return source;
  if (source instanceof ArrayBuffer) return new Uint8Array(source);
  // Node's fetch reads no files. Asked for like this, so that no bundler looks for Node's modules.
  const files = globalThis.process?.getBuiltinModule?.("node:fs/promises");
  if (files && !/^(https?|data|blob):/.test(source)) {
    try {
      return new Uint8Array(await files.readFile(String(source).startsWith("file:") ? new URL(source) : source));
    } catch (error) {
      throw new ModelFileError(`${source} cannot be read: ${error.message}`, { cause: error });
    }
  }
  let answer;
  try {
    answer = await fetch(source);
  } catch (error) {
    throw new ModelFileError(`${source} cannot be fetched: ${error.message}`, { cause: error });
  }
  if (!answer.ok) throw new ModelFileError(`${source} cannot be fetched: the server answered ${answer.status}`);
  return new Uint8Array(await answer.arrayBuffer());
}

/** The key-value pairs of an .onnx file: field 14, `metadata_props`, of ONNX's ModelProto. */
export function readMetadataProps(content, name = "the model") {
  const pairs = new Map();
  try {
    for (const [field, value] of fieldsOf(content)) {
      if (field === 14) {
        const entry = new Map(fieldsOf(value));
        const text = (bytes) => new TextDecoder("utf-8", { fatal: true }).decode(bytes ?? new Uint8Array());
        pairs.set(text(entry.get(1)), text(entry.get(2)));
      }
    }
  } catch (error) {
    throw new ModelFileError(`${name} is damaged or no ONNX model (${error.message})`, { cause: error });
  }
  return pairs;
}

/**
 * The file's `fer` entry: name, precision, labels, size, color, temperature, certificate ...
 *
 * @throws {ModelFileError} there is none that this version reads
 */
export function readMetadata(content, name = "the model") {
  const text = readMetadataProps(content, name).get(METADATA_KEY);
  if (text === undefined) {
    throw new ModelFileError(
      `${name} has no "${METADATA_KEY}" metadata, so its labels and input are unknown; export it with fer-export`,
    );
  }
  let metadata;
  try {
    metadata = JSON.parse(text);
  } catch (error) {
    throw new ModelFileError(`${name} has "${METADATA_KEY}" metadata that cannot be read`, { cause: error });
  }
  if (metadata?.schema > SCHEMA_VERSION) {
    throw new ModelFileError(`${name} was written by a newer fer-edge (metadata schema ${metadata.schema})`);
  }
  const { schema, expressions, ...rest } = metadata ?? {};
  const read = schema >= 2 ? { schema, ...rest } : { schema, ...rest, labels: expressions, size: 48, color: "gray" };
  if (!Array.isArray(read.labels) || read.labels.length < 2 || !(read.size > 0) || !["gray", "rgb"].includes(read.color)) {
    throw new ModelFileError(`${name} does not say its labels and its input; export it again with fer-export`);
  }
  return read;
}

// Protocol buffers: a field is a varint of number and wire type, then the value.
function* fieldsOf(bytes) {
  let at = 0;
  const varint = () => {
    // Numbers above 2^53 would lose digits; no field that is read here holds one.
    let value = 0;
    for (let factor = 1; ; factor *= 128) {
      if (at >= bytes.length || factor > 2 ** 63) throw new RangeError("truncated");
      const byte = bytes[at++];
      value += (byte & 127) * factor;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const tag = varint();
    const [field, wire] = [Math.floor(tag / 8), tag % 8];
    if (field === 0) throw new RangeError("field number 0");
    let length = wire === 1 ? 8 : wire === 5 ? 4 : 0;
    if (wire === 0) {
      yield [field, varint()];
      continue;
    }
    if (wire === 2) length = varint();
    else if (length === 0) throw new RangeError(`wire type ${wire}`);
    if (at + length > bytes.length) throw new RangeError("truncated");
    yield [field, bytes.subarray(at, at + length)];
    at += length;
  }
}
