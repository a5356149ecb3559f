// `transformers_js.cjs FOLDER TEXT COUNT`: the ids of a chat's prompt and of what follows greedily, as JSON.
const path = require("node:path");
const { AutoModelForCausalLM, AutoTokenizer, env } = require("@huggingface/transformers");

async function main(folder, text, count) {
  env.allowRemoteModels = false;
  env.localModelPath = path.dirname(folder) + "/";
  const name = path.basename(folder);
  const tokenizer = await AutoTokenizer.from_pretrained(name);
  const model = await AutoModelForCausalLM.from_pretrained(name, { subfolder: "", device: "cpu" });
  const inputs = tokenizer.apply_chat_template([{ role: "user", content: text }], {
    add_generation_prompt: true,
    return_dict: true,
  });
  const output = await model.generate({ ...inputs, max_new_tokens: Number(count), do_sample: false });
  const prompt = inputs.input_ids.tolist()[0].map(Number);
  const ids = output.tolist()[0].map(Number).slice(prompt.length);
  process.stdout.write(JSON.stringify({ prompt, ids }) + "\n");
}

main(...process.argv.slice(2));
