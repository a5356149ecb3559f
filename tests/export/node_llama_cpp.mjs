// `node_llama_cpp.mjs MODULES FILE TEXT COUNT`: the ids of a prompt and of what follows greedily, as JSON.
import path from "node:path";
import { pathToFileURL } from "node:url";

const [modules, file, text, count] = process.argv.slice(2);
const { getLlama, LlamaLogLevel } = await import(pathToFileURL(path.join(modules, "node-llama-cpp", "dist", "index.js")));
const llama = await getLlama({ build: "never", gpu: false, maxThreads: 1, logLevel: LlamaLogLevel.error });
const model = await llama.loadModel({ modelPath: file });
const context = await model.createContext({ contextSize: 256, threads: 1 });
const prompt = model.tokenize(text, true);
const ids = [];
for await (const token of context.getSequence().evaluate(prompt, { temperature: 0 })) {
  if (model.isEogToken(token)) break;
  ids.push(token);
  if (ids.length === Number(count)) break;
}
process.stdout.write(JSON.stringify({ prompt, ids, end: model.tokens.eos }) + "\n");
process.exit(0);
