import * as ort from "onnxruntime-web";
import { readFileSync } from "fs";

ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(readFileSync("model.onnx"));
const pixels = new Uint8Array(readFileSync("images.bin"));
const images = new ort.Tensor("uint8", pixels, [pixels.length / 64, 1, 8, 8]);
const { probabilities } = await session.run({ images });
console.log(JSON.stringify(Array.from(probabilities.data)));
